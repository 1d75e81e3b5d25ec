"""`tutelage data build hh_rlhf` and its kin: what is written, what is held out, what is skipped and why."""

import csv
import gzip
import json
from collections import Counter
from pathlib import Path

import datasets
import pyarrow as pa
import pytest

from tutelage import cli
from tutelage.data.builders.records import Choice, Ranked
from tutelage.data.builders.writing import write as build
from tutelage.data.read import scan
from tutelage.data.sources import parse_sources
from tutelage.text.messages import message_faults


def run(capsys, *words: object) -> tuple[int, str, str]:
    code = 0
    try:
        cli.main(["data", "build", *map(str, words)])
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def hh(question: str, better: str = "Yes.", worse: str = "No.") -> dict:
    start = f"\n\nHuman: {question}\n\nAssistant: "
    return {"chosen": start + better, "rejected": start + worse}


def examples(count: int) -> list[tuple[str, Ranked | str]]:
    return [
        (f"row {n}", Ranked([{"role": "user", "content": f"Question {n // 2}?"}], [f"good {n}", "bad"]))
        for n in range(count)
    ]


def test_defect_4_9_13_a_split_holds_only_its_own_rows(tmp_path):
    """The reference pickled a view of a split, which carried the whole data set into every file."""
    counts = build(examples(1000), [], tmp_path, choice=Choice(kind="pairs"), val_percent=5, seed=1)
    train, val = lines(tmp_path / "train.jsonl"), lines(tmp_path / "val.jsonl")
    assert counts.written == {"train": len(train), "val": len(val)} and len(train) + len(val) == 1000
    assert 20 < len(val) < 90
    chosen = [record["chosen"] for record in train + val]
    assert sorted(chosen) == sorted(f"good {n}" for n in range(1000))
    trained = (tmp_path / "train.jsonl").read_text()
    assert not any(json.dumps(record["chosen"]) in trained for record in val)
    asked = [{record["prompt"] for record in split} for split in (train, val)]
    assert not asked[0] & asked[1], "equal prompts stay together"


def test_what_is_held_out_depends_on_the_seed_and_on_nothing_else(tmp_path):
    written = {}
    for name, rows, seed in [("a", examples(400), 1), ("b", examples(400)[::-1], 1), ("c", examples(400), 2)]:
        build(rows, [], tmp_path / name, choice=Choice(kind="pairs"), val_percent=10, seed=seed)
        written[name] = {record["prompt"] for record in lines(tmp_path / name / "val.jsonl")}
    assert written["a"] == written["b"] != written["c"]


def test_five_percent_are_five_percent(tmp_path):
    many = [
        (f"row {n}", Ranked([{"role": "user", "content": f"Question {n}?"}], ["good", "bad"]))
        for n in range(20_000)
    ]
    counts = build(many, [], tmp_path, choice=Choice(kind="pairs"), val_percent=5, seed=1)
    assert abs(counts.written["val"] - 1000) < 100  # three standard deviations are 92


def test_a_prompt_is_written_once_where_only_prompts_are(tmp_path):
    counts = build(examples(10), [], tmp_path, choice=Choice(kind="prompts"), val_percent=0, seed=1)
    asked = [record["messages"][0]["content"] for record in lines(tmp_path / "train.jsonl")]
    assert asked == [f"Question {n}?" for n in range(5)]
    assert counts.skipped == {"its prompt was there before": 5}


def test_what_is_drawn_differs_from_prompt_to_prompt_and_not_from_run_to_run(tmp_path):
    prompts = [[{"role": "user", "content": f"Question {n}?"}] for n in range(200)]
    rows = [("row", Ranked(prompt, list("abcd"), [3.0, 2.0, 1.0, 0.0])) for prompt in prompts]
    for name in "xy":
        build(rows, [], tmp_path / name, choice=Choice(kind="pairs"), val_percent=0, seed=1)
    written = lines(tmp_path / "x" / "train.jsonl")
    counts = Counter(record["rejected"] for record in written)
    assert set(counts) == set("bcd") and min(counts.values()) > 40
    assert written == lines(tmp_path / "y" / "train.jsonl")


def test_prompts_of_a_given_validation_set_leave_the_training_set(tmp_path, capsys):
    train = write_rows(tmp_path / "train.jsonl.gz", [hh("One?"), hh("Two?"), hh("Three?")])
    val = write_rows(tmp_path / "test.jsonl.gz", [hh("Two?", "Perhaps.")])
    out = tmp_path / "out"
    words = ["hh_rlhf", "--input", train, "--val_input", val, "--output_dir", out]
    code, printed, said = run(capsys, *words)
    assert (code, printed.split()) == (0, [str(out / "train.jsonl"), str(out / "val.jsonl")])
    assert [record["prompt"] for record in lines(out / "train.jsonl")] == ["One?", "Three?"]
    assert lines(out / "val.jsonl") == [{"prompt": "Two?", "chosen": "Perhaps.", "rejected": "No."}]
    assert "4 read, 3 kept: 2 to train, 1 to val" in said
    assert f"1 skipped: its prompt is held out; the first is {train}:2" in said


def test_whatever_is_built_can_be_read_by_what_learns_from_it(tmp_path, capsys):
    turns = "\n\nHuman: A?\n\nAssistant: B. \n\nHuman: C?\n\nAssistant:"
    rows = [hh("One?"), {"chosen": f"{turns} D.", "rejected": f"{turns} E. \u2028 \x0b F."}]
    raw = write_rows(tmp_path / "hh.jsonl", rows)
    for kind in ("pairs", "chosen", "prompts"):
        words = ["--input", raw, "--kind", kind, "--val_percent", 0, "--output_dir", tmp_path / kind]
        assert run(capsys, "hh_rlhf", *words)[0] == 0
        (source,) = parse_sources([tmp_path / kind / "train.jsonl"], ranked=kind == "pairs")
        if kind == "prompts":
            prompts = [line["messages"] for line in lines(tmp_path / kind / "train.jsonl")]
            assert [message_faults(messages, answered=False) for messages in prompts] == [None, None]
        else:
            assert (len(scan(source)), scan(source).faults.count) == (2, 0)


def test_what_exists_is_not_replaced_unasked(tmp_path, capsys):
    raw = write_rows(tmp_path / "raw" / "a.jsonl", [hh("One?")])
    words = ["hh_rlhf", "--input", raw, "--output_dir", tmp_path, "--val_percent", 0]
    (tmp_path / "val.jsonl").write_text("old")
    code, _, err = run(capsys, *words)
    assert (code, "val.jsonl exists; give --overwrite to replace it" in err) == (2, True)
    assert (tmp_path / "val.jsonl").read_text() == "old"
    assert run(capsys, *words, "--overwrite")[0] == 0
    assert not (tmp_path / "val.jsonl").exists(), "what was held out before does not belong to this build"
    own = write_rows(tmp_path / "own" / "train.jsonl", [hh("One?")])
    code, _, err = run(capsys, "hh_rlhf", "--input", own, "--output_dir", own.parent, "--overwrite")
    assert (code, "would be written over, and is read" in err) == (2, True)


def test_every_form_of_file_gives_the_same_rows(tmp_path, capsys):
    rows = [hh(f"Question {n}?") for n in range(3)]
    write_rows(tmp_path / "a" / "deep" / "x.jsonl", rows)
    write_rows(tmp_path / "b" / "x.jsonl.gz", rows)
    (tmp_path / "c").mkdir()
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "c" / "x.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "d"))
    plain = (tmp_path / "a" / "deep" / "x.jsonl").read_bytes()
    (tmp_path / "x.jsonl.zst").write_bytes(pa.compress(plain, codec="zstd", asbytes=True))
    (tmp_path / "x.ndjson").write_bytes(plain)
    with (tmp_path / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["chosen", "rejected"], *([row["chosen"], row["rejected"]] for row in rows)]
        )
    written = []
    others = {name: tmp_path / f"x.{name}" for name in ("jsonl.zst", "ndjson", "csv")}
    givens = {name: tmp_path / name for name in "abcd"} | others
    for name, given in {**givens, "local": f"local:{tmp_path / 'd'}", "glob": tmp_path / "*.ndjson"}.items():
        words = [
            "--output_dir",
            tmp_path / "out" / name,
            "--cache_dir",
            tmp_path / "cache",
            "--val_percent",
            0,
        ]
        assert run(capsys, "hh_rlhf", "--input", given, *words)[0] == 0
        written.append((tmp_path / "out" / name / "train.jsonl").read_bytes())
    assert len(set(written)) == 1 and len(written[0].splitlines()) == 3
    words = ["--input", tmp_path / "a", "--output_dir", tmp_path / "out" / "e", "--overwrite"]
    words += ["--val_input", f"local:{tmp_path / 'd'}", "--cache_dir", tmp_path / "cache"]
    code, _, err = run(capsys, "hh_rlhf", *words, "--val_input_splits", "test")
    assert code == 2 and "3 skipped: its prompt is held out" in err


def test_broken_lines_are_counted_and_torn_files_refused(tmp_path, capsys):
    raw = write_rows(tmp_path / "a.jsonl", [hh("One?")])
    raw.write_bytes(raw.read_bytes() + b'\n{"chosen": \n[1]\n\xff\n')
    words = ["--output_dir", tmp_path / "out", "--val_percent", 0]
    code, _, said = run(capsys, "hh_rlhf", "--input", raw, *words)
    assert code == 0
    assert "4 read, 1 kept: 1 to train" in said
    assert f"2 skipped: not JSON; the first is {raw}:3" in said
    assert f"1 skipped: not an object; the first is {raw}:4" in said
    torn = tmp_path / "b.jsonl.gz"
    torn.write_bytes(gzip.compress(raw.read_bytes() * 50)[:-20])
    code, _, err = run(capsys, "hh_rlhf", "--input", torn, *words, "--overwrite")
    assert (code, f"{torn} cannot be read to its end" in err) == (2, True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train.jsonl"], "of the build before"
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    code, _, err = run(capsys, "hh_rlhf", "--input", tmp_path / "c.parquet", *words, "--overwrite")
    assert (code, "c.parquet cannot be read" in err) == (2, True)


def test_stackexchange_is_built_from_a_folder_of_parquet_files(tmp_path, capsys):
    said = ["Yes, " + "a word " * 8, "<p>Maybe,\n " + "a word " * 8 + "</p>", "No."]
    rows = [
        {
            "qid": n,
            "question": f"<p>{'What is question ' * 3} {n}?</p>",
            "answers": [{"pm_score": score, "text": text} for score, text in enumerate(said[: 3 - n % 2])],
        }
        for n in range(4)
    ]
    (tmp_path / "raw" / "site").mkdir(parents=True)
    datasets.Dataset.from_list(rows[:2]).to_parquet(tmp_path / "raw" / "site" / "0.parquet")
    datasets.Dataset.from_list(rows[2:]).to_parquet(tmp_path / "raw" / "site" / "1.parquet")
    words = ["stackexchange", "--input", tmp_path / "raw", "--output_dir", tmp_path / "out"]
    assert run(capsys, *words, "--val_percent", 0)[0] == 0
    record = {"answers": ["Maybe, " + ("a word " * 8).strip(), said[0].strip()], "scores": [1, 0]}
    written = lines(tmp_path / "out" / "train.jsonl")
    assert [{**line, "prompt": ""} for line in written] == [{"prompt": "", **record}] * 4
    code, _, err = run(capsys, *words, "--overwrite", "--min_words", 3, "--min_answers", 3)
    assert code == 2 and "nothing is left" in err and "4 skipped: fewer than 3 answers of different" in err
    code, _, err = run(capsys, *words, "--min_answers", 5, "--max_answers", 4)
    assert (code, "must be at least 2 and at most max_answers" in err) == (2, True)


def test_piqa_and_ultrafeedback_are_built(tmp_path, capsys):
    goals = [{"goal": f"Do {n}", "sol1": "one way", "sol2": "another"} for n in range(3)]
    raw = write_rows(tmp_path / "train.jsonl", goals)
    (tmp_path / "train-labels.lst").write_text("0\n1\n0\n")
    words = ["piqa", "--input", raw, "--output_dir", tmp_path / "piqa", "--val_percent", 0]
    assert run(capsys, *words)[0] == 0
    chosen = [record["chosen"] for record in lines(tmp_path / "piqa" / "train.jsonl")]
    assert chosen == ["one way", "another", "one way"]
    completions = [{"response": f"{n}", "overall_score": n, "fine-grained_score": -n} for n in range(4)]
    raw = write_rows(tmp_path / "u.jsonl", [{"instruction": "Say it.", "completions": completions}])
    words = ["ultrafeedback", "--input", raw, "--output_dir", tmp_path / "out", "--val_percent", 0]
    for flags, best in [([], "3"), (["--score", "fine_grained"], "0")]:
        assert run(capsys, *words, *flags, "--overwrite")[0] == 0
        (record,) = lines(tmp_path / "out" / "train.jsonl")
        assert record["prompt"] == "Say it." and record["answers"][0] == best
    assert run(capsys, *words, "--kind", "pairs", "--overwrite")[0] == 0
    (record,) = lines(tmp_path / "out" / "train.jsonl")
    assert record["margin"] == 3 - int(record["rejected"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--input", "some/where"], "some/where looks like a data set of the hub, which needs a split"),
        (["--input", "{}"], "holds no file that ends in .jsonl, .ndjson, .json, .parquet, .csv, .tsv"),
        (["--input", "{}/a.txt"], "a.txt cannot be read: a builder reads jsonl, json, parquet, csv by"),
        (["--input", "{}/many"], "many has files of the splits test, train; choose with --input_splits"),
        (
            ["--input", "a.jsonl", "--val_percent", "100"],
            "val_percent is 100, must be 0 or more and below 100",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, capsys, words, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text("x")
    if "{}/many" in words:
        for split in ("train", "test"):
            write_rows(tmp_path / "empty" / "many" / f"{split}.jsonl", [])
    words = [word.format(tmp_path / "empty") for word in words]
    code, _, err = run(capsys, "hh_rlhf", *words, "--output_dir", tmp_path / "out")
    assert (code, message in err) == (2, True), err


def test_nothing_left_is_refused_with_the_reasons(tmp_path, capsys):
    raw = write_rows(tmp_path / "a.jsonl", [hh("One?", "Same.", "Same. ")])
    code, _, err = run(capsys, "hh_rlhf", "--input", raw, "--output_dir", tmp_path / "out")
    assert code == 2
    assert "nothing is left to train on:" in err and "1 skipped: fewer than two different answers" in err
    assert not any((tmp_path / "out").iterdir())
