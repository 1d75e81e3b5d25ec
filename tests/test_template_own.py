"""A model's own Jinja as its template: transformers' ids, spans that are found, refusals that say why."""

import pytest
from conversations import CHAT, TOOLS, conversations, conversations_with_tools, is_prompt, say
from official import OFFICIAL, mistral_template, oracle, tokenizer, trl_template
from test_template_official import jinja, options_of
from test_template_recognised import with_template

from tutelage.errors import UserError
from tutelage.text.jinja_template import JinjaTemplate, template_of
from tutelage.text.template import Template

ALL_OF_IT = "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token + '\n' }}{% endfor %}"


def own(source: str, jinja: str | None) -> JinjaTemplate:
    return JinjaTemplate(with_template(source, jinja))


def learned(template: JinjaTemplate, messages) -> list[str]:
    rendered = template.render(messages)
    return [rendered.text[start:end] for start, end in rendered.learned]


def test_a_models_own_template_writes_the_ids_that_transformers_does():
    source = tokenizer("smollm2")
    template, built_in = JinjaTemplate(source), Template.load("smollm2")
    chosen = conversations(40)
    assert template.faults(chosen, answered=False) == [None] * 40
    for messages in chosen:
        reply = is_prompt(messages)
        ours, other = (each.encode(messages, source, reply=reply) for each in (template, built_in))
        text = oracle("smollm2").apply_chat_template(messages, tokenize=False, add_generation_prompt=reply)
        assert template.render(messages, reply=reply).text == text
        assert ours.tokens == other.tokens
    assert template.stop == ["<|im_end|>"] and template.stop_ids(source) == {2}
    assert template.control == ["<|im_start|>", "<|im_end|>"]


def test_spans_are_found_by_prefixes():
    template = own("smollm2", tokenizer("smollm2").chat_template)
    messages = [*CHAT, *say("user: More", "assistant:   Yes <|im_end|> \n")]
    assert learned(template, messages) == ["Hello!<|im_end|>\n", "  Yes <|im_end|> \n<|im_end|>\n"]
    roles = [(text[start:end], role) for text in [template.render(messages).text]
             for start, end, role in template.render(messages).roles if role != "other"]  # fmt: skip
    assert roles[:3] == [("Be brief.", "system"), ("Hi there", "user"), ("Hello!<|im_end|>\n", "assistant")]
    assert sum(piece.control for piece in template.render(messages).pieces) == 10


def test_spans_are_found_by_generation_marks():
    template = own("qwen", trl_template("qwen2_5_training"))
    assert learned(template, CHAT) == ["\nHello!<|im_end|>\n"]
    built_in = Template.load("qwen2.5_instruct")
    for messages in [*conversations(30, tools=True), *conversations_with_tools(20)]:
        reply = is_prompt(messages)
        assert (
            template.render(messages, reply=reply).learned == built_in.render(messages, reply=reply).learned
        )


@pytest.mark.parametrize(
    "case", ["gemma", "gemma3", "llama3.1", "mistral_v7", "mistral_tekken", "zephyr", "olmo2", "llama2"]
)
def test_texts_of_other_official_templates_are_theirs(case):
    """With a tokenizer that has other control tokens: what counts is the text, and that replies are found."""
    official = OFFICIAL[case]
    template, options = own("mistral_v1", official.jinja()), options_of(official)
    options |= {"bos_token": "<s>", "eos_token": "</s>"}
    for messages in conversations(15, system=case not in ("gemma", "mistral_tekken")):
        rendered = template.render(messages, reply=is_prompt(messages))
        assert rendered.text == jinja(official.jinja(), messages, options)[0]
        assert len(rendered.learned) == (
            0 if is_prompt(messages) else sum(m["role"] == "assistant" for m in messages)
        )


REFUSED = {
    "reasoning that is lost": (
        lambda: trl_template("qwen3"), say("user: a", "assistant: b", "user: c", "assistant: d"),
        "message 2: the model's own chat template writes it otherwise once more messages follow; ",
    ),
    "an end of text": (
        lambda: trl_template("phi3"), say("user: a", "assistant: b"),
        "message 2: the model's own chat template ends a conversation otherwise than ",
    ),
    "always asking": (
        lambda: tokenizer("llama3").chat_template, say("user: a", "assistant: b"),
        "message 2: the model's own chat template ends a conversation otherwise than ",
    ),
    "forgetting the system text": (
        mistral_template, say("system: s", "user: a", "assistant: b"),
        "message 3: the model's own chat template writes what stands before it otherwise once it is there; ",
    ),
    "leaving out what is said": (
        lambda: ALL_OF_IT.replace("m.content +", "(m.content if m.role == 'user' else '') +"),
        say("user: a", "assistant: b"),
        "the model's own chat template writes nothing of what message 2, an answer, has to say",
    ),
    "leaving out what it marks": (
        lambda: ALL_OF_IT.replace("{{ m", "{% generation %}{% endgeneration %}{{ m"),
        say("user: a", "assistant: b"),
        "the model's own chat template writes nothing of what the replies, where it marks them, say",
    ),
    "raising": (
        lambda: trl_template("gemma"), say("system: s", "user: a", "assistant: b"),
        "the model's own chat template refuses it: System role not supported",
    ),
    "counting letters": (
        lambda: ALL_OF_IT.replace("m.content +", "m.content | length ~"), say("user: <s> a", "assistant: b"),
        "the model's own chat template looks into what messages say, ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_ambiguous_is_refused_with_the_message_and_what_to_do(case):
    jinja, messages, reason = REFUSED[case]
    template = own("mistral_v1", jinja())
    fault = template.fault(messages)
    assert fault is not None and fault.startswith(reason)
    with pytest.raises(UserError) as refused:
        template.encode(messages, tokenizer("mistral_v1"))
    assert str(refused.value) == f"this conversation cannot be rendered: {fault}"


IN_PARTS = """{%- for m in messages -%}
{{ m.role + ':' }}{% for p in m.content %}{% if p.type == 'text' %}{{ ' ' + p.text }}{% endif %}{% endfor %}{{ eos_token }}
{%- endfor -%}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"""  # noqa: E501


def test_a_template_that_wants_lists_of_parts_gets_them():
    """As those of models that see images are written; a content of parts or of text is the same to it."""
    template = own("mistral_v1", IN_PARTS)
    messages = say("user: a</s>", "assistant: b")
    in_parts = [
        {**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages
    ]
    for each in (messages, in_parts):
        assert template.fault(each) is None
        assert template.render(each).text == "user: a</s></s>assistant: b</s>"
        assert learned(template, each) == [" b</s>"]
        assert [piece.text for piece in template.render(each).pieces if piece.control] == ["</s>"] * 2
    assert template.render(messages[:1], reply=True).text == "user: a</s></s>assistant:"


def test_marks_in_a_comment_are_none():
    commented = "{# {% generation %} is not used #}" + ALL_OF_IT
    assert learned(own("mistral_v1", commented), say("user: a", "assistant: b")) == learned(
        own("mistral_v1", ALL_OF_IT), say("user: a", "assistant: b")
    )


def test_the_first_word_behind_a_header_that_ends_in_a_space_is_learned():
    colon = "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    colon += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    source = tokenizer("mistral_v1")
    encoded = own("mistral_v1", colon).encode(say("user: Is it?", "assistant: Yes"), source)
    pairs = zip(encoded.tokens, encoded.weights, strict=True)
    assert [source.token_text(token) for token, weight in pairs if weight] == ["▁Yes", "</s>"]


def test_the_last_turns_reasoning_is_learned_where_nothing_before_is_lost():
    template = own("qwen", trl_template("qwen3"))
    assert learned(template, say("user: a", "assistant: <think>\nhm\n</think>\n\nb")) == [
        "<think>\nhm\n</think>\n\nb<|im_end|>\n"
    ]


@pytest.mark.parametrize(
    "jinja",
    [ALL_OF_IT, ALL_OF_IT.replace("m.content", "('A' if m.content.startswith('a') else '') + m.content")],
)
def test_what_looks_like_a_control_token_stays_text(jinja):
    source = tokenizer("mistral_v1")
    template = own("mistral_v1", jinja)
    messages = say("user: a</s>b<s>", "assistant: </s>x</s</s>>")
    tokens = template.encode(messages, source).tokens
    assert sum(source.is_control(token) for token in tokens) == 2
    assert [piece.text for piece in template.render(messages).pieces if piece.control] == ["</s>", "</s>"]


def test_what_nobody_may_write_is_replaced():
    """The marks that content is found by are noncharacters; where text has them, it has U+FFFD instead."""
    messages = say("user: \ufdd2a\ufdd6", "assistant: \ufddf</s>\ufdd3b")
    text = own("mistral_v1", ALL_OF_IT).render(messages).text
    assert text == "user: \ufffda\ufffd</s>\nassistant: \ufffd</s>\ufffdb</s>\n"


def test_answers_that_are_compared_are_learned_alone():
    template = own("smollm2", tokenizer("smollm2").chat_template)
    messages = say("user: a", "assistant: b", "user: c", "assistant: d")
    encoded = template.encode_batch([messages] * 2, tokenizer("smollm2"), learned_last=[1, None])
    assert [sum(each.weights) for each in encoded] == [3.0, 6.0]


def test_tools_are_given_to_the_template():
    template = own("qwen", trl_template("qwen2_5"))
    messages = [{**CHAT[0], "tools": TOOLS}, *CHAT[1:]]
    assert '"name": "weather"' in template.render(messages).text
    assert template.fault(conversations_with_tools(1, seed=3)[0], answered=False) is None


def test_templates_are_chosen_by_name():
    source = tokenizer("smollm2")
    assert template_of(source, "model").name == "model"
    assert template_of(source, None).name == template_of(source, "smollm2").name == "smollm2"
    with pytest.raises(UserError, match="the model has no chat template of its own"):
        template_of(with_template("smollm2", None), "model")


def test_a_template_goes_to_another_process():
    import pickle

    template = own("smollm2", tokenizer("smollm2").chat_template)
    assert pickle.loads(pickle.dumps(template)).render(CHAT).text == template.render(CHAT).text
