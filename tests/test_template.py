"""Templates: what is learned, whose words are whose, and that a message cannot pose as control."""

import pytest
from conversations import CHAT, conversations, say
from official import SOURCE_OF, tokenizer

from tutelage.errors import UserError
from tutelage.text.pieces import Piece, Rendered
from tutelage.text.roles import ROLES
from tutelage.text.template import Template
from tutelage.text.template_file import built_in_names

NAME_IT = (
    "name the template the model was trained with by --template_config: "
    f"one of {', '.join(built_in_names())}, or the path of a YAML file"
)


def parts(template: str, source: str, messages) -> list[tuple[str, str, float]]:
    """The tokens as (text, role, weight)."""
    encoded = Template.load(template).encode(messages, tokenizer(source))
    texts = [tokenizer(source).token_text(token) for token in encoded.tokens]
    return list(zip(texts, [ROLES[role] for role in encoded.roles], encoded.weights, strict=True))


def test_roles_and_weights_of_llama3_token_by_token():
    other = [("<|start_header_id|>", "other", 0.0), ("<|end_header_id|>", "other", 0.0), ("ĊĊ", "other", 0.0)]

    def header(role: str) -> list[tuple[str, str, float]]:
        return [other[0], (role, "other", 0.0), *other[1:]]

    assert parts("llama3_instruct", "llama3", CHAT) == [
        ("<|begin_of_text|>", "other", 0.0),
        *header("system"),
        *[(text, "system", 0.0) for text in ("Be", "Ġbrief", ".", "<|eot_id|>")],
        *header("user"),
        *[(text, "user", 0.0) for text in ("Hi", "Ġthere", "<|eot_id|>")],
        *header("assistant"),
        *[(text, "assistant", 1.0) for text in ("Hello", "!", "<|eot_id|>")],
    ]


def test_roles_and_weights_of_mistral_token_by_token():
    """The space before a word is part of its token, so the word's role reaches back to it."""
    assert parts("mistral_instruct", "mistral_v3", CHAT) == [
        ("<s>", "other", 0.0),
        ("[INST]", "other", 0.0),
        *[(text, "system", 0.0) for text in ("▁Be", "▁brief", ".", "<0x0A>", "<0x0A>")],
        *[(text, "user", 0.0) for text in ("Hi", "▁there", "[/INST]")],
        *[(text, "assistant", 1.0) for text in ("▁Hello", "!", "</s>")],
    ]


def test_roles_and_weights_of_chatml_token_by_token():
    """The default system text is the system's; the line break after a turn is nobody's."""
    found = parts("smollm2", "smollm2", say("user: Hi", "assistant: "))
    assert found[:3] == [("<|im_start|>", "other", 0.0), ("system", "other", 0.0), ("Ċ", "other", 0.0)]
    assert {role for _, role, _ in found[3:20]} == {"system"}
    assert found[20:] == [
        ("Ċ", "other", 0.0),
        *[("<|im_start|>", "other", 0.0), ("user", "other", 0.0), ("Ċ", "other", 0.0)],
        *[("Hi", "user", 0.0), ("<|im_end|>", "user", 0.0), ("Ċ", "other", 0.0)],
        *[
            ("<|im_start|>", "other", 0.0),
            ("ass", "other", 0.0),
            ("istant", "other", 0.0),
            ("Ċ", "other", 0.0),
        ],
        *[("<|im_end|>", "assistant", 1.0), ("Ċ", "other", 0.0)],
    ]


CHATML = ("Be brief.<|im_end|>", "Hi there<|im_end|>", "Hello!<|im_end|>")
LLAMA3 = tuple(text.replace("im_end", "eot_id") for text in CHATML)
PHI3 = tuple(text.replace("im_end", "end") + "\n" for text in CHATML)
THOUGHT = ("Be brief.<|im_end|>", "Hi there<|im_end|>", "<think>\n\n</think>\n\nHello!<|im_end|>\n")
OF_MESSAGES = {  # of each built-in: what is the system's, the user's and the assistant's of CHAT
    "chatml": CHATML,
    "smollm2": CHATML,
    "qwen2.5_instruct": (*CHATML[:2], "\nHello!<|im_end|>\n"),
    "qwen2.5_torchllms": CHATML,
    "qwen3": THOUGHT,
    "qwen3_instruct_2507": (*CHATML[:2], "Hello!<|im_end|>\n"),
    "qwen3_no_thinking": THOUGHT,
    "llama2": ("<<SYS>>\nBe brief.\n<</SYS>>\n\n", "Hi there [/INST]", " Hello! </s>"),
    "llama3_instruct": LLAMA3,
    "llama3.1_instruct": LLAMA3,
    "llama3.2_instruct": LLAMA3,
    "olmo2_instruct": ("Be brief.", "Hi there", "Hello!<|endoftext|>"),
    "gemma": (None, "Hi there<end_of_turn>\n", "Hello!<end_of_turn>\n"),
    "gemma3": ("Be brief.\n\n", "Hi there<end_of_turn>\n", "Hello!<end_of_turn>\n"),
    "phi3": (*PHI3[:2], PHI3[2] + "<|endoftext|>"),
    "phi3.5": (*PHI3[:2], PHI3[2] + "<|endoftext|>"),
    "phi3_small": (*PHI3[:2], PHI3[2] + "$eos"),
    "phi3_medium": (None, *PHI3[1:]),
    "phi3_mini_2024-04": (None, *PHI3[1:]),
    "mistral_v1": ("Be brief.\n\n", "Hi there [/INST]", " Hello!</s>"),
    "mistral_instruct": (" Be brief.\n\n", "Hi there[/INST]", " Hello!</s>"),
    "mistral_tekken": ("Be brief.\n\n", "Hi there[/INST]", "Hello!</s>"),
    "mistral_v7": (" Be brief.[/SYSTEM_PROMPT]", " Hi there[/INST]", " Hello!</s>"),
    "zephyr": ("Be brief.</s>", "Hi there</s>", "Hello!</s>"),
    "alpaca": ("Be brief.", "Hi there", "Hello!$eos"),
    "plain": (None, "Hi there", "Hello!$eos"),
    "storyteller": (None, "Hi there", "<s>Hello!</s>"),  # its BOS opens the reply, and is learned with it
}


@pytest.mark.parametrize("name", built_in_names())
def test_content_and_what_ends_it_is_its_authors_and_all_else_is_nobodys(name):
    """BOS, headers and line breaks after a turn have the role other, wherever they stand."""
    whose = dict(zip(("system", "user", "assistant"), OF_MESSAGES[name], strict=True))
    rendered = Template.load(name).render(CHAT if whose["system"] else CHAT[1:])
    found = [(role, rendered.text[start:end]) for start, end, role in rendered.roles if role != "other"]
    assert found == [(role, text) for role, text in whose.items() if text]
    ends = [end for _, end, role in rendered.roles if role == "assistant"]
    assert not rendered.text[ends[-1] :].strip(), "nothing comes after the reply"


def test_tool_results_of_qwen_stand_in_one_user_turn():
    messages = say("user: Sum?", "assistant: Wait", "tool: 1", "tool: 2", "assistant: 3")
    rendered = Template.load("qwen2.5_instruct").render(messages)
    assert rendered.text.endswith(
        "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n3<|im_end|>\n"
    )
    tools = [rendered.text[start:end] for start, end, role in rendered.roles if role == "tool"]
    assert tools == ["1\n</tool_response>", "2\n</tool_response>"]


def test_spans_are_of_the_rendered_text():
    rendered = Template.load("llama3_instruct").render([*CHAT, *say("user:  x ", "assistant: ")])
    assert [rendered.text[start:end] for start, end in rendered.learned] == ["Hello!<|eot_id|>", "<|eot_id|>"]
    assert [rendered.text[start:end] for start, end, role in rendered.roles if role == "user"] == [
        "Hi there<|eot_id|>",
        "x<|eot_id|>",
    ]
    assert {rendered.text[start:end] for start, end in rendered.control} == set(
        Template.load("llama3_instruct").file.control
    )
    starts, ends = [start for start, *_ in rendered.roles], [end for _, end, _ in rendered.roles]
    assert starts == [0, *ends[:-1]] and ends[-1] == len(rendered.text)


def test_empty_pieces_leave_no_span():
    rendered = Rendered([Piece("", 1, learned=True), Piece("a", 4), Piece("", 2, learned=True)])
    assert (rendered.roles, rendered.learned, rendered.control) == ([(0, 1, "other")], [], [])


@pytest.mark.parametrize("name", [name for name in built_in_names() if not name.startswith("qwen3")])
def test_every_reply_is_learned_whole_and_ends_in_a_stop_token(name):
    """Qwen 3's, which lose or gain reasoning, are compared with the official template's."""
    template = Template.load(name)
    turn = template.file.turns["assistant"]
    lead, end, eos = (
        "".join(piece.text for piece in part) for part in (turn.lead, turn.end, template.file.eos)
    )
    assert template.stop[0] in end
    fitting = [messages for messages in conversations(100, seed=5) if template.fault(messages) is None]
    assert len(fitting) > 20
    for messages in fitting:
        rendered = template.render(messages)
        learned = "".join(rendered.text[start:end] for start, end in rendered.learned)
        replies = [message["content"] for message in messages if message["role"] == "assistant"]
        expected = [lead + (reply.strip() if turn.strip else reply) + end for reply in replies]
        assert learned == "".join(expected) + (eos if messages[-1]["role"] == "assistant" else "")


@pytest.mark.parametrize("name", SOURCE_OF)
def test_what_looks_like_a_control_token_stays_text(name):
    """A message full of the template's own tokens adds not one of them, and reads as it was written."""
    template, source = Template.load(name), tokenizer(SOURCE_OF[name])
    said = "I say " + " and ".join(template.file.control) + "."
    plain, tricky = (
        say("user: Hi", f"assistant: {text}", "user: So?", "assistant: No.") for text in ("x", said)
    )
    ids = set(source.control.values())
    counted = [[t for t in template.encode(each, source).tokens if t in ids] for each in (plain, tricky)]
    assert counted[0] == counted[1]
    encoded = template.encode(tricky, source)
    learned = [
        t for t, weight in zip(encoded.tokens, encoded.weights, strict=True) if weight and t not in ids
    ]
    assert said in source.decode(learned)


def test_a_batch_is_encoded_as_its_conversations_one_by_one():
    template, source = Template.load("smollm2"), tokenizer("smollm2")
    messages = conversations(60, seed=6)
    assert template.encode_batch(messages, source) == [template.encode(each, source) for each in messages]
    assert template.encode_batch([], source) == []


@pytest.mark.slow
def test_a_hundred_thousand_conversations_are_encoded_alike():
    template, source = Template.load("smollm2"), tokenizer("smollm2")
    few = conversations(50, seed=7)
    encoded = template.encode_batch(few * 2000, source)
    assert len(encoded) == 100_000
    assert encoded[:50] == encoded[-50:] == template.encode_batch(few, source)


def test_stop_tokens_are_known_by_id():
    assert Template.load("llama3_instruct").stop_ids(tokenizer("llama3")) == {128009}
    assert Template.load("mistral_instruct").stop == ["</s>"]


def test_a_template_of_another_model_is_refused():
    with pytest.raises(UserError) as refused:
        Template.load("mistral_v1").check(tokenizer("smollm2"))
    assert str(refused.value) == (
        "template mistral_v1 writes <s>, </s>, and the model's tokenizer has no such control token; "
        + NAME_IT
    )
    with pytest.raises(UserError):
        Template.load("mistral_v1").encode(CHAT, tokenizer("smollm2"))


def test_conversations_that_a_template_cannot_write_are_refused():
    mistral, calls = Template.load("mistral_v1"), say("user: x", "assistant: x", "tool: x", "assistant: x")
    fault = "message 3 is a tool message, for which template mistral_v1 has no form"
    assert mistral.fault(calls) == fault
    assert Template.load("chatml").fault(calls) is None
    for messages, reply, reason in (
        (calls, False, fault),
        ([], False, "messages is empty"),
        (CHAT, True, "a reply is asked for after an assistant message; user or tool is wanted"),
    ):
        with pytest.raises(UserError) as refused:
            mistral.render(messages, reply=reply)
        assert str(refused.value) == f"this conversation cannot be rendered: {reason}"
