"""Tools, their calls and results, and contents in parts: what passes through, and what is refused."""

import json

import pytest
from conversations import CHAT, TOOLS, say
from tiny_runs import run

from tutelage.data.comparison import comparison_fault
from tutelage.data.paths import find_data
from tutelage.data.read import load_rows, scan
from tutelage.data.sources import parse_sources
from tutelage.text.messages import message_faults, plain_messages, with_tools
from tutelage.text.template import Template
from tutelage.text.template_file import built_in_names

CALL = {"id": "abc123XYZ", "type": "function", "function": {"name": "weather", "arguments": {"city": "Łódź"}}}
ASKED = [
    {"role": "user", "content": "Weather?", "tools": TOOLS[:1]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "22", "tool_call_id": "abc123XYZ", "name": "weather"},
    {"role": "assistant", "content": "22 degrees."},
]
KNOW = ["llama3.1_instruct", "llama3.2_instruct", "mistral_instruct", "mistral_tekken", "mistral_v7"]
KNOW += ["qwen2.5_instruct", "qwen3", "qwen3_instruct_2507", "qwen3_no_thinking"]


@pytest.mark.parametrize("name", built_in_names())
def test_tools_pass_through_or_are_refused_by_name(name):
    template = Template.load(name)
    if name in KNOW:
        text = template.render(ASKED).text
        assert "Łódź" in text and text.index('"description": "What the weather') < text.index("Łódź")
        return
    assert template.fault(ASKED) == f"the conversation lists tools, for which template {name} has no form"
    bare = [{key: value for key, value in message.items() if key != "tools"} for message in ASKED]
    assert template.fault(bare) == f"message 2 has tool_calls, for which template {name} has no form"


def test_calls_are_learned_and_results_are_not():
    rendered = Template.load("mistral_instruct").render(ASKED)
    assert [rendered.text[start:end] for start, end in rendered.learned] == [
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Łódź"}, "id": "abc123XYZ"}]</s>',
        " 22 degrees.</s>",
    ]
    tool = [rendered.text[start:end] for start, end, role in rendered.roles if role == "tool"]
    assert tool == ['22, "call_id": "abc123XYZ"}[/TOOL_RESULTS]']


def test_arguments_may_be_json_text_and_calls_flat():
    told = json.loads(json.dumps(ASKED))
    told[1]["tool_calls"] = [{"name": "weather", "arguments": '{"city": "Łódź"}', "id": "abc123XYZ"}]
    for name in KNOW:
        assert Template.load(name).render(told).text == Template.load(name).render(ASKED).text


def with_call(**changes) -> list[dict]:
    return [ASKED[0], {**ASKED[1], **changes}, *ASKED[2:]]


NOT_WRITTEN = {
    "two calls": ("llama3.1_instruct", with_call(tool_calls=[CALL, CALL]),
                  "message 2 has 2 tool_calls; template llama3.1_instruct writes one in a message"),
    "words too": ("mistral_instruct", with_call(content="Let me see."),
        "message 2 has words and tool_calls; template mistral_instruct writes one or the other in a "
        "message"),
    "no id": ("mistral_instruct", with_call(tool_calls=[{**CALL, "id": None}]),
              "message 2 has a tool call whose id is not 9 letters and digits, as mistral_instruct wants"),
    "id of a result": ("mistral_tekken", [*ASKED[:2], {**ASKED[2], "tool_call_id": "x"}, ASKED[3]],
                       "message 3 has no tool_call_id of 9 letters and digits, "
                       "as template mistral_tekken wants"),
    "reasoning": ("chatml", [CHAT[1], {**CHAT[2], "reasoning_content": "Hm"}],
                  "message 2 has reasoning_content, for which template chatml has no form"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_WRITTEN)
def test_what_a_template_cannot_write_is_named(case):
    name, messages, fault = NOT_WRITTEN[case]
    assert Template.load(name).fault(messages) == fault


FAULTS = {
    "message 1 has a content whose part 2 is image_url; only parts of type text can be read": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": ""}]}
    ],
    "message 1 has a content whose part 1 has no text": [{"role": "user", "content": [{"type": "text"}]}],
    "message 1 has a content whose part 1 is a string; only parts of type text can be read": [
        {"role": "user", "content": ["a"]}
    ],
    "message 2 has tool_calls whose entry 1 has arguments that are not JSON": with_call(
        tool_calls=[{"name": "f", "arguments": "{"}]
    ),
    "message 2 has tool_calls whose entry 1 has arguments that are a list, not an object": with_call(
        tool_calls=[{"name": "f", "arguments": "[]"}]
    ),
    "message 2 has tool_calls whose entry 1 has no function with a name": with_call(tool_calls=[{}]),
    "message 2 has tool_calls that are an object, not a list": with_call(tool_calls={"name": "f"}),
    "message 1 has tool_calls, which only an assistant message may, and is a user's": [
        {"role": "user", "content": "a", "tool_calls": [CALL]}
    ],
    "message 1 has tools whose entry 1 is a string, not an object": [{**CHAT[1], "tools": ["f"]}],
    "message 2 has half a surrogate pair, which is no character, beside its content": with_call(
        tool_calls=[{"name": "f", "arguments": {"\ud800": 1}}]
    ),
    "message 3 has a tool_call_id that is a number, not a string": [
        *ASKED[:2],
        {**ASKED[2], "tool_call_id": 1},
    ],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_calls_and_contents_are_named(fault):
    assert message_faults(FAULTS[fault]) == fault


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]
    assert message_faults([{"role": "user", "content": parts}, CHAT[2]]) is None
    assert plain_messages([{"role": "user", "content": parts}]) == [CHAT[1]]
    assert Template.load("chatml").render([CHAT[0], {"role": "user", "content": parts}, CHAT[2]]).text == (
        Template.load("chatml").render(CHAT).text
    )


def test_a_records_tools_ride_on_its_first_message(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"messages": CHAT, "tools": TOOLS}) + "\n" + json.dumps({"messages": CHAT}))
    (source,) = parse_sources([path])
    first, second = load_rows(source, scan(source).offsets)
    assert first == [{**CHAT[0], "tools": TOOLS}, *CHAT[1:]] == with_tools(CHAT, TOOLS) and second == CHAT


ASK, ANSWERS = say("user: Weather?"), [say("assistant: Sunny."), say("assistant: No idea.")]
TOLD = [  # records that list tools; whether they compare
    ({"prompt": "Weather?", "chosen": "Sunny.", "rejected": "No idea."}, True),
    ({"chosen": [*ASK, *ANSWERS[0]], "rejected": [*ASK, *ANSWERS[1]]}, True),
    ({"prompt": ASK, "answers": ["Sunny.", "No idea.", "?"], "scores": [2, 1, 0]}, True),
    ({"prompt": "Weather?", "completion": "Sunny.", "label": True}, True),
    ({"prompt": "Weather?", "completion": "Sunny."}, False),
    ({"conversations": [{"from": "human", "value": "Weather?"}, {"from": "gpt", "value": "Sunny."}]}, False),
]  # fmt: skip


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize(("record", "compares"), TOLD)
def test_records_of_every_shape_tell_the_model_its_tools(record, compares, as_text, tmp_path):
    """Converted too; tables have lists of tools as JSON text."""
    path, out = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    path.write_text(json.dumps(record | {"tools": json.dumps(TOOLS) if as_text else TOOLS}) + "\n")
    (source,) = parse_sources(find_data([f"jsonl:{path}"], [], log=print, flag=""), ranked=compares)
    rows = scan(source)
    assert rows.faults.named == []
    (row,) = load_rows(source, rows.offsets)
    messages = [*row.prompt, *row.answers[0]] if compares else row
    assert messages == with_tools([*ASK, *ANSWERS[0]], TOOLS)
    run("data", "convert", f"jsonl:{path}", "--output", out)
    made = json.loads(out.read_text())
    assert made["tools"] == TOOLS and "tools" not in (made.get("prompt") or made["messages"])[0]


def test_tools_that_are_no_list_are_refused():
    for compared in ({"chosen": "a", "rejected": "b"}, {"answers": ["a", "b"]}):
        fault = comparison_fault({"prompt": "q", **compared, "tools": "weather"})
        assert fault == "message 1 has tools that are a string, not a list"


def test_qwen3_loses_the_reasoning_of_replies_before_the_last_question():
    messages = say("user: a", "assistant: <think>\nhm\n</think>\n\nb", "user: c")
    messages += [{"role": "assistant", "content": "d", "reasoning_content": "so"}]
    assert Template.load("qwen3").render(messages).text == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n<think>\nso\n</think>\n\nd<|im_end|>\n"
    )
    asked = Template.load("qwen3_no_thinking").render(messages[:3], reply=True).text
    assert asked.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
