"""`tutelage data import` writes all or nothing, and touches no file but its own."""

from pathlib import Path

import numpy as np
import pytest
from test_data_import import RECORDS, TOKENIZER, put, run


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    return TOKENIZER.save(place := tmp_path_factory.mktemp("tokenizer")) or place


def everything(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def memmap(path: Path, *tokens: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.array(tokens, "<u2").tofile(path)
    return path


def test_an_import_touches_nothing_but_its_own_files(tmp_path, capsys, tokenizer_dir):
    source = memmap(tmp_path / "out" / "train" / "train.npy", 5, 6, TOKENIZER.eos)
    words = ["--tokenizer", tokenizer_dir, "--output_dir", tmp_path / "out", "--overwrite"]
    before = everything(tmp_path)
    code, _, said = run(capsys, source, *words)
    assert code == 2 and "train.npy lies in" in said and "give another --output_dir" in said
    assert everything(tmp_path) == before
    for name in ("meta.json.old", "shard-00000.json.old", "tokens.bin"):
        (source.parent / name).write_text("mine")
    before = everything(tmp_path)
    beside = memmap(tmp_path / "in" / "train.npy", 7, TOKENIZER.eos)
    assert run(capsys, beside, *words)[0] == 0
    assert before.items() <= everything(tmp_path).items()
    wrong = memmap(tmp_path / "wrong" / "train.npy", 7, TOKENIZER.size)
    before = everything(tmp_path)
    assert "made with another tokenizer" in run(capsys, wrong, *words)[2]
    assert everything(tmp_path) == before
    memmap(tmp_path / "wrong" / "other.npy", 7)
    assert "has several files for train" in run(capsys, tmp_path / "wrong", *words)[2]


def test_shards_without_their_meta_are_not_replaced_unasked(tmp_path, capsys, tokenizer_dir):
    unfinished = tmp_path / "out" / "train" / "shard-00000.json"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_text("{}")
    source = memmap(tmp_path / "in.npy", 5, TOKENIZER.eos)
    words = [source, "--tokenizer", tokenizer_dir, "--output_dir", tmp_path / "out"]
    assert "train exists; give --overwrite" in run(capsys, *words)[2]
    assert run(capsys, *words, "--overwrite")[0] == 0 and not unfinished.exists()


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (
            [{"prompt_tokens": [5], "completion_tokens": [6]}],
            [{"prompt_tokens": [5], "completion_tokens": []}],
        ),
        ({"a": {"train": RECORDS}}, {"a": {"train": ["text"]}}),
    ],
    ids=["tokens", "conversations"],
)
def test_an_import_that_fails_leaves_what_was_there(tmp_path, capsys, good, bad):
    words = ["--allow_pickle", "--output_dir", tmp_path / "out", "--overwrite"]
    assert run(capsys, put(tmp_path / "train.pkl", good), *words)[0] == 0
    before = everything(tmp_path / "out")
    assert "bad row" in run(capsys, put(tmp_path / "train.pkl", bad), *words)[2]
    assert everything(tmp_path / "out") == before


def test_an_import_whose_last_file_is_bad_writes_nothing_and_is_run_again(tmp_path, capsys):
    put(tmp_path / "in" / "train.pkl", [{"prompt_tokens": [5], "completion_tokens": [6]}])
    put(tmp_path / "in" / "validation.pkl", [{"prompt_tokens": [5], "completion_tokens": []}])
    words = [tmp_path / "in", "--allow_pickle", "--output_dir", tmp_path / "out"]
    code, places, said = run(capsys, *words)
    assert code == 2 and "its answer has no token" in said and not places and not (tmp_path / "out").exists()
    put(tmp_path / "in" / "validation.pkl", [{"prompt_tokens": [5], "completion_tokens": [7]}])
    assert run(capsys, *words)[0] == 0
