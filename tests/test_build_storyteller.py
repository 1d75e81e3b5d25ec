"""`tutelage data build storyteller`: what is written, what is held out, and that it goes on after a stop."""

import json
from pathlib import Path

import pytest
from story_shards import item, write_shards

from tutelage import cli
from tutelage.data.stories import storyteller_build
from tutelage.data.stories.storyteller import conversation_of
from tutelage.data.stories.storyteller_build import Shard, plan_shards, write_shard


def run(capsys, *words: object) -> tuple[int, str, str]:
    code = 0
    try:
        cli.main(["data", "build", "storyteller", *map(str, words)])
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_first_shard_is_held_out_and_the_rest_trained_on(tmp_path, capsys):
    write_shards(tmp_path / "TinyStories_all_data", 2, 3, 1)
    out = tmp_path / "out"
    code, printed, said = run(capsys, "--data_dir", tmp_path, "--output_dir", out)
    assert code == 0
    names = ["train.jsonl", "train_stories.jsonl", "val.jsonl", "val_stories.jsonl"]
    assert sorted(printed.split()) == [str(out / name) for name in names]
    assert "4 stories to train on, 2 held out" in said
    train = [conversation_of(item(number)) for number in (100, 101, 102, 200)]
    val = [conversation_of(item(number)) for number in (0, 1)]
    assert lines(out / "train.jsonl") == [{"messages": messages} for messages in train]
    assert lines(out / "val.jsonl") == [{"messages": messages} for messages in val]
    assert lines(out / "train_stories.jsonl") == [{"text": messages[1]["content"]} for messages in train]
    assert lines(out / "val_stories.jsonl") == [{"text": messages[1]["content"]} for messages in val]
    assert sorted(path.name for path in out.iterdir()) == sorted([*names, "storyteller.json"])
    code, again, said = run(capsys, "--data_dir", tmp_path, "--output_dir", out)
    assert (code, again, said) == (0, printed, f"{out} is already built\n")


def test_of_a_single_shard_a_share_is_held_out(tmp_path, capsys):
    """The reference held out all of it, and then looped for ever over no training data."""
    (path,) = write_shards(tmp_path, 10)
    out = tmp_path / "out"
    words = ["--data_dir", tmp_path, "--output_dir", out, "--num_data_workers", 1]
    assert run(capsys, *words, "--val_share", 0.2)[0] == 0
    assert [len(lines(out / name)) for name in ("train.jsonl", "val.jsonl")] == [8, 2]
    assert lines(out / "val.jsonl")[0]["messages"] == conversation_of(item(4))
    path.write_text(json.dumps([item(0)]))
    code, _, err = run(capsys, *words, "--overwrite")
    assert (code, "has 1 stories to train on and 0 to hold out; at least one of each" in err) == (2, True)


def test_finished_shards_are_not_done_again_and_a_changed_one_is(tmp_path, monkeypatch):
    first, second = write_shards(tmp_path, 2, 3)
    shards = plan_shards([first, second], val_share=0.5, skip_bad_rows=False)
    parts = tmp_path / "parts"
    parts.mkdir()
    counts = write_shard(parts, shards[1])
    monkeypatch.setattr(storyteller_build, "items_of", lambda path: pytest.fail("read again"))
    assert write_shard(parts, shards[1]) == counts
    monkeypatch.undo()
    second.write_text(json.dumps([item(0)]))
    assert write_shard(parts, shards[1]).train == 1


def test_a_shard_that_was_left_half_written_is_written_anew(tmp_path):
    (path,) = write_shards(tmp_path, 2)
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "data00.train.chats.jsonl").write_text('{"messages": [')
    write_shard(parts, Shard(path, 0, False))
    assert len(lines(parts / "data00.train.chats.jsonl")) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_a_fault_in_a_worker_reaches_the_person(tmp_path, capsys, workers):
    paths = write_shards(tmp_path, 2, 2, 2)
    paths[1].write_text(json.dumps([item(0), {"text": "x"}]))
    out = tmp_path / "out"
    words = ["--data_dir", tmp_path, "--output_dir", out, "--num_data_workers", workers]
    code, printed, err = run(capsys, *words)
    assert (code, printed) == (2, "")
    assert f"error: {paths[1]}, item 2: not an object with a story; mend the file, or count and skip" in err
    assert not (out / "train.jsonl").exists()
    code, _, err = run(capsys, *words, "--skip_bad_rows")
    assert code == 0
    assert f"1 skipped, the first of them {paths[1]}, item 2: not an object with a story" in err
    assert len(lines(out / "train.jsonl")) == 3


def test_empty_stories_are_skipped_aloud(tmp_path, capsys):
    paths = write_shards(tmp_path, 1, 1)
    paths[1].write_text(json.dumps([item(0, story=" "), item(1)]))
    code, _, err = run(capsys, "--data_dir", tmp_path, "--output_dir", tmp_path / "out")
    assert code == 0
    assert f"1 skipped, the first of them {paths[1]}, item 1: the story is empty" in err


def test_data_built_from_other_shards_is_not_replaced_unasked(tmp_path, capsys):
    write_shards(tmp_path, 1, 1)
    words = ["--data_dir", tmp_path, "--output_dir", tmp_path / "out", "--num_data_workers", 1]
    assert run(capsys, *words)[0] == 0
    write_shards(tmp_path, 1, 2)
    code, _, err = run(capsys, *words)
    assert (code, "was built from other shards or with other settings; give --overwrite" in err) == (2, True)
    assert run(capsys, *words, "--overwrite")[0] == 0
    assert len(lines(tmp_path / "out" / "train.jsonl")) == 2


def test_mistakes_are_named(tmp_path, capsys):
    code, _, err = run(capsys, "--val_share", 0, "--num_data_workers", 0)
    assert code == 2
    assert "val_share is 0.0, must be above 0 and at most 0.5" in err
    assert "num_data_workers is 0, must be at least 1" in err
    code, _, err = run(capsys, "--data_dir", tmp_path)
    assert (code, "`tutelage data download tinystories` fetches them" in err) == (2, True)


def test_the_number_of_workers_changes_nothing(tmp_path, capsys):
    write_shards(tmp_path, 3, 2, 4)
    for workers in (1, 3):
        out = tmp_path / f"out{workers}"
        assert run(capsys, "--data_dir", tmp_path, "--output_dir", out, "--num_data_workers", workers)[0] == 0
    for name in storyteller_build.NAMES.values():
        assert (tmp_path / "out1" / name).read_bytes() == (tmp_path / "out3" / name).read_bytes()
