"""Commands on data of other kinds: converted, renamed, mixed by weight, and read while training."""

import csv
import gzip
import json
from pathlib import Path

import pytest
from tiny_pairs import pair, write_records
from tiny_runs import differences, leavings, material, metrics, refused, run, watched

CHAT = [{"role": "user", "content": "q é"}, {"role": "assistant", "content": "a"}]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


def converted(tmp_path, content: str, *words, name: str = "a.jsonl") -> list:
    (tmp_path / name).write_text(content, encoding="utf-8")
    out = tmp_path / "out" / "b.jsonl"
    ended = run("data", "convert", tmp_path / name, "--output", out, "--cache_dir", tmp_path / "c", *words)
    assert ended.code == 0, ended.err
    assert ended.out == f"{out}\n"
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


USER, ASSISTANT = [{"role": "user", "content": "q"}], [{"role": "assistant", "content": "a"}]
OTHER = [{"role": "assistant", "content": "b"}]
FORMS = [
    ({"instruction": "q", "output": "a"}, (), {"messages": USER + ASSISTANT}),
    ({"messages": USER + ASSISTANT, "id": 3}, ("--to", "prompts"), {"prompt": USER}),
    ({"prompt": "q"}, (), {"prompt": USER}),
    ({"story": "once"}, (), {"text": "once"}),
    (
        {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 2},
        (),
        {"prompt": USER, "chosen": ASSISTANT, "rejected": OTHER, "margin": 2.0},
    ),
    (
        {"chosen": USER + ASSISTANT, "rejected": USER + OTHER},
        (),
        {"prompt": USER, "chosen": ASSISTANT, "rejected": OTHER},
    ),
    ({"prompt": "q", "answers": ["a", "b"], "scores": [2, 1]}, (), {"prompt": USER, "chosen": ASSISTANT}),
    (
        {"prompt": "q", "answers": ["a", "b", "c"], "scores": [2, 1, 1]},
        (),
        {"prompt": USER, "answers": [ASSISTANT, OTHER], "scores": [2.0, 1.0, 1.0]},
    ),
    (
        {"prompt": "q", "completion": "a", "label": False},
        (),
        {"prompt": USER, "completion": ASSISTANT, "label": False},
    ),
]


@pytest.mark.parametrize(("record", "words", "wanted"), FORMS, ids=range(len(FORMS)))
def test_records_become_the_one_shape_of_their_kind(tmp_path, record, words, wanted):
    (got,) = converted(tmp_path, json.dumps(record) + "\n", *words)
    assert {key: got[key][:2] if key == "answers" else got[key] for key in wanted} == wanted
    assert converted(tmp_path, json.dumps(got) + "\n", "--overwrite") == [got]


def test_what_cannot_be_converted_is_named_or_counted(tmp_path):
    good, path = json.dumps({"instruction": "q", "output": "a"}), tmp_path / "a.jsonl"
    path.write_text(f"{good}\n{{\n{good}\n")
    words = ["data", "convert", path, "--output", tmp_path / "b.jsonl"]
    assert f"{path}:2: not JSON" in refused(run(*words))
    assert not list(tmp_path.glob("b.jsonl*"))
    ended = run(*words, "--skip_bad_rows")
    assert "2 rows of the shape alpaca; 1 bad ones left out" in ended.err and not ended.code
    assert "exists; give --overwrite" in refused(run(*words))
    assert "is read; give another" in refused(
        run("data", "convert", path, "--output", path, "--overwrite", "--skip_bad_rows")
    )
    written = (tmp_path / "b.jsonl").read_bytes()
    path.write_text("{\n{\n")
    told = refused(run(*words, "--skip_bad_rows", "--overwrite"))
    assert "none of 2 rows can be used, so none is written" in told and f"{path}:1: not JSON" in told
    assert (tmp_path / "b.jsonl").read_bytes() == written
    path.write_text(good)
    assert "only a template makes texts of" in refused(
        run(*words, "--to", "text", "--skip_bad_rows", "--overwrite")
    )


def test_a_conversion_is_named_for_what_it_is_and_never_over_what_it_reads(tmp_path):
    path, out = tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"prompt": "q", "completion": "a"}).encode()))
    words = ["data", "convert", path, "--cache_dir", tmp_path / "c", "--overwrite", "--output"]
    for name in ("b.parquet", "b.csv", "b.json", "b.jsonl.zst", "b"):
        assert "ends in one of .jsonl, .ndjson, .jsonl.gz" in refused(run(*words, tmp_path / name))
    before = path.read_bytes()
    assert "would be written over, and is read" in refused(run(*words, path))
    assert path.read_bytes() == before
    ended = run(*words, out)
    assert not ended.code, ended.err
    assert json.loads(gzip.decompress(out.read_bytes())) == {"messages": USER + ASSISTANT}


def test_blank_replies_are_told_of(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"instruction": "q", "output": ""}\n{"instruction": "q", "output": "a"}\n')
    ended = run("data", "convert", path, "--output", tmp_path / "b.jsonl")
    assert "2 rows of the shape alpaca; 1 rows end with a blank reply" in ended.err and not ended.code


def test_the_flag_for_shapes_is_called_by_its_name_there(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"instruction": "q", "output": "a", "messages": CHAT}))
    told = refused(run("data", "convert", path, "--output", tmp_path / "b.jsonl"))
    assert told.strip().endswith("say which is meant with --input_shapes")


def test_a_run_on_renamed_columns_of_csv_is_that_on_the_conversations(made, tmp_path):
    chats = [json.loads(line)["messages"] for line in (made.place / "chats.jsonl").read_text().splitlines()]
    plain = [chat for chat in chats if [m["role"] for m in chat] == ["user", "assistant"]] or [CHAT] * 8
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in plain))
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["question", "answer"])
        rows.writerows([message["content"] for message in chat] for chat in plain)
    settings = {"train_steps": 2, "lr": 1e-3}
    assert not run(*made.sft(tmp_path / "1", **settings, train_data_paths=tmp_path / "a.jsonl")).code
    names = ["--data_fields", "question=instruction", "answer=output"]
    ended = run(*made.sft(tmp_path / "2", **settings, train_data_paths=tmp_path / "a.csv"), *names)
    assert not ended.code, ended.err
    assert metrics(tmp_path / "1") == metrics(tmp_path / "2")


@pytest.mark.parametrize("stage", ["sft", "pretrain"])
def test_streaming_interrupted_and_resumed_is_unbroken(made, tmp_path, monkeypatch, stage):
    """14 steps of 4 samples over 20 conversations, read in windows of 7; or of rows over 30 texts."""
    watch, whole, broken = watched(monkeypatch), tmp_path / "whole" / "out", tmp_path / "broken" / "out"
    settings = {
        "train_steps": 14,
        "num_loader_workers": 2,
        "shuffle_buffer_size": 7,
        "gradient_accum_steps": 2,
    }

    def words(out):
        return getattr(made, stage)(out, "--streaming", **settings)

    ended = run(*words(whole))
    assert not ended.code, ended.err
    assert "optimizer steps" in ended.err and "read while training" in ended.err
    unbroken, watch.ids = watch.ids, {}
    watch.signals = {5: 2, 9: 2}
    assert run(*words(broken)).code == 130
    assert run(*words(broken), "--resume").code == 130
    assert not run(*words(broken), "--resume").code
    assert watch.ids == unbroken
    assert differences(leavings(whole), leavings(broken)) == []


def test_streaming_is_refused_where_it_cannot_be(made, tmp_path):
    words = made.sft(tmp_path / "out", "--dry_run")
    assert "streaming needs train_steps" in refused(run(*words, "--streaming"))
    assert "shuffle_buffer_size does nothing without streaming" in refused(
        run(*words, "--shuffle_buffer_size", "9")
    )
    path = write_records(tmp_path, "pairs", [pair(number) for number in range(4)])
    words = made.sft(tmp_path / "out", "--streaming", train_data_paths=path, train_steps=2)
    assert "streaming is for sft and pretrain" in refused(run("dpo", *words[1:]))


@pytest.mark.parametrize("words", [(), ("--streaming",)])
def test_a_path_of_chats_and_texts_is_refused_with_a_file_of_each(made, tmp_path, words):
    (tmp_path / "a.jsonl").write_bytes(Path(made.chats.removeprefix("jsonl:")).read_bytes())
    (tmp_path / "b.jsonl").write_text('{"text": "Once upon a time."}\n' * 3)
    path = f"jsonl:{tmp_path}/*.jsonl"
    told = refused(run(*made.sft(tmp_path / "out", *words, train_data_paths=path, train_steps=2)))
    assert f"{tmp_path}/a.jsonl and {tmp_path}/b.jsonl hold different things" in told


def test_a_mixture_says_how_often_it_passes_each_path(made, tmp_path):
    more = [made.held_out, "--train_data_weights", "1", "1", "--dry_run"]
    words = made.sft(tmp_path / "out")
    at = words.index("--train_data_paths") + 2
    ended = run(*words[:at], *more, *words[at:])
    assert not ended.code, ended.err
    assert f"train data: {made.chats}: 50.0% of the samples, 0.7 passes an epoch" in ended.err
    assert f"train data: {made.held_out}: 50.0% of the samples, 2.2 passes an epoch" in ended.err
    short = refused(run(*words, "--train_data_weights", "1", "1"))
    assert "train_data_weights has 2 numbers for 1 train_data_paths" in short
