"""Ids and learned tokens are those of the official Jinja templates, rendered and masked by transformers."""

import pytest
from conversations import conversations, is_prompt
from official import chatml_template, mistral_template, oracle, tokenizer, trl_template

from tutelage.text.template import Template
from tutelage.text.template_file import BUILT_INS

Messages = list[dict[str, str]]


# template, tokenizer, official Jinja, whether it knows tools
CASES = {
    "chatml on Qwen's": (
        "chatml",
        "qwen",
        chatml_template,
        True,
    ),
    "chatml on SmolLM2's": (
        "chatml",
        "smollm2",
        chatml_template,
        True,
    ),
    "smollm2": ("smollm2", "smollm2", lambda: tokenizer("smollm2").chat_template, True),
    "qwen2.5": ("qwen2.5_instruct", "qwen", lambda: trl_template("qwen2_5"), True),
    "llama3": ("llama3_instruct", "llama3", lambda: trl_template("llama3"), True),
    "llama3 on Llama 3.1's": ("llama3_instruct", "llama3_1", lambda: trl_template("llama3"), True),
    "llama3.1": ("llama3.1_instruct", "llama3_1", lambda: trl_template("llama3_1"), False),
    "mistral": ("mistral_instruct", "mistral_v3", mistral_template, False),
    "mistral, first published": ("mistral_instruct", "mistral_v3_legacy", mistral_template, False),
}


def official(case: str, messages: Messages) -> tuple[str, list[int]]:
    """The text and the ids that transformers makes with the official template."""
    _, name, jinja, _ = CASES[case]
    options = {"chat_template": jinja(), "add_generation_prompt": is_prompt(messages)}
    text = oracle(name).apply_chat_template(messages, tokenize=False, **options)
    return text, oracle(name).apply_chat_template(messages, return_dict=False, **options)


def forgets_the_system_text(case: str, messages: Messages) -> bool:
    """Mistral's Jinja drops the system text unless the conversation ends with the user."""
    return "mistral" in case and messages[0]["role"] == "system" and not is_prompt(messages)


@pytest.mark.parametrize("case", CASES)
def test_text_and_ids_are_those_of_the_official_template(case):
    template, name = Template.load(CASES[case][0]), CASES[case][1]
    compared = 0
    for messages in conversations(300, tools=CASES[case][3]):
        if forgets_the_system_text(case, messages):
            continue
        text, tokens = official(case, messages)
        assert template.render(messages, reply=is_prompt(messages)).text == text
        assert template.encode(messages, tokenizer(name), reply=is_prompt(messages)).tokens == tokens
        compared += 1
    assert compared > 200


def test_mistral_keeps_a_system_text_that_the_official_template_forgets():
    """Where the reply is there, the prompt before it is still the official one, and the reply follows it."""
    template, kept = Template.load("mistral_instruct"), 0
    for messages in conversations(300):
        if forgets_the_system_text("mistral", messages):
            prompt, _ = official("mistral", messages[:-1])
            reply = f" {messages[-1]['content'].strip()}</s>"
            assert template.render(messages).text == prompt + reply
            kept += 1
    assert kept > 50


TWINS = {
    "qwen2.5": ("qwen2.5_instruct", "qwen", "qwen2_5_training"),
    "llama3": ("llama3_instruct", "llama3", "llama3_training"),
    "llama3 on Llama 3.1's": ("llama3_instruct", "llama3_1", "llama3_training"),
}


@pytest.mark.parametrize("case", TWINS)
def test_learned_tokens_are_those_that_the_training_twin_marks(case):
    name, tokens_of, twin = TWINS[case]
    template, learned = Template.load(name), 0
    for messages in conversations(300, tools=True, seed=1):
        marked = oracle(tokens_of).apply_chat_template(
            messages,
            chat_template=trl_template(twin),
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        encoded = template.encode(messages, tokenizer(tokens_of))
        assert encoded.tokens == marked["input_ids"]
        assert encoded.weights == marked["assistant_masks"]
        learned += sum(encoded.weights)
    assert learned > 10_000


@pytest.mark.parametrize("name", sorted(path.stem for path in BUILT_INS.glob("*.yaml")))
def test_the_jinja_that_we_export_writes_what_the_yaml_writes(name):
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    template = Template.load(name)
    for messages in conversations(300, tools="tool" in template.file.turns, seed=2):
        if template.fault(messages, answered=False):
            with pytest.raises(TemplateError):
                render_jinja_template([messages], chat_template=template.jinja)
            continue
        (text,), _ = render_jinja_template(
            [messages], chat_template=template.jinja, add_generation_prompt=is_prompt(messages)
        )
        assert text == template.render(messages, reply=is_prompt(messages)).text
