"""Ids and learned tokens are those of the official Jinja templates, rendered and encoded by transformers."""

from functools import cache
from typing import Any

import pytest
from conversations import conversations, is_prompt
from official import OFFICIAL, Official, mistral_template, oracle, tokenizer
from parity_table import record
from test_template_official import fitting, jinja, marked_spans, named, options_of

from tutelage.text.template import Template

COUNT = 300  # conversations of each kind that a template knows
IN_A_MOMENT = ("smollm2", "llama3", "mistral_instruct, first published")


loaded = cache(Template.load)


def compared(official: Official, count: int, seed: int) -> list[list[dict]]:
    """So many conversations at least that both can write, of every kind that they know."""
    chosen = list(fitting(official, count, seed))
    return chosen if len(chosen) >= count else list(fitting(official, 2 * count, seed))


def options_for(official: Official) -> dict[str, Any]:
    """The variables that transformers gives the template: its tokenizer's own BOS and EOS."""
    own = oracle(official.source)
    named = {"bos_token": own.bos_token or "", "eos_token": own.eos_token or ""}
    return {**named, **dict(official.options)}


def token_mask(encoding: Any, spans: list[list[int]], text: str) -> list[float]:
    """1 for each token that begins in a span of characters, itself or after white space."""
    mask = []
    for token in range(len(encoding["input_ids"])):
        start, end = encoding.token_to_chars(token)
        words = text[start:end].lstrip()
        begins = {start, end - len(words)} if words else {start}
        mask.append(float(any(first <= begin < last for first, last in spans for begin in begins)))
    return mask


def differing(official: Official, messages: list[dict]) -> tuple[bool, bool]:
    """Whether ids and weights of a conversation differ from the official template's."""
    options = options_for(official)
    text, _ = jinja(official.jinja(), messages, options)
    encoding = oracle(official.source)(text, add_special_tokens=False)
    ours = Template.load(official.ours).encode(
        messages, tokenizer(official.source), reply=is_prompt(messages)
    )
    mask = token_mask(encoding, marked_spans(official, messages, options), text)
    return ours.tokens != encoding["input_ids"], ours.weights != mask


@pytest.mark.parametrize("case", IN_A_MOMENT)
def test_some_ids_and_weights_are_those_of_the_official_template(case):
    for messages in compared(OFFICIAL[case], 25, seed=1):
        assert differing(OFFICIAL[case], messages) == (False, False)


@pytest.mark.slow
@pytest.mark.parametrize("case", OFFICIAL)
def test_ids_and_weights_are_those_of_the_official_template(case):
    official = OFFICIAL[case]
    chosen = compared(official, COUNT, seed=0)
    assert len(chosen) >= COUNT
    found = [differing(official, messages) for messages in chosen]
    record("templates", official.ours, "ids", sum(ids for ids, _ in found), of=len(found))
    record("templates", official.ours, "spans", sum(spans for _, spans in found), of=len(found))
    assert not any(ids or spans for ids, spans in found)


def exported(official: Official, folder: Any) -> Any:
    """The tokenizer that transformers loads of what a run writes into OUT/model."""
    from transformers import AutoTokenizer

    template = Template.load(official.ours)
    tokenizer(official.source).save(folder, chat_template=template.jinja)
    return AutoTokenizer.from_pretrained(folder)


def exports_differ(official: Official, saved: Any, messages: list[dict]) -> bool:
    """Whether transformers makes other ids of what is exported, or another mask of the assistant's tokens.

    It counts a token in that begins before a reply and ends in it, as a line break of the header does that is
    one token with the reply's first; ours is what it is where it begins."""
    told = [{key: value for key, value in message.items() if key != "tools"} for message in messages]
    made = saved.apply_chat_template(
        told, tools=messages[0].get("tools"), add_generation_prompt=is_prompt(messages),
        return_dict=True, return_assistant_tokens_mask=True,
    )  # fmt: skip
    template = loaded(official.ours)
    ours = template.encode(messages, tokenizer(official.source), reply=is_prompt(messages))
    weights = list(ours.weights)
    options = {"bos_token": saved.bos_token or "", "eos_token": saved.eos_token or ""}
    rendered = named(template.render(messages, reply=is_prompt(messages)), options)
    encoding = saved(rendered.text, add_special_tokens=False)
    for start, _ in rendered.learned:
        token = encoding.char_to_token(start)
        if token is not None and encoding.token_to_chars(token).start < start:
            weights[token] = 1.0
    return (ours.tokens, weights) != (made["input_ids"], made["assistant_masks"])


@pytest.mark.parametrize("case", IN_A_MOMENT[:2])
def test_transformers_renders_a_saved_template_as_we_do(case, tmp_path):
    official, saved = OFFICIAL[case], exported(OFFICIAL[case], tmp_path)
    for messages in compared(official, 20, seed=2):
        assert not exports_differ(official, saved, messages)


@pytest.mark.slow
@pytest.mark.parametrize("case", OFFICIAL)
def test_transformers_renders_every_saved_template_as_we_do(case, tmp_path):
    official, saved = OFFICIAL[case], exported(OFFICIAL[case], tmp_path)
    chosen = compared(official, COUNT, seed=2)
    found = [exports_differ(official, saved, messages) for messages in chosen]
    record("templates", official.ours, "export", sum(found), of=len(found))
    assert not any(found)


def test_mistral_keeps_a_system_text_that_the_official_template_forgets():
    """Where the reply is there, the prompt before it is still the official one, and the reply follows it."""
    template, kept = Template.load("mistral_instruct"), 0
    options = options_of(OFFICIAL["mistral_instruct"])
    for messages in conversations(100):
        if messages[0]["role"] == "system" and not is_prompt(messages):
            prompt, _ = jinja(mistral_template(), messages[:-1], options)
            reply = f" {messages[-1]['content'].strip()}</s>"
            assert template.render(messages).text == prompt + reply
            kept += 1
    assert kept > 20
