"""Settings from defaults, a YAML file and flags: the same words in both, and every mistake named."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.config import dump, load
from tutelage.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """A config with a field of every kind."""

    ckpt_paths: list[Path]
    template_config: str | None = None
    lr: float = 2e-5
    betas: tuple[float, float] = (0.9, 0.999)
    train_steps: int = -1
    lr_scheduler: Literal["linear", "cosine"] = "linear"
    pack_samples: bool = False
    train_num_samples: list[float] = field(default_factory=list)
    limit: int | None = None
    prompts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr: was {self.lr}, wanted more than 0\nbetas: so are these")


def settings(*words: str, **options) -> Lesson:
    return load("sft", Lesson, ["--ckpt_paths", "m", *words], **options)


def refusal(*words: str, **options) -> str:
    with pytest.raises(UserError) as caught:
        load("sft", Lesson, list(words), **options)
    return str(caught.value)


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_defaults_hold_until_the_file_and_the_file_until_a_flag(tmp_path):
    file = write(tmp_path / "a.yaml", "lr: 1e-3\ntrain-steps: 7\nlimit: 4\n")
    assert settings() == Lesson(ckpt_paths=[Path("m")])
    expected = Lesson(ckpt_paths=[Path("m")], lr=1e-3, train_steps=8, limit=4)
    assert settings("--config", file, "--train_steps", "8") == expected
    assert settings("--train_steps", "8", f"--config={file}") == expected


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--betas", "0.9", ".95"], "betas", (0.9, 0.95)),
        (["--lr=1e-5"], "lr", 1e-5),
        (["--lr", "inf"], "lr", math.inf),
        (["--train-steps", "-1"], "train_steps", -1),
        (["--train_num_samples", "-1", "0.5", "200"], "train_num_samples", [-1.0, 0.5, 200.0]),
        (["--train_num_samples"], "train_num_samples", []),
        (["--pack_samples"], "pack_samples", True),
        (["--pack-samples", "false"], "pack_samples", False),
        (["--pack_samples=yes"], "pack_samples", True),
        (["--no-pack-samples"], "pack_samples", False),
        (["--limit", "null"], "limit", None),
        (["--limit", "3"], "limit", 3),
        (["--template_config", "null"], "template_config", None),
        (["--template_config", ""], "template_config", ""),
        (["--template_config=--odd"], "template_config", "--odd"),
        (["--prompts", "- a list item", "-- and a dash", "-", "ünï", "null"], "prompts", None),
        (["--lr_scheduler", "cosine"], "lr_scheduler", "cosine"),
    ],
)
def test_a_flag_is_read_as_people_write_it(words, key, value):
    expected = words[1:] if key == "prompts" else value
    assert getattr(settings(*words), key) == expected


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("lr: 1e-5", "lr", 1e-5),
        ("lr: .inf", "lr", math.inf),
        ("lr: 1", "lr", 1.0),
        ("betas: [0.9, .95]", "betas", (0.9, 0.95)),
        ("betas:\n- 0.9\n- .95", "betas", (0.9, 0.95)),
        ("train_num_samples: 5", "train_num_samples", [5.0]),
        ("template_config: no", "template_config", "no"),
        ("template_config: 1:30", "template_config", "1:30"),
        ("template_config: 2020-01-01", "template_config", "2020-01-01"),
        ("template_config:", "template_config", None),
        ("template_config: 'null'", "template_config", "null"),
        ("template_config: ''", "template_config", ""),
        ("pack_samples: yes", "pack_samples", True),
        ("limit: ~", "limit", None),
        ("prompts: &a [x, y]", "prompts", ["x", "y"]),
        ("", "lr", 2e-5),
        ("# nothing", "lr", 2e-5),
    ],
)
def test_a_file_is_read_as_people_write_it(tmp_path, line, key, value):
    assert getattr(settings("--config", write(tmp_path / "a.yaml", line)), key) == value


def test_a_tilde_is_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert load("sft", Lesson, ["--ckpt_paths", "~/m", "n"]).ckpt_paths == [Path("/home/ada/m"), Path("n")]


def test_a_setting_that_may_be_a_number_or_text_is_a_number_where_it_can_be():
    @dataclass(frozen=True, kw_only=True)
    class Mixed:
        amount: str | int = 0

    values = [load("sft", Mixed, ["--amount", word]).amount for word in ("5", "all", "5 or so")]
    assert values == [5, "all", "5 or so"]


def test_words_without_a_flag_belong_to_the_positional_field():
    for words in (["m", "--lr", "1"], ["--lr", "1", "m"], ["--pack_samples", "m"], ["--lr=1", "--", "m"]):
        config = load("chat", Lesson, words, positional="ckpt_paths")
        assert config.ckpt_paths == [Path("m")]
    assert refusal("m", "--ckpt_paths", "n", positional="ckpt_paths") == "sft: --ckpt_paths: given twice"


def test_every_mistake_of_both_sources_is_told_at_once(tmp_path):
    file = write(
        tmp_path / "a.yaml",
        "lrr: 4\n"
        "lr: fast\n"
        "dpo_beta: 0.1\n"
        "lr: 3\n"
        "train_steps: true\n"
        "betas: [0.9, [1, 2]]\n"
        "limit: {a: 1}\n"
        "pack_samples: 2.5\n"
        "prompts: !!python/object/apply:os.system [date]\n"
        "template_config: !secret x\n"
        "? [a, b]\n: 1\n",
    )
    words = ["--config", file, "--lr", "x", "--lr", "3", "--betas", "0.9", "--pack-sample"]
    words += [
        "--lr_scheduler",
        "lin",
        "--simpo_gamma",
        "1",
        "--train_steps",
        "--zzz",
        "-x",
        "--limit",
        "1",
        "2",
    ]
    known = {"dpo": {"dpo_beta", "lr"}, "simpo": {"simpo_gamma"}, "other": {"simpo_gamma"}, "sft": set()}
    assert refusal(*words, known=known).splitlines() == [
        "sft: 22 settings are wrong",
        "  -x: flags begin with two hyphens, a value like this is written --flag=-x",
        "  2: this word belongs to no flag",
        f"  {file}:4: lr: given twice, first in line 2",
        f"  {file}:6: betas: holds a nested list; a setting is one value or a flat list of values",
        f"  {file}:7: limit: holds a nested mapping; a setting is one value or a flat list of values",
        f"  {file}:9: prompts: the tag python/object/apply:os.system is not accepted",
        f"  {file}:10: template_config: the tag !secret is not accepted",
        f"  {file}:11: a key is a plain word, this is not",
        "  --lr: given twice",
        "  --train_steps: takes a value",
        f"  {file}:1: lrr: no such setting, did you mean lr?",
        f'  {file}:2: lr: was "fast", accepted: a number',
        f"  {file}:3: dpo_beta: sft does not use dpo_beta (dpo does)",
        f'  {file}:5: train_steps: was "true", accepted: an integer',
        f'  {file}:8: pack_samples: was "2.5", accepted: true or false',
        '  --lr: was "x", accepted: a number',
        '  --betas: was "0.9", accepted: 2 values: a number, a number',
        "  --pack_sample: no such setting, did you mean --pack_samples?",
        '  --lr_scheduler: was "lin", accepted: linear or cosine',
        "  --simpo_gamma: sft does not use simpo_gamma (simpo and other do)",
        "  --zzz: no such setting, `tutelage sft --help` lists them all",
        "  --ckpt_paths: missing, accepted: a list, each a path",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr", "nan"], 'sft: --lr: was "nan", accepted: a number'),
        (["--limit", "1.5"], 'sft: --limit: was "1.5", accepted: an integer or null'),
        (["--train_steps", "null"], 'sft: --train_steps: was "null", accepted: an integer'),
        (["--ckpt_paths", ""], 'sft: --ckpt_paths: was "", accepted: a list, each a path'),
        (
            ["--train_num_samples", "1", "a"],
            'sft: --train_num_samples: was "1" "a", accepted: a list, each a number',
        ),
        (["--betas"], "sft: --betas: was nothing, accepted: 2 values: a number, a number"),
        (["--lr", "0"], "sft: lr: was 0.0, wanted more than 0\nbetas: so are these"),
        (["--no_pack_samples=1"], "sft: --no_pack_samples: no such setting, did you mean --pack_samples?"),
        (["--config"], "sft: --config: takes a value"),
        (["--config", "none.yaml"], "sft: --config: cannot read none.yaml: no such file or directory"),
        (["--config", "."], "sft: --config: cannot read .: is a directory"),
    ],
)
def test_a_mistake_is_named(words, message):
    more = [] if "--ckpt_paths" in words else ["--ckpt_paths", "m"]
    assert refusal(*words, *more) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: [1", "FILE:1: not YAML: expected ',' or ']', but got '<stream end>'"),
        ("- lr", "FILE:1: a config is `key: value` lines, this is not"),
        ("lr", "FILE:1: a config is `key: value` lines, this is not"),
        ("[" * 100_000, "FILE: nested too deep; a config is one level of `key: value`"),
        ("\x00", "FILE: not YAML: unacceptable character #x0000: special characters are not allowed"),
        ("a: &a [x]\nprompts: &b [*a, *a]\nlimit: 1", "FILE:2: prompts: holds a nested list; a setting is"),
        ("prompts: &b [*b]", "FILE:1: prompts: holds a nested list; a setting is one value or a flat list"),
        ("lr: null", "FILE:1: lr: was null, accepted: a number"),
        ("lr: 1\n---\nlr: 2", "FILE:2: not YAML: but found another document"),
    ],
)
def test_a_file_that_cannot_be_a_config_is_refused(tmp_path, text, message):
    file = write(tmp_path / "a.yaml", text)
    assert message.replace("FILE", file) in refusal("--config", file, "--ckpt_paths", "m")


def test_text_that_is_not_utf_8_is_refused(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"template_config: \xff")
    message = refusal("--config", str(path), "--ckpt_paths", "m")
    assert message == f"sft: {path}: not UTF-8 text (invalid start byte at byte 17)"


texts = st.text(st.characters(codec="utf-8"))


@given(
    template=st.none() | texts,
    lr=st.floats(min_value=1e-300),
    betas=st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False)),
    prompts=st.lists(texts),
    limit=st.none() | st.integers(),
    pack=st.booleans(),
    path=texts.filter(lambda text: text and "\x00" not in text and not text.startswith("~")),
)
def test_a_dumped_config_loads_as_itself(tmp_path_factory, template, lr, betas, prompts, limit, pack, path):
    config = Lesson(
        ckpt_paths=[Path(path)],
        template_config=template,
        lr=lr,
        betas=betas,
        prompts=prompts,
        limit=limit,
        pack_samples=pack,
        train_num_samples=[1e-7, 2.0],
    )
    file = write(tmp_path_factory.getbasetemp() / "dumped.yaml", dump(config))
    assert load("sft", Lesson, ["--config", file]) == config
