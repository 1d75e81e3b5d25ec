"""The YAML files of templates: loaded by name or path, and refused with the mistake named."""

from pathlib import Path

import pytest
import yaml
from conversations import CHAT

from tutelage.errors import UserError
from tutelage.text.template import Template
from tutelage.text.template_file import BUILT_INS, built_in_names

NAMES = (
    "alpaca, chatml, gemma, gemma3, llama2, llama3.1_instruct, llama3.2_instruct, llama3_instruct, "
    "mistral_instruct, mistral_tekken, mistral_v1, mistral_v7, olmo2_instruct, phi3, phi3.5, phi3_medium, "
    "phi3_mini_2024-04, phi3_small, plain, qwen2.5_instruct, qwen2.5_torchllms, qwen3, "
    "qwen3_instruct_2507, qwen3_no_thinking, smollm2, storyteller, zephyr"
)


def test_templates_are_loaded_by_name_and_by_path(tmp_path):
    assert built_in_names() == NAMES.split(", ")
    assert Template.load("qwen2.5").name == "qwen2.5_instruct"
    assert Template.load("mistral_v3").name == "mistral_instruct"
    assert Template.load("chatml.yaml").name == Template.load("chatml").name == "chatml"
    own = tmp_path / "mine.yaml"
    own.write_text((BUILT_INS / "chatml.yaml").read_text().replace("user\\n", "human\\n"))
    assert Template.load(own).name == Template.load(str(own)).name == "mine"
    assert "<|im_start|>human\nHi there<|im_end|>" in Template.load(own).render(CHAT).text
    with pytest.raises(UserError) as refused:
        Template.load("chatlm")
    assert str(refused.value) == (
        f"--template_config chatlm is neither a file nor a built-in template; these are {NAMES}"
    )


def test_roles_to_learn_can_be_named(tmp_path):
    content = yaml.safe_load((BUILT_INS / "chatml.yaml").read_text())
    own = write(tmp_path, {**content, "learned": ["user", "assistant"]})
    rendered = Template.load(own).render(CHAT)
    assert [rendered.text[s:e] for s, e in rendered.learned] == ["Hi there<|im_end|>", "Hello!<|im_end|>"]


def write(folder: Path, content: object) -> Path:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


MISTAKES = {
    "unknown key": ({"contrl": []}, "contrl: no such key, did you mean control?"),
    "nothing near": (
        {"zzz": 1},
        "zzz: no such key, known are control, bos, eos, system, user, assistant, tool, tools, "
        "default_system, learned, reply, stop",
    ),
    "unknown key of a turn": (
        {"user": {"begin": ""}},
        "user.begin: no such key, known are start, lead, end, after, strip",
    ),
    "runs of users": (
        {"user": {"open": ""}},
        "user.open: no such key, known are start, lead, end, after, strip",
    ),
    "near key of a turn": ({"user": {"stat": ""}}, "user.stat: no such key, did you mean user.start?"),
    "type": ({"stop": "x"}, "stop is 'x', a list of strings is wanted"),
    "turn": ({"user": "x"}, "user is 'x', a section of keys is wanted"),
    "flag": ({"user": {"strip": "yes"}}, "user.strip is 'yes', true or false is wanted"),
    "learned": ({"learned": ["bot"]}, "learned has 'bot', which is not one of system, user, assistant, tool"),
    "stop": ({"stop": ["</s>"]}, "stop has '</s>', which is not listed under control"),
    "reply": ({"reply": ["end"]}, "reply has 'end', which is not one of start, lead, no_thinking"),
    "into": (
        {"system": {"into": "first"}},
        "system.into has 'first', which is not one of first_user, last_user",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_in_a_template_file_are_named(case, tmp_path):
    changes, message = MISTAKES[case]
    content = yaml.safe_load((BUILT_INS / "chatml.yaml").read_text())
    path = write(tmp_path, {**content, **changes})
    with pytest.raises(UserError) as refused:
        Template.load(path)
    assert str(refused.value) == f"{path}: {message}"


def test_files_that_are_no_templates_are_refused(tmp_path):
    for content, message in (
        ([1], " holds no keys; a template has at least control, user, assistant, stop"),
        ({"control": []}, " lacks user, assistant, stop"),
    ):
        path = write(tmp_path, content)
        with pytest.raises(UserError) as refused:
            Template.load(path)
        assert str(refused.value) == f"{path}{message}"
    path.write_text("a: [")
    with pytest.raises(UserError, match="own.yaml is not valid YAML: "):
        Template.load(path)


def test_the_longest_control_token_that_stands_at_a_place_is_meant(tmp_path):
    content = yaml.safe_load((BUILT_INS / "chatml.yaml").read_text())
    content |= {"control": ["<s", "<s>", "<|im_end|>"], "bos": "<s><s"}
    assert [piece.text for piece in Template.load(write(tmp_path, content)).file.bos] == ["<s>", "<s"]
