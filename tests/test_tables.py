"""Parquet, CSV, JSON arrays and compressed lines give the rows they hold, named as people find them."""

import gzip
import json
from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_data import refusal

from tutelage.data.dataset import encode_paths
from tutelage.data.paths import files_of, find_data, form_of
from tutelage.data.read import load_rows, sample_together, scan
from tutelage.data.sources import parse_sources
from tutelage.data.store import SampleStore
from tutelage.data.tables import table_rows

CHATS = [
    [{"role": "user", "content": f"q{i} é👋\n"}, {"role": "assistant", "content": "a"}] for i in range(3)
]
RECORDS = [{"messages": each} for each in CHATS]


def find(*paths, splits=(), **options):
    return find_data(list(map(str, paths)), splits, log=lambda _: None, flag="--train_data_splits", **options)


def rows_of(*paths, cache, **options) -> list:
    read = []
    for source in parse_sources(find(*paths, cache_dir=cache, **options)):
        rows = scan(source)
        rows.faults.refuse()
        read += load_rows(source, rows.offsets)
    return read


def zst(path: Path, content: bytes) -> None:
    with pa.output_stream(str(path), compression="zstd") as stream:
        stream.write(content)


def lines(records=RECORDS) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    here = tmp_path_factory.mktemp("tables")
    pq.write_table(pa.Table.from_pylist(RECORDS), here / "a.parquet")
    (here / "b.json").write_text("\ufeff" + json.dumps(RECORDS, indent=2), encoding="utf-8")
    (here / "c.json").write_bytes(lines())  # lines, as many call .json
    (here / "d.jsonl.gz").write_bytes(gzip.compress(lines()[:100]) + gzip.compress(lines()[100:]))
    zst(here / "e.ndjson.zst", lines())
    (here / "f.JSON.gz").write_bytes(gzip.compress(json.dumps(RECORDS).encode()))
    return here


@pytest.mark.parametrize("name", ["a.parquet", "b.json", "c.json", "d.jsonl.gz", "e.ndjson.zst", "f.JSON.gz"])
def test_every_kind_of_file_gives_the_same_rows(place, name, tmp_path):
    assert rows_of(place / name, cache=tmp_path) == CHATS
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert rows_of(place / name, cache=tmp_path) == CHATS
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_what_changed_is_written_out_again(tmp_path):
    path = tmp_path / "a.json"
    for count in (1, 2):
        path.write_text(json.dumps(RECORDS[:count]))
        assert len(rows_of(path, cache=tmp_path)) == count


def test_nulls_and_values_json_has_no_form_for_pass_through_parquet(tmp_path):
    records = [
        {"instruction": "q", "input": None, "output": "a", "day": date(2024, 1, 2), "cost": Decimal("1.5")},
        {"instruction": "r", "input": "i", "output": None, "image": b"\xff\x00"},
    ]
    names = sorted({key for record in records for key in record})
    pq.write_table(
        pa.Table.from_pylist([{n: r.get(n) for n in names} for r in records]), tmp_path / "a.parquet"
    )
    (source,) = parse_sources(find(tmp_path / "a.parquet", cache_dir=tmp_path))
    rows = scan(source)
    assert rows.faults.named == [f"{tmp_path}/a.parquet row 2: its output is null"]
    assert next(load_rows(source, rows.offsets))[0]["content"] == "q"


def test_bytes_of_a_table_are_the_text_they_spell_or_a_fault(tmp_path):
    pq.write_table(pa.table({"text": ["é👋".encode(), b"\xff\xd8", b""]}), tmp_path / "a.parquet")
    (source,) = parse_sources(find(tmp_path / "a.parquet", cache_dir=tmp_path))
    rows = scan(source)
    assert list(load_rows(source, rows.offsets)) == ["é👋"]
    reason = "its text is bytes that are not UTF-8, not a string"
    assert rows.faults.named == [f"{tmp_path}/a.parquet row 2: {reason}"]
    spoken = [{"role": "user", "content": b"q"}, {"role": "assistant", "content": b"\xff"}]
    pq.write_table(pa.Table.from_pylist([{"messages": spoken}]), tmp_path / "b.parquet")
    message = refusal(rows_of, tmp_path / "b.parquet", cache=tmp_path)
    assert "message 2 has a content that is bytes that are not UTF-8, not a string" in message


def test_keys_that_other_messages_have_are_no_nulls_of_a_message(tmp_path):
    spoken = [{"role": "user", "content": "q", "name": "Jo"}, {"role": "assistant", "content": "a"}]
    pq.write_table(pa.Table.from_pylist([{"messages": spoken}]), tmp_path / "a.parquet")
    assert rows_of(tmp_path / "a.parquet", cache=tmp_path) == [spoken]
    silent = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}]
    pq.write_table(pa.Table.from_pylist([{"messages": silent}]), tmp_path / "b.parquet")
    message = refusal(rows_of, tmp_path / "b.parquet", cache=tmp_path)
    assert "b.parquet row 1: message 2 has a content that is null, not a string" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a": 1}, {"a": ', ": item 2 is not JSON, or cut off"),
        (b'[{"a": 1}, {"a": 2}', ": item 3 is not JSON, or cut off"),
        (
            b'[{"a": 1}]\n {"x": 1}',
            """ goes on after the ] of its array, with '{"x": 1}'; give it one array, """
            "or write one object a line in a .jsonl",
        ),
        (
            b"[]" + b" " * (2 << 20) + b"[2]",
            " goes on after the ] of its array, with '[2]'; give it one array, "
            "or write one object a line in a .jsonl",
        ),
        (b"7", " is neither a JSON array nor one object a line; write it as one of these"),
        (b"[" * 100_000, ": item 1 is too deeply nested"),
    ],
)
def test_broken_arrays_are_refused_with_the_item(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    assert refusal(find, tmp_path / "a.json", cache_dir=tmp_path) == f"{tmp_path}/a.json{message}"


def test_an_array_larger_than_what_is_read_at_once_is_whole(tmp_path):
    records = [{"text": "é" * size} for size in (1, 1 << 19, 3 << 20, 5)] + [
        {"text": str(i)} for i in range(9)
    ]
    (tmp_path / "a.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    assert [row for _, row in table_rows(tmp_path / "a.json", "json")] == records


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_that_is_cut_off_is_refused(place, tmp_path, name):
    whole = {"a.jsonl.gz": "d.jsonl.gz", "a.jsonl.zst": "e.ndjson.zst", "a.parquet": "a.parquet"}[name]
    (tmp_path / name).write_bytes((place / whole).read_bytes()[:-20])
    assert f"{name} cannot be" in refusal(find, tmp_path / name, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache" / "datasets").glob("*"))


def test_a_folder_is_its_files_in_order_and_ids_say_which(tmp_path):
    from tiny_data import TEMPLATE, TOKENIZER

    for name, count in (("b/z.jsonl", 2), ("a.jsonl", 3), (".hidden.jsonl", 1)):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(lines(RECORDS[:count]))
    found = find(tmp_path / "d", f"{tmp_path}/d/*.jsonl")
    assert [[file.path.name for file in path.files] for path in found] == [
        ["a.jsonl", "z.jsonl"],
        ["a.jsonl"],
    ]

    def ids(amount: float) -> list[str]:
        settings = {"template": TEMPLATE, "tokenizer": TOKENIZER, "cache_dir": tmp_path / "c"}
        store, _ = encode_paths(found, num_samples=[amount, -1], log=lambda _: None, **settings)
        assert isinstance(store, SampleStore)
        return store.ids

    assert ids(-1) == ["0-1", "0-2", "0-3", "0.1-1", "0.1-2", "1-1", "1-2", "1-3"]
    assert len(ids(2)) == 5 and set(ids(2)) < set(ids(-1))
    parts = [scan(source) for source in parse_sources(found[:1])]
    assert sum(map(len, sample_together(parts, 0.6, "d"))) == 3


def test_a_folder_of_several_splits_or_kinds_wants_to_be_told(tmp_path):
    for name in ("data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl", "latest.jsonl"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(lines())
    given = str(tmp_path / "d")
    assert refusal(files_of, given) == (
        f"{given} has files of the splits test, train; choose with --train_data_splits, or all"
    )
    assert [file.path.name for file in files_of(given, "train").files] == ["train-00000-of-00001.jsonl"]
    assert len(files_of(given, "all").files) == 3
    assert refusal(files_of, given, "validation") == (
        f"{given} has no file of the split validation, only those of test, train"
    )
    (tmp_path / "d" / "x.csv").write_text("text\nhi\n")
    assert (
        refusal(files_of, given, "all")
        == f"{given} has files of several kinds; give csv:{given} or jsonl:{given}"
    )
    assert len(files_of(f"csv:{given}").files) == 1


def test_names_say_how_files_are_read():
    given = ["a.jsonl", "b.JSONL.GZ", "c.txt.zst", "d.tsv", "e.json.gz", "f.gz", "g", "h.parquet"]
    assert [form_of(Path(name)) for name in given] == [
        "jsonl",
        "jsonl",
        "text",
        "csv",
        "json",
        "",
        "",
        "parquet",
    ]
    assert "no file fits" in refusal(files_of, "/nowhere/*.jsonl")


def test_a_hundred_thousand_rows(tmp_path):
    count = 100_000
    table = pa.table({"question": [f"q{i}" for i in range(count)], "answer": ["é"] * count})
    pq.write_table(table, tmp_path / "a.parquet")
    fields = ["question=instruction", "answer=output"]
    (source,) = parse_sources(find(tmp_path / "a.parquet", cache_dir=tmp_path, fields=fields))
    rows = scan(source)
    assert len(rows) == count and not rows.faults.count
    (last,) = load_rows(source, rows.offsets[-1:])
    assert [message["content"] for message in last] == [f"q{count - 1}", "é"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{\n "data": [\n {"text": "a"}\n ]\n}',
            "a.json is one object over several lines; give a file of the array",
        ),
        (
            '{"data": [{"text": "a"}]}',
            "a.json is one object; give the array under its 'data' as a file of its own",
        ),
    ],
)
def test_a_file_that_is_one_object_is_told_what_to_give(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    assert message in refusal(find, tmp_path / "a.json")
    assert len(files_of(str(tmp_path / "a.json")).files) == 1  # which the builders read as it is


def test_a_pattern_takes_files_and_says_which_it_cannot_read(tmp_path):
    for name in ("b/x.jsonl", "c/y.jsonl", "top.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(lines())
    (found,) = find(tmp_path / "*")
    assert [file.path.name for file in found.files] == ["top.jsonl"]
    (tmp_path / "README.md").write_text("hi")
    told = refusal(find, tmp_path / "*")
    assert told.startswith(
        f"{tmp_path}/* fits {tmp_path}/README.md, whose name does not say how to read it; give"
    )
    assert f"such as {tmp_path}/*.jsonl" in told
    (tmp_path / "top.jsonl").unlink()
    (tmp_path / "README.md").unlink()
    assert refusal(find, tmp_path / "*") == (
        f"no file fits {tmp_path}/*, only folders, such as {tmp_path}/b; give one of them"
    )
