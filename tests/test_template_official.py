"""Every built-in writes what the official template writes, learns what its twin marks, and exports both.

Here texts are compared, a few conversations each; `test_template_ids.py` compares tokens of many."""

from collections.abc import Iterator

import pytest
from conversations import conversations, conversations_with_thoughts, conversations_with_tools, is_prompt
from official import BEGIN, END, OFFICIAL, Official, trl_template
from parity_table import read_page

from tutelage.text.pieces import Rendered
from tutelage.text.template import Template
from tutelage.text.template_file import built_in_names

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
BOS = {"llama3_1": "<|begin_of_text|>", "llama3": "<|begin_of_text|>", "gemma": "<bos>", "gemma3": "<bos>"}
Message = dict


def options_of(official: Official) -> dict:
    """The variables that a template is rendered with, beside the messages."""
    named = NAMES | ({"bos_token": BOS[official.source]} if official.source in BOS else {})
    named |= {"eos_token": "<|endoftext|>"} if official.source == "phi3" else {}
    return {**named, **dict(official.options)}


def fitting(official: Official, count: int, seed: int = 0) -> Iterator[list[Message]]:
    """Conversations that both can write, of every kind that they know."""
    template = Template.load(official.ours)
    turns = template.file.turns
    system = "system" in turns or template.file.into is not None
    plain = conversations(
        count, system=system, tools="tool" in turns and official.results and not official.tools, seed=seed
    )
    single = turns["assistant"].calls is not None and turns["assistant"].calls.single
    calling = (
        conversations_with_tools(count // 2, calls=1 if single else 2, seed=seed) if official.tools else []
    )
    thinking = turns["assistant"].thinking is not None
    for messages in [*plain, *calling, *(conversations_with_thoughts(count, seed=seed) if thinking else [])]:
        if template.fault(messages, answered=False) is not None:
            continue
        into = template.file.into
        told = [message["content"] for message in messages if message["role"] == "user"]
        if into is not None and told.count(told[-1]) > 1:
            continue  # Mistral's Jinja takes every question that reads like the last one for it
        if (
            messages[0]["role"] == "system"
            and into is not None
            and into.user == "last_user"
            and messages[-1]["role"] != "user"
        ):
            continue  # Mistral's Jinja forgets the system text unless the user's is the very last
        if "{{ eos_token }}" in official.jinja() and messages[-1]["role"] == "tool":
            continue
        yield messages


def jinja(source: str, messages: list[Message], options: dict, **more) -> tuple[str, list]:
    """What transformers makes of a template, and the spans that `{% generation %}` marks."""
    from transformers.utils.chat_template_utils import render_jinja_template

    tools = messages[0].get("tools")
    told = [{key: value for key, value in message.items() if key != "tools"} for message in messages]
    texts, spans = render_jinja_template(
        [told], tools=tools, chat_template=source, return_assistant_tokens_mask="generation" in source,
        add_generation_prompt=is_prompt(messages), **options, **more,
    )  # fmt: skip
    return texts[0], [list(span) for span in spans[0]] if spans else []


def marked_spans(official: Official, messages: list[Message], options: dict) -> list[list[int]]:
    """What is learned of the official text, by its twin; neighbours are joined."""
    if official.twin:
        return joined(jinja(trl_template(official.twin), messages, options)[1])
    text, _ = jinja(official.marked(), messages, options)
    spans, at = [], 0
    for part in text.split(BEGIN)[1:]:
        before = text.index(BEGIN, at)
        start = before - 2 * len(spans)
        learned = part.split(END)[0]
        spans.append([start, start + len(learned)])
        at = before + 1
    return joined(spans)


def joined(spans: list[list[int]]) -> list[list[int]]:
    made: list[list[int]] = []
    for start, end in spans:
        if start == end:
            continue
        if made and made[-1][1] == start:
            made[-1][1] = end
        else:
            made.append([start, end])
    return made


def named(rendered: Rendered, options: dict) -> Rendered:
    """With the tokenizer's own BOS and EOS."""
    own = {"$bos": options["bos_token"], "$eos": options["eos_token"]}
    return Rendered([piece._replace(text=own.get(piece.text, piece.text)) for piece in rendered.pieces])


def test_every_built_in_is_compared_with_an_official_template():
    assert {official.ours for official in OFFICIAL.values()} == set(built_in_names())


@pytest.mark.parametrize("case", OFFICIAL)
def test_text_and_learned_spans_are_those_of_the_official_template(case):
    official = OFFICIAL[case]
    template, options, compared = Template.load(official.ours), options_of(official), 0
    for messages in fitting(official, 50):
        rendered = named(template.render(messages, reply=is_prompt(messages)), options)
        assert rendered.text == jinja(official.jinja(), messages, options)[0]
        assert [list(span) for span in rendered.learned] == marked_spans(official, messages, options)
        compared += 1
    assert compared >= 30


@pytest.mark.parametrize("name", built_in_names())
def test_the_exported_jinja_writes_and_marks_what_the_yaml_does(name):
    official = next(each for each in OFFICIAL.values() if each.ours == name)
    template, options = Template.load(name), options_of(official)
    source = template.jinja
    for messages in fitting(official, 40, seed=3):
        rendered = named(template.render(messages, reply=is_prompt(messages)), options)
        text, spans = jinja(source, messages, options)
        assert text == rendered.text
        assert joined(spans) == [list(span) for span in rendered.learned]


def test_the_page_has_a_row_for_every_built_in_and_nothing_differs():
    rows = read_page()["templates"]
    assert set(rows) == set(built_in_names())
    for name, row in rows.items():
        for column, cell in row.items():
            differing, _, compared = cell.partition(" of ")
            assert differing == "0" and int(compared.replace(",", "")) >= 300, f"{name}, {column}: {cell}"
