"""Data that is read while it is trained on: every record once a pass, by weight, and resumed bit for bit."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_data import TEMPLATE, TOKENIZER, chat, refusal, take

from tutelage.data.encode import Encoder
from tutelage.data.loader import Loader
from tutelage.data.paths import find_data
from tutelage.data.sources import parse_sources
from tutelage.data.streaming import Streaming
from tutelage.data.windows import Reading

ROWS = 43  # of a path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The same conversations in every form, a folder of them, and texts."""
    here = tmp_path_factory.mktemp("data")
    records = [{"messages": chat(f"q{i} " * (1 + i % 5), f"a{i}")} for i in range(ROWS)]
    lines = [json.dumps(record) + "\n" for record in records]
    (here / "a.jsonl").write_text("\ufeff\n" + "\n".join(lines), encoding="utf-8")  # blank lines between
    (here / "b.jsonl.gz").write_bytes(gzip.compress("".join(lines).encode()))
    pq.write_table(pa.Table.from_pylist(records), here / "c.parquet", row_group_size=10)
    (here / "folder").mkdir()
    for part in range(3):
        (here / "folder" / f"{part}.jsonl").write_text("".join(lines[part::3]))
    (here / "t.txt").write_text("".join(f"text number {i}\r\n" for i in range(ROWS)), newline="")
    return here


def reading(**options) -> Reading:
    settings = {
        "encoder": Encoder(TEMPLATE, TOKENIZER), "max_seq_len": 64, "too_long": "truncate",
        "max_cut_percent": 5.0, "skip_bad_rows": False, "allow_unmasked": False, "window": 10,
        "packed": False, "seed": 3, "log": lambda text: None,
    }  # fmt: skip
    return Reading(**settings | options)


def streaming(*paths, weights=(), **options) -> Streaming:
    found = find_data(list(map(str, paths)), [], streaming=True, log=print, flag="--train_data_splits")
    sources = parse_sources(found)
    by_path = [[source for source in sources if source.number == path] for path in range(len(paths))]
    return Streaming(by_path, reading(**options), weights=weights)


def loader(*paths, rows=1, accumulate=1, workers=0, rank=0, world=1, **options) -> Loader:
    store = streaming(*paths, **options)
    settings = {"length": 64, "packed": options.get("packed", False), "seed": 3, "reduction": "sequences"}
    return Loader(
        store, rows=rows, accumulate=accumulate, workers=workers, rank=rank, world=world, **settings
    )


def ids(loader: Loader, steps: int) -> list[str]:
    return [name for names, _ in take(loader, steps) for name in names]


@pytest.mark.parametrize("name", ["a.jsonl", "b.jsonl.gz", "c.parquet", "folder", "t.txt"])
@pytest.mark.parametrize("window", [10, 1000])
def test_every_record_comes_once_a_pass_in_another_order_each(place, name, window):
    names = ids(loader(place / name, window=window), 3 * ROWS)
    passes = [names[at : at + ROWS] for at in range(0, len(names), ROWS)]
    assert all(len(set(each)) == ROWS for each in passes)
    assert set(passes[0]) == set(passes[1]) == set(passes[2])
    assert passes[0] != passes[1] and passes[1] != passes[2] and passes[0] != sorted(passes[0])


def test_the_lines_are_those_of_the_file(place):
    assert sorted(int(name[2:]) for name in ids(loader(place / "a.jsonl"), ROWS)) == list(range(2, 88, 2))
    assert sorted(int(name[2:]) for name in ids(loader(place / "c.parquet"), ROWS)) == list(range(1, 44))
    assert {name.split("-")[0] for name in ids(loader(place / "folder"), ROWS)} == {"0", "0.1", "0.2"}


@pytest.mark.parametrize(
    "names", [["a.jsonl"], ["b.jsonl.gz"], ["c.parquet"], ["folder"], ["a.jsonl", "t.txt"]]
)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_reading_goes_on_exactly_where_it_was(place, names, packed, workers):
    paths = [place / name for name in names]
    whole, steps = loader(*paths, packed=packed, rows=2, accumulate=2), 40
    expected = take(whole, steps)
    for stop in (1, 11, 26):
        first = loader(*paths, packed=packed, rows=2, accumulate=2, workers=workers)
        take(first, stop)
        state = json.loads(json.dumps(first.state()))
        first.close()
        second = loader(*paths, packed=packed, rows=2, accumulate=2, workers=workers)
        second.restore(state)
        for (ids, batches), (own_ids, own) in zip(expected[stop:], take(second, steps - stop), strict=True):
            assert ids == own_ids
            for one, other in zip(batches, own, strict=True):
                assert torch.equal(one.tokens, other.tokens) and torch.equal(one.weights, other.weights)
        assert second.state()["reading"] == whole.state()["reading"]
        second.close()


def test_a_state_that_was_restored_can_be_said_again(place):
    first = loader(place / "a.jsonl")
    take(first, 25)
    second = loader(place / "a.jsonl")
    second.restore(first.state())
    assert second.state() == first.state()


def test_paths_come_in_the_shares_that_were_asked_for(place):
    def share(**options) -> float:
        names = ids(loader(place / "a.jsonl", place / "t.txt", **options), 400)
        return sum(name.startswith("0-") for name in names) / 400

    assert share() == pytest.approx(0.5, abs=0.07)
    assert share(weights=[9, 1]) == pytest.approx(0.9, abs=0.05)


def test_ranks_share_the_rows_without_overlap(place):
    alone = ids(loader(place / "a.jsonl", accumulate=2), 50)
    ranks = [take(loader(place / "a.jsonl", rank=rank, world=2), 50) for rank in range(2)]
    assert [name for (left, _), (right, _) in zip(*ranks, strict=True) for name in (*left, *right)] == alone


def test_packed_rows_hold_what_a_window_holds(place):
    made = loader(place / "t.txt", packed=True, window=20)
    first = ids(made, 1)
    assert len(first) > 1 and all(int(name[2:]) <= 20 for name in first)
    assert next(made)[0].tokens.shape == (1, 64)


def test_a_pass_may_have_more_windows_than_python_nests_calls(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"{i}\n" for i in range(1100)))
    assert len(set(ids(loader(tmp_path / "a.txt", window=1), 1100))) == 1100


def test_bad_records_are_refused_when_they_are_met_or_counted(tmp_path):
    good = json.dumps({"messages": chat()}) + "\n"
    path = tmp_path / "a.jsonl"
    path.write_text(good * 15 + "{\n" + good * 4)
    made = loader(path)
    take(made, 10)
    assert f"{path}:16: not JSON" in refusal(next, made)
    assert len(set(ids(loader(path, skip_bad_rows=True, max_cut_percent=100), 19))) == 19


def test_a_path_of_which_nothing_is_left_ends_in_words(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": chat("long " * 100, "x")}) + "\n")
    made = loader(path, too_long="drop", max_cut_percent=100)
    assert refusal(next, made) == f"no row of {path} is left to learn from"
    assert "would be cut or dropped" in refusal(next, loader(path, too_long="drop"))


def test_another_buffer_or_file_is_no_data_to_go_on_with(place):
    state = loader(place / "a.jsonl").state()
    assert "this run has shuffle buffer 11" in refusal(loader(place / "a.jsonl", window=11).restore, state)
    assert "this run has data b.jsonl.gz" in refusal(loader(place / "b.jsonl.gz").restore, state)


def test_looking_at_the_beginning_changes_nothing(place):
    plain = loader(place / "a.jsonl")
    store = streaming(place / "a.jsonl")
    assert len(store.beginning()) == 10 and store.context > 1
    looked = Loader(store, length=64, rows=1, accumulate=1, packed=False, seed=3, reduction="sequences")
    assert ids(looked, 30) == ids(plain, 30)
