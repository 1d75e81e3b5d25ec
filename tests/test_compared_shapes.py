"""Answers to compare as other programs keep them: read as what they say, by every command that compares."""

import json

import pytest
from tiny_pairs import prefer
from tiny_runs import material, refused, run

from tutelage.data.comparison import comparison_fault, read_comparison

SAID = {"role": "user", "content": "hi"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("good", "bad"))
HUMAN, GPT = {"from": "human", "value": "hi"}, {"from": "gpt", "value": "good"}
# As LLaMA-Factory's data/README.md has them: sharegpt, openai and alpaca, of ranking and of KTO.
PAIRS = {
    "sharegpt": {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "bad"}},
    "openai": {"messages": [SAID], "chosen": GOOD, "rejected": BAD},
    "openai with texts": {"messages": [SAID], "chosen": "good", "rejected": "bad"},
    "alpaca": {"instruction": "hi", "input": "", "chosen": "good", "rejected": "bad"},
    "objects beside a prompt": {"prompt": "hi", "chosen": GOOD, "rejected": BAD},
    "whole conversations of turns": {
        "chosen": [HUMAN, GPT],
        "rejected": [HUMAN, {"from": "gpt", "value": "bad"}],
    },
}
LABELLED = {
    "sharegpt": {"conversations": [HUMAN, GPT], "label": True},
    "openai": {"messages": [SAID, GOOD], "label": True},
    "alpaca": {"instruction": "hi", "output": "good", "label": True},
}


@pytest.mark.parametrize("kind", PAIRS)
def test_every_shape_of_a_pair_says_the_same(kind):
    assert comparison_fault(PAIRS[kind]) is None
    found = read_comparison(PAIRS[kind])
    assert (found.prompt, found.answers, found.ranks) == ([SAID], [[GOOD], [BAD]], [0, 1])


@pytest.mark.parametrize("kind", LABELLED)
def test_every_shape_of_an_answer_with_a_label_says_the_same(kind):
    assert comparison_fault(LABELLED[kind]) is None
    found = read_comparison(LABELLED[kind])
    assert (found.prompt, found.answers, found.ranks) == ([SAID], [[GOOD]], [0])
    assert read_comparison({**LABELLED[kind], "label": False}).ranks == [1]


def test_what_stands_before_the_question_is_kept():
    """A system text, earlier turns and an alpaca input."""
    system = {"role": "system", "content": "s"}
    beside = {"chosen": "good", "rejected": "bad", "system": "s"}
    assert read_comparison({"prompt": "hi", **beside}).prompt == [system, SAID]
    assert read_comparison({"conversations": [HUMAN], **beside}).prompt == [system, SAID]
    turns = [HUMAN, GPT, HUMAN]
    assert read_comparison({"conversations": turns, **beside}).prompt == [system, SAID, GOOD, SAID]
    long = {"instruction": "do", "input": "it", "history": [["hi", "good"]], **beside}
    assert read_comparison(long).prompt == [system, SAID, GOOD, {"role": "user", "content": "do\n\nit"}]


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        (
            {"conversations": [HUMAN], "chosen": {"x": 1}, "rejected": GPT},
            "its chosen is an object without role and content, or from and value",
        ),
        (
            {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": 3}},
            "its rejected: turn 1 has a value that is a number, not a string",
        ),
        (
            {"conversations": [HUMAN, GPT], "chosen": "a", "rejected": "b"},
            "its prompt does not end with the user",
        ),
        ({"conversations": "hi", "chosen": "a", "rejected": "b"}, "conversations is a string, not a list"),
        (
            {"instruction": " ", "chosen": "a", "rejected": "b"},
            "its instruction is blank, and it has no input",
        ),
        (
            {"messages": [SAID], "label": True},
            "it does not end with the assistant, whose answer the label judges",
        ),
        (
            {"chosen": "\n\nHuman: hi\n\nAssistant: a", "rejected": "\n\nHuman: hi\n\nAssistant: b"},
            "chosen and rejected are texts, and there is no prompt that they answer; "
            "`tutelage data build hh_rlhf` reads such texts",
        ),
    ],
)
def test_faults_are_named(record, fault):
    found = comparison_fault(record)
    assert found is not None and (fault in found)


def written(path, records):
    path.write_text(json.dumps(records))
    return path


def test_dpo_kto_and_the_looks_at_data_take_them(tmp_path):
    made = material(tmp_path / "made")
    for name, records, loss in (
        ("pairs", [PAIRS["sharegpt"]] * 4, "sigmoid"),
        ("alpaca", [PAIRS["alpaca"]] * 4, "sigmoid"),
        ("liked", [LABELLED["sharegpt"], {**LABELLED["sharegpt"], "label": False}] * 2, "kto"),
    ):
        path = written(tmp_path / f"{name}.json", records)
        words = prefer(made, tmp_path / name, "dpo", "--dry_run", "--loss", loss, train_data_paths=path)
        ended = run(*words)
        assert ended.code == 0, ended.err
    for command in ("show", "stats"):
        path = tmp_path / "pairs.json"
        ended = run(
            "data", command, "--train_data_paths", path, "--ckpt_paths", made.model, "--cache_dir", tmp_path
        )
        assert ended.code == 0 and "good" in ended.out and "bad" in ended.out, ended.err
    ended = run("data", "convert", "--input", tmp_path / "liked.json", "--to", "comparisons",
                "--output", tmp_path / "o.jsonl", "--cache_dir", tmp_path)  # fmt: skip
    assert ended.code == 0, ended.err
    first = json.loads((tmp_path / "o.jsonl").read_text().splitlines()[0])
    assert first == {"prompt": [SAID], "completion": [GOOD], "label": True}


def test_a_number_beside_a_text_is_no_comparison(tmp_path):
    """As imdb has it."""
    path = tmp_path / "films.jsonl"
    path.write_text('{"text": "a bad film", "label": 0}\n')
    ended = run("data", "stats", "--train_data_paths", path)
    assert ended.code == 0 and "a bad film" in ended.out


def test_stats_count_calls_of_tools_and_prompts_alone(tmp_path):
    call = {"type": "function", "function": {"name": "weather", "arguments": "{}"}}
    asked = [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "22"}]
    parts = {"role": "assistant", "content": [{"type": "text", "text": "two words"}]}
    other = json.loads(json.dumps(asked).replace("weather", "news"))
    rows = [{"messages": [SAID, *each, parts]} for each in (asked, other)]
    path = tmp_path / "tools.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = run("data", "stats", "--train_data_paths", path, "--output_dir", tmp_path / "out")
    assert ended.code == 0, ended.err
    numbers = json.loads((tmp_path / "out" / "stats.json").read_text())["train"]
    assert numbers["same_rows"]["count"] == 0 and numbers["rows"] == 2
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "hi there"}\n{"prompt": "hi there"}\n')
    ended = run("data", "stats", "--train_data_paths", path)
    assert ended.code == 0 and "hi there" in ended.out, ended.err
    ended = run("data", "stats", "--train_data_paths", path, "--tokenizer", tmp_path)
    assert "nothing of prompts alone is learned" in refused(ended)
