"""Records as the hub's data sets have them become conversations; what is wrong is said in their words."""

import json
import re

import pytest
from tiny_data import TEMPLATE, TOKENIZER, refusal

from tutelage.data.dataset import encode_paths
from tutelage.data.paths import find_data
from tutelage.data.read import load_rows, scan
from tutelage.data.sources import parse_sources, recognised


def sources(tmp_path, records, *, prompts=False, ranked=False, **options):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    found = find_data([str(path)], [], log=print, flag="--train_data_splits", **options)
    return parse_sources(found, prompts=prompts, ranked=ranked)


def read(tmp_path, *records, **options):
    (source,) = sources(tmp_path, records, **options)
    rows = scan(source)
    rows.faults.refuse()
    return [as_words(row) for row in load_rows(source, rows.offsets)]


def faults(tmp_path, *records, **options) -> list[str]:
    (source,) = sources(tmp_path, records, **options)
    return [re.sub(r"\S*/(a.jsonl:\d+)", r"\1", named) for named in scan(source).faults.named]


def as_words(messages) -> str:
    """A conversation in a line: u:hi a:hello."""
    return " ".join(f"{message['role'][0]}:{message['content']}" for message in messages)


def turns(*pairs):
    return {"conversations": [{"from": who, "value": what} for who, what in pairs]}


CHATS = [  # fields as on the hub -> the conversation
    (turns(("human", "hi 👋"), ("gpt", "yo")) | {"id": "identity_0"}, "u:hi 👋 a:yo"),
    (turns(("system", "s"), ("human", "q"), ("gpt", "")), "s:s u:q a:"),
    (turns(("human", "q"), ("gpt", "a")) | {"system": "s", "tools": "[]"}, "s:s u:q a:a"),
    (
        turns(("human", "q"), ("function_call", '{"name": "f"}'), ("observation", "7"), ("gpt", "a")),
        'u:q a:{"name": "f"} t:7 a:a',
    ),
    ({"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "u:q a:a"),
    (  # tatsu-lab/alpaca, whose text is the same once more
        {"instruction": "Add.", "input": "1 2", "output": "3", "text": "Below is an instruction"},
        "u:Add.\n\n1 2 a:3",
    ),
    ({"instruction": "Sing.", "input": "", "output": "la"}, "u:Sing. a:la"),
    ({"instruction": "", "input": "only", "output": "la"}, "u:only a:la"),
    ({"instruction": "q", "input": None, "output": "a", "system": None, "history": None}, "u:q a:a"),
    (
        {"instruction": "q2", "output": "a2", "system": "s", "history": [["q1", "a1"]]},
        "s:s u:q1 a:a1 u:q2 a:a2",
    ),
    ({"input": ["s"], "instruction": ["q1", "q2"], "output": ["a1", "a2"]}, "s:s u:q1 a:a1 u:q2 a:a2"),
    ({"input": [], "instruction": ["q1"], "output": ["a1"]}, "u:q1 a:a1"),
    ({"prompt": "q", "completion": "a"}, "u:q a:a"),
    (
        {
            "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
            "completion": [{"role": "assistant", "content": "a"}],
        },
        "s:s u:q a:a",
    ),
    (  # ultrachat_200k
        {"prompt": "q", "prompt_id": "f0"}
        | {"messages": [{"content": "q", "role": "user"}, {"content": "a", "role": "assistant"}]},
        "u:q a:a",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("record", "words"), CHATS, ids=range(len(CHATS)))
def test_a_record_becomes_the_conversation_it_holds(tmp_path, record, words):
    assert read(tmp_path, record, record) == [words] * 2


PROMPTS = [
    ({"prompt": "q"}, "u:q"),
    ({"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]}, "s:s u:q"),
    ({"messages": [{"role": "user", "content": "q"}]}, "u:q"),
    (turns(("human", "q"), ("gpt", "a")), "u:q"),
    (turns(("human", "q"), ("gpt", "a"), ("human", "r"), ("gpt", "b")), "u:q a:a u:r"),
    ({"instruction": "q", "input": "", "output": "a"}, "u:q"),
]


@pytest.mark.parametrize(("record", "words"), PROMPTS, ids=range(len(PROMPTS)))
def test_a_prompt_ends_where_the_assistant_would_speak(tmp_path, record, words):
    assert read(tmp_path, record, prompts=True) == [words]


GOOD = turns(("human", "q"), ("gpt", "a"))
ALPACA = {"instruction": "q", "input": "", "output": "a"}
BAD = [
    (GOOD, {"conversations": "hi"}, "conversations is a string, not a list"),
    (GOOD, {"conversations": []}, "conversations is empty"),
    (GOOD, {"conversations": None}, "its conversations is null"),
    (GOOD, {"conversations": ["hi"]}, "turn 1 is a string, not an object with from and value"),
    (GOOD, {"conversations": [{"from": "human"}]}, "turn 1 has no value"),
    (GOOD, turns(("human", "q"), ("gpt", None)), "turn 2 has a value that is null, not a string"),
    (
        GOOD,
        turns(("gpt", "a"), ("human", "q")),
        "message 1 is an assistant message, but a conversation opens with the user",
    ),
    (GOOD, turns(("human", "q"), ("human", "q")), "message 2 is a user message right after a user message"),
    (GOOD, turns(("human", "q")), "has no assistant message"),
    (
        GOOD,
        turns(("human", "\ud83d"), ("gpt", "a")),
        "message 1 has a content with half a surrogate pair, which is no character",
    ),
    (GOOD, {"text": "hi"}, "no conversations; the object has 'text'"),
    (
        GOOD,
        ALPACA,
        "no conversations; the object has 'instruction', 'input', 'output'; its shape is "
        "alpaca, that of a.jsonl:1 is sharegpt: keep them in two files",
    ),
    (
        GOOD,
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        "no conversations; the object has 'prompt', 'chosen', 'rejected'; answers to "
        "compare are for dpo, simpo and reward",
    ),
    (GOOD, [1], "not an object with messages"),
    (ALPACA, {"instruction": "q", "output": None}, "its output is null"),
    (ALPACA, {"instruction": 7, "output": "a"}, "its instruction is a number, not a string"),
    (
        ALPACA,
        {"instruction": " ", "input": "", "output": "a"},
        "its instruction is blank, and it has no input",
    ),
    (ALPACA, ALPACA | {"history": [["q"]]}, "its history is not a list of [question, answer]"),
    (
        ALPACA,
        ALPACA | {"instruction": ["q"], "output": ["a", "b"], "input": []},
        "its instructions are 1 and its outputs 2; each has one",
    ),
    (
        ALPACA,
        ALPACA | {"instruction": ["q"], "output": ["a"], "input": ["s", "t"]},
        "its input has 2 texts, and only one can be the system's",
    ),
    (
        ALPACA,
        ALPACA | {"instruction": ["q"], "output": "a", "input": []},
        "its output is not a list of texts, and its instruction is a list",
    ),
    (
        {"prompt": "q", "completion": "a"},
        {"prompt": "q", "completion": "a", "label": False},
        "its label says whether the answer is liked; that is for `tutelage dpo --loss kto`",
    ),
    (
        {"prompt": "q", "completion": "a"},
        {"prompt": {}, "completion": "a"},
        "its prompt is an object, not a text or a list of messages",
    ),
]


@pytest.mark.parametrize(("first", "record", "reason"), BAD, ids=range(len(BAD)))
def test_what_is_wrong_is_said_with_line_and_key(tmp_path, first, record, reason):
    assert faults(tmp_path, first, record, first) == [f"a.jsonl:2: {reason}"]


def test_what_no_shape_fits_is_told_of_other_names(tmp_path):
    assert faults(tmp_path, {"question": "q", "answer": "a"}) == [
        "a.jsonl:1: no messages; the object has 'question', 'answer'; "
        "other names for its keys are given by --data_fields, like question=instruction"
    ]


def test_columns_may_have_other_names(tmp_path):
    dolly = {"instruction": "q", "context": "c", "response": "a", "category": "x"}
    assert read(tmp_path, dolly, fields=["context=input", "response=output"]) == ["u:q\n\nc a:a"]
    swapped = {"input": "q", "instruction": "old", "label_text": "a"}
    assert read(tmp_path, swapped, fields=["input=instruction", "label_text=output"]) == ["u:q a:a"]
    message = refusal(sources, tmp_path, [dolly], fields=["contxt=input"])
    assert message.startswith("data_fields: the first record of ") and message.endswith(
        "has no contxt; it has 'instruction', 'context', 'response', 'category'"
    )
    pair = {"question": "q", "chosen": "a", "rejected": "b"}
    (source,) = sources(tmp_path, [pair], ranked=True, fields=["question=prompt"])
    assert next(load_rows(source, scan(source).offsets)).prompt == [{"role": "user", "content": "q"}]
    text = {"body": "a document"}
    (source,) = sources(tmp_path, [text], fields=["body=text"])
    assert list(load_rows(source, scan(source).offsets)) == ["a document"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["question"], "data_fields: 'question' is not OLD=NEW, such as question=instruction"),
        (["a=b", "c=b"], "data_fields has b twice on one side; a name can stand for one other"),
    ],
)
def test_names_that_contradict_each_other_are_refused(tmp_path, fields, message):
    assert refusal(sources, tmp_path, [ALPACA], fields=fields) == message


def test_two_shapes_in_one_record_are_refused_until_one_is_chosen(tmp_path):
    both = ALPACA | GOOD
    message = refusal(sources, tmp_path, [both])
    assert message.endswith("has the shapes sharegpt and alpaca; say which is meant with --train_data_shapes")
    assert read(tmp_path, both, shapes=["alpaca"]) == ["u:q a:a"]
    assert refusal(sources, tmp_path, [both], shapes=["vicuna"]) == (
        "--train_data_shapes: vicuna is none of messages, sharegpt, alpaca, completion, text, prompt"
    )
    (source,) = sources(tmp_path, [ALPACA | {"text": "whole"}], shapes=["text"])
    assert list(load_rows(source, scan(source).offsets)) == ["whole"]


def test_what_a_record_has_besides_is_named(tmp_path):
    (source,) = sources(tmp_path, [ALPACA | {"text": "whole", "prompt": "q", "chosen": 1}])
    assert source.unused == ("text", "prompt", "chosen")


def test_prompts_alone_are_nothing_to_learn_from(tmp_path):
    assert faults(tmp_path, {"prompt": "q"})[0].startswith("a.jsonl:1: no messages; the object has 'prompt'")
    assert "prompts alone have no answers" in refusal(sources, tmp_path, [{"prompt": "q"}], shapes=["prompt"])


PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize(
    ("first", "rest", "reason"),
    [
        ({"instruction": "a", "output": None}, ALPACA, "its output is null"),
        ("garbage", ALPACA, "not an object with messages"),
        ({"text": None}, {"text": "abc"}, "its text is null, not a string"),
        ({"prompt": "a", "completion": None}, {"prompt": "a", "completion": "b"}, "its completion is null"),
        ({"messages": None}, {"messages": []}, "messages is null, not a list"),
    ],
    ids=range(5),
)
def test_a_bad_first_record_blames_no_other(tmp_path, first, rest, reason):
    (source,) = sources(tmp_path, [first, *[rest] * 3])
    rows = scan(source)
    assert rows.faults.named[0] == f"{source.path}:1: {reason}"
    assert rows.faults.count == (4 if rest == {"messages": []} else 1)


def test_a_first_line_that_is_no_json_blames_no_other(tmp_path):
    for good, kind in ((ALPACA, "jsonl"), (PAIR, "ranked")):
        (tmp_path / "a.jsonl").write_text("{\n\n" + 3 * (json.dumps(good) + "\n"))
        found = find_data([str(tmp_path / "a.jsonl")], [], log=lambda _: None, flag="--train_data_splits")
        (source,) = recognised(found)
        rows = scan(source)
        assert (source.kind, len(rows), rows.faults.count) == (kind, 3, 1)
        assert rows.faults.named[0].startswith(f"{tmp_path}/a.jsonl:1: not JSON")


def test_only_the_first_hundred_rows_say_what_all_are(tmp_path):
    (source,) = sources(tmp_path, [{"output": None}] * 100 + [ALPACA])
    assert source.first == 0
    (source,) = sources(tmp_path, [{"prompt": "x"}, ALPACA], prompts=True)
    assert (source.shape, source.first) == ("prompt", 1)
    fields = ["question=instruction", "answer=output"]
    (source,) = sources(tmp_path, [{"text": "x"}, {"question": "q", "answer": "x"}], fields=fields)
    assert (source.shape, source.first) == ("alpaca", 2)


def test_blank_replies_are_counted_and_no_fault(tmp_path):
    call = {"name": "look", "arguments": {}}
    chats = [
        [{"role": "user", "content": "q"}, {"role": "assistant", **said}]
        for said in (
            {"content": " "},
            {"content": [{"type": "text", "text": ""}]},
            {"content": "a"},
            {"content": "", "tool_calls": [{"type": "function", "function": call}]},
            {"content": "", "reasoning_content": "hm"},
        )
    ]
    (source,) = sources(tmp_path, [{"messages": chat} for chat in chats])
    rows = scan(source)
    assert (len(rows), rows.silent, rows.faults.named) == (5, 2, [])
    (source,) = sources(tmp_path, [ALPACA, ALPACA | {"output": ""}])
    assert scan(source).silent == 1
    said = []
    settings = {"template": TEMPLATE, "tokenizer": TOKENIZER, "cache_dir": tmp_path / "c", "num_samples": ()}
    encode_paths([source.path], log=said.append, **settings)
    assert f"{source.path}: 1 rows end with a blank reply, of which only its end is learned" in said
