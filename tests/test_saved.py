"""Data sets saved by the `datasets` library become JSON lines, once; the rest is refused in words."""

import json
import subprocess
import sys

import datasets
import huggingface_hub
import pytest

from tutelage.data.paths import find_data
from tutelage.data.read import scan
from tutelage.data.sources import parse_sources
from tutelage.errors import UserError

ROWS = [{"messages": [{"role": "user", "content": "Grüße 👋"}, {"role": "assistant", "content": "你好"}]}] * 3


def files(paths, splits, tmp_path, said=None):
    log = (said if said is not None else []).append
    found = find_data(paths, splits, cache_dir=tmp_path / "cache", log=log, flag="--train_data_splits")
    return [file.path for path in found for file in path.files]


def test_a_saved_data_set_becomes_a_file_of_its_rows_once(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    said = []
    first = files([f"local:{tmp_path / 'saved'}"], [], tmp_path, said)
    assert files([f"local:{tmp_path / 'saved'}"], ["-"], tmp_path, said) == first and len(said) == 1
    lines = first[0].read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == ROWS and "你好" in lines[0]


def test_a_split_of_a_saved_dictionary_is_chosen(tmp_path):
    saved = datasets.DatasetDict(
        train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(ROWS[:1])
    )
    saved.save_to_disk(str(tmp_path / "saved"))
    (file,) = files([f"local:{tmp_path / 'saved'}"], ["test"], tmp_path)
    assert len(file.read_text().splitlines()) == 1
    with pytest.raises(
        UserError, match=r"saved has the splits train, test; choose with --train_data_splits$"
    ):
        files([f"local:{tmp_path / 'saved'}"], [], tmp_path)


@pytest.mark.parametrize(
    ("paths", "splits", "message"),
    [
        (
            ["a.jsonl"],
            ["train"],
            "--train_data_splits: a.jsonl is a file and has no split train; write - for it",
        ),
        (
            ["a.jsonl", "b.txt"],
            ["-"],
            "--train_data_splits has 1 values for 2 paths; give one each, - for none",
        ),
        (
            ["org/name"],
            [],
            "org/name looks like a data set of the hub, which needs a split: "
            "give --train_data_splits, train say",
        ),
    ],
)
def test_mistakes_are_named(paths, splits, message, tmp_path):
    with pytest.raises(UserError) as error:
        files(paths, splits, tmp_path)
    assert str(error.value) == message


def test_a_folder_that_is_no_data_set_and_a_hub_out_of_reach_are_refused(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty is not a data set that save_to_disk wrote"):
        files([f"local:{tmp_path / 'empty'}"], [], tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="^nobody/nothing, split train, cannot be had from the hub: "):
        files(["nobody/nothing"], ["train"], tmp_path)


def test_a_connection_that_breaks_off_is_told_in_words(tmp_path, monkeypatch):
    """The errors of the library that huggingface_hub asks with, which are no OSError."""

    assert not issubclass(huggingface_hub.errors.HTTPError, OSError)

    def breaks(*_, **__):
        raise huggingface_hub.errors.HTTPError("the peer closed the connection")

    monkeypatch.setattr(datasets, "load_dataset", breaks)
    with pytest.raises(UserError, match="org/name, split train, cannot be had from the hub: "):
        files(["org/name"], ["train"], tmp_path)


def test_a_configuration_of_a_data_set_follows_a_colon(tmp_path, monkeypatch):
    asked = []

    def load_dataset(name, config, *, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    files(["openai/gsm8k:main"], ["train[:10%]"], tmp_path)
    files(["org/name"], ["test"], tmp_path)
    assert asked == [("openai/gsm8k", "main", "train[:10%]"), ("org/name", None, "test")]


def test_a_saved_directory_needs_no_prefix_and_its_faults_name_its_rows(tmp_path):
    datasets.Dataset.from_list([*ROWS, {"messages": []}]).save_to_disk(str(tmp_path / "saved"))
    given = str(tmp_path / "saved")
    (found,) = find_data([given], [], cache_dir=tmp_path, log=lambda _: None, flag="--train_data_splits")
    (source,) = parse_sources([found])
    assert scan(source).faults.named == [f"{given} row 4: messages is empty"]


def damaged(directory, name, content):
    datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)).save_to_disk(str(directory))
    place = directory / name
    place.write_bytes(content if isinstance(content, bytes) else content(place.read_bytes()))


DAMAGES = [
    ("dataset_dict.json", b"{}"),
    ("dataset_dict.json", b"[]"),
    ("train/state.json", b"{}"),
    ("train/state.json", b"[]"),
    ("train/state.json", b"7"),
    ("train/dataset_info.json", b"[]"),
    ("train/dataset_info.json", b'{"features": 5}'),
    ("train/dataset_info.json", b"{"),
    ("train/data-00000-of-00001.arrow", lambda whole: whole[: len(whole) // 2]),
    ("train/data-00000-of-00001.arrow", lambda whole: b""),
]


@pytest.mark.parametrize(("name", "content"), DAMAGES, ids=range(len(DAMAGES)))
def test_a_damaged_data_set_is_refused_by_its_name(tmp_path, name, content):
    damaged(tmp_path / "saved", name, content)
    with pytest.raises(UserError, match="saved.* (is damaged|is not a data set that save_to_disk wrote)"):
        files([f"local:{tmp_path / 'saved'}"], ["train"], tmp_path)
    assert not list(tmp_path.glob("cache/*/*"))


SCANNED = """
import random, sys
from pathlib import Path
from tutelage.data.paths import find_data
from tutelage.errors import UserError
place, told = Path(sys.argv[1]), 0
arrow = place / "data-00000-of-00001.arrow"
whole = arrow.read_bytes()
for at in range(len(whole) // 3, len(whole) - 2, 7):
    (changed := bytearray(whole))[at : at + 2] = b"\\xff\\x7f" if at % 2 else b"\\0\\0"
    arrow.write_bytes(changed)
    try:
        find_data([f"local:{place}"], [], cache_dir=place / str(at), log=lambda _: None, flag="--x_splits")
    except UserError:
        told += 1
print(told)
"""


def test_bytes_that_are_wrong_end_in_no_crash(tmp_path):
    """Run apart: what it guards against is a segmentation fault."""
    datasets.Dataset.from_list(ROWS * 5).save_to_disk(str(tmp_path / "saved"))
    ended = subprocess.run(
        [sys.executable, "-c", SCANNED, tmp_path / "saved"], capture_output=True, text=True
    )
    assert not ended.returncode and int(ended.stdout.split()[-1]) > 10, ended.stderr[-2000:]
    assert not list(tmp_path.rglob("*.partial"))
