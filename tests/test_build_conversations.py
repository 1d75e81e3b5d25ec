"""`tutelage data build dolly` and its kin, from files to files: what is written, held out, too long."""

import json
from pathlib import Path

import pytest
from test_build_preferences import lines, run, write_rows
from test_choice_rows import ARC, CAIS, GENERATION, HELLASWAG, WINOGRANDE
from test_conversation_rows import DIALOGUES, MAIN, NATALIA, squad_file
from tiny_data import TOKENIZER

from tutelage.commands import COMMANDS
from tutelage.data.builders.choices import SYSTEM
from tutelage.data.read import scan
from tutelage.data.sources import parse_sources

DOLLY = {"instruction": "When did all of it begin?", "context": "It began in 2000.", "response": "In 2000."}
ALPACA = {"instruction": "Name a colour that birds have.", "input": "", "output": "Red."}
RAW = {  # a row of each builder as it is published
    "dolly": DOLLY,
    "alpaca": ALPACA,
    "commonsense": DIALOGUES["1"],
    "gsm8k": {"question": NATALIA, "answer": MAIN},
    "mathematics": {"question": "b'What is 1 + 1?\\n'", "answer": "b'2\\n'"},
    "squad": {"question": "What fell?", "context": "Rain fell.", "answers": {"text": ["Rain"]}},
    "arc": ARC,
    "hellaswag": HELLASWAG,
    "winogrande": WINOGRANDE,
    "mmlu": CAIS,
    "truthful_qa": GENERATION,
}


@pytest.mark.parametrize("name", RAW)
def test_what_is_built_is_what_fine_tuning_reads(tmp_path, capsys, name):
    assert f"data build {name}" in COMMANDS
    raw = write_rows(tmp_path / "raw.jsonl", [RAW[name], {"other": 1}])
    code, _, said = run(capsys, name, "--input", raw, "--output_dir", tmp_path, "--val_percent", 0)
    assert code == 0 and "2 read, 1 kept: 1 to train" in said and "1 skipped: " in said, said
    (source,) = parse_sources([tmp_path / "train.jsonl"])
    assert (len(rows := scan(source)), rows.faults.count) == (1, 0)
    (record,) = lines(tmp_path / "train.jsonl")
    words = ["--input", raw, "--output_dir", tmp_path, "--val_percent", 0, "--overwrite", "--kind", "prompts"]
    assert run(capsys, name, *words)[0] == 0
    assert lines(tmp_path / "train.jsonl") == [{"messages": record["messages"][:-1]}]


def test_alpaca_and_squad_are_read_as_they_are_published(tmp_path, capsys):
    """Alpaca is one JSON array, SQuAD one object; neither has a line a row."""
    raw = tmp_path / "alpaca_data_cleaned.json"
    raw.write_text(json.dumps([ALPACA, {**ALPACA, "instruction": "Name a kind of fish quickly."}], indent=4))
    words = ["--val_percent", 0, "--output_dir"]
    assert run(capsys, "alpaca", "--input", raw, *words, tmp_path / "alpaca")[0] == 0
    assert len(lines(tmp_path / "alpaca" / "train.jsonl")) == 2
    raw = squad_file(tmp_path / "train-v2.0.json", "published")
    assert run(capsys, "squad", "--input", raw, *words, tmp_path / "squad")[0] == 0
    assert [len(each["messages"]) for each in lines(tmp_path / "squad" / "train.jsonl")] == [6, 2]
    raw.write_text('[{"a": 1},')
    code, _, err = run(capsys, "squad", "--input", raw, *words, tmp_path / "squad", "--overwrite")
    assert (code, "train-v2.0.json is not JSON: " in err) == (2, True)


def test_what_is_asked_about_one_thing_is_held_out_together(tmp_path, capsys):
    rows = [
        {**DIALOGUES["1"], "context": f"Context {n // 4}.", "turns": [f"Turn {n}", "Yes"]} for n in range(400)
    ]
    raw = write_rows(tmp_path / "raw.jsonl", rows)
    words = ["commonsense", "--input", raw, "--output_dir", tmp_path, "--with_context", "--val_percent", 20]
    assert run(capsys, *words)[0] == 0
    train, val = (
        [record["messages"][0]["content"] for record in lines(tmp_path / f"{split}.jsonl")]
        for split in ("train", "val")
    )
    assert len(train) + len(val) == 400 and 20 < len(val) < 160
    assert not set(train) & set(val) and all(val.count(each) == 4 for each in val)


def test_what_is_too_long_is_left_out_and_counted(tmp_path, capsys):
    rows = [{**DOLLY, "response": "a " * n} for n in (5, 50, 500)]
    raw = write_rows(tmp_path / "raw.jsonl", rows)
    words = ["dolly", "--input", raw, "--output_dir", tmp_path, "--val_percent", 0, "--overwrite"]
    code, _, said = run(capsys, *words, "--max_words", 60)
    assert code == 0 and "1 skipped: more than 60 words; the first is" in said
    assert len(lines(tmp_path / "train.jsonl")) == 2
    TOKENIZER.save(tmp_path / "tokenizer")
    asked, short, long = (
        len(TOKENIZER.encode(text))
        for text in (f"{DOLLY['instruction']}\n\n{DOLLY['context']}", "a a a a a", ("a " * 50).strip())
    )
    for limit, kept in [(asked + long, 2), (asked + long - 1, 1), (asked + short, 1)]:
        counted = ["--tokenizer", tmp_path / "tokenizer", "--max_seq_len", limit]
        code, _, said = run(capsys, *words, *counted)
        assert code == 0 and f"more than {limit} tokens" in said
        assert len(lines(tmp_path / "train.jsonl")) == kept
    code, _, err = run(capsys, *words, "--max_seq_len", 5)
    assert (code, "max_seq_len and tokenizer go together" in err) == (2, True)


def test_short_questions_and_pictures_are_counted_apart(tmp_path, capsys):
    rows = [
        DOLLY,
        {**DOLLY, "instruction": "Name it"},
        {**DOLLY, "instruction": "Tell me of any movie you saw"},
    ]
    raw = write_rows(tmp_path / "raw.jsonl", rows)
    words = ["dolly", "--input", raw, "--output_dir", tmp_path, "--val_percent", 0]
    code, _, said = run(capsys, *words)
    assert code == 0 and "3 read, 1 kept" in said
    assert (
        "1 skipped: a question of fewer than 5 words" in said
        and "1 skipped: the question names a movie" in said
    )
    assert run(capsys, *words, "--overwrite", "--min_words", 0, "--skip_words", "fish")[0] == 0
    assert len(lines(tmp_path / "train.jsonl")) == 3


def test_chosen_modules_of_mathematics_are_read_and_so_many_questions_of_each(tmp_path, capsys):
    for level in ("train-easy", "train-hard"):
        for module in ("algebra__linear_1d", "algebra__polynomial_roots", "numbers__gcd"):
            path = tmp_path / "v1.0" / level / f"{module}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{level} {module} {n}?\n{n}\n" for n in range(10)))
    words = [
        "mathematics",
        "--input",
        tmp_path / "v1.0",
        "--output_dir",
        tmp_path / "out",
        "--val_percent",
        0,
    ]
    assert run(capsys, *words, "--modules", "algebra__*", "numbers__gcd", "--max_samples", 3)[0] == 0
    asked = [record["messages"][0]["content"] for record in lines(tmp_path / "out" / "train.jsonl")]
    assert len(asked) == 18 and asked[0] == "train-easy algebra__linear_1d 0?"
    assert run(capsys, *words, "--modules", "numbers__gcd", "--overwrite")[0] == 0
    asked = [record["messages"][0]["content"] for record in lines(tmp_path / "out" / "train.jsonl")]
    assert len(asked) == 20 and all("numbers__gcd" in each for each in asked)
    code, _, err = run(capsys, *words, "--modules", "algebra", "--overwrite")
    assert (code, "none of the 6 files is one that was asked for; there are algebra__lin" in err) == (2, True)


def test_choices_become_pairs_of_the_right_answer_and_a_wrong_one(tmp_path, capsys):
    raw = write_rows(tmp_path / "raw.jsonl", [ARC])
    words = ["arc", "--input", raw, "--output_dir", tmp_path, "--val_percent", 0, "--kind", "pairs"]
    assert run(capsys, *words)[0] == 0
    (record,) = lines(tmp_path / "train.jsonl")
    assert record["chosen"] == "The right answer is A: dry palms" and "margin" not in record
    assert record["rejected"].startswith("The right answer is ") and record["rejected"] != record["chosen"]
    assert record["prompt"][0] == {"role": "system", "content": SYSTEM}
    (source,) = parse_sources([tmp_path / "train.jsonl"], ranked=True)
    assert scan(source).faults.count == 0
    assert run(capsys, *words, "--overwrite", "--system", "")[0] == 0
    assert isinstance(lines(tmp_path / "train.jsonl")[0]["prompt"], str)


def test_the_builders_page_names_every_builder():
    page = (Path(__file__).parent.parent / "docs" / "data-sets.md").read_text()
    assert [name for name in RAW if f"data build {name}" not in page and f"`{name}`" not in page] == []
