"""What a step holds: every sample once an epoch, laid in rows, in steps that can be cut in any way."""

import numpy as np
import pytest
import torch
from tiny_data import OPTIONS, SIZES, store_of, take

from tutelage.data.batch import Sample
from tutelage.data.loader import Loader
from tutelage.data.order import Packed
from tutelage.data.pack import best_fit
from tutelage.data.store import SampleStore
from tutelage.errors import UserError


def test_an_error_in_a_thread_reaches_the_caller(monkeypatch):
    loader = Loader(store_of(SIZES), workers=1, **OPTIONS)
    monkeypatch.setattr(loader, "_lay", lambda micro: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(loader)
    loader.close()


def test_the_order_is_new_each_epoch_and_the_same_for_a_seed():
    store = store_of(SIZES)
    one, other = Loader(store, **OPTIONS), Loader(store, **OPTIONS | {"seed": 4})
    assert one.ids(0, 0) == Loader(store, **OPTIONS).ids(0, 0)
    assert one.ids(0, 0) != one.ids(1, 0)
    assert one.ids(0, 0) != other.ids(0, 0)
    unshuffled = Loader(store, **OPTIONS | {"packed": False}, shuffle=False, epochs=1)
    assert [name for step in range(len(unshuffled)) for name in unshuffled.ids(0, step)] == store.ids


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("rows", "accumulate", "world"), [(8, 1, 1), (2, 4, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8)]
)
def test_what_a_step_holds_does_not_depend_on_how_it_is_cut(packed, rows, accumulate, world):
    store = store_of(SIZES)
    whole = Loader(store, length=32, rows=8, accumulate=1, packed=packed, seed=0)
    parts = [
        Loader(
            store, length=32, rows=rows, accumulate=accumulate, packed=packed, seed=0, rank=rank, world=world
        )
        for rank in range(world)
    ]
    for step in range(2 * len(whole)):
        (batch,) = next(whole)
        pieces = [piece for part in parts for piece in next(part)]
        for name in ("tokens", "targets", "weights"):
            everything = torch.cat([getattr(piece, name)[piece.docs >= 0] for piece in pieces])
            assert torch.equal(everything.sort().values, getattr(batch, name)[batch.docs >= 0].sort().values)
        assert sorted(whole.last_ids) == sorted(name for part in parts for name in part.last_ids)
        assert step < len(whole) or whole.state()["epoch"] >= 1


def test_unpacked_micro_batches_are_one_row_rounded_up_to_64():
    loader = Loader(
        store_of([40, 30, 3]), length=99, rows=2, accumulate=2, packed=False, seed=0, shuffle=False
    )
    first, second = next(loader)
    assert first.tokens.shape == (1, 128)  # 39 + 29 = 68 positions
    assert second.tokens.shape == (1, 64)
    assert (first.docs >= 0).sum() == 68
    assert loader.last_ids == ["0-1", "0-2", "0-3"]


def test_the_last_step_is_topped_up_with_nothing():
    loader = Loader(store_of([5] * 5), length=8, rows=2, accumulate=2, packed=False, seed=0)
    take(loader, 1)
    assert loader.state()["step"] == 1
    last, nothing = next(loader)
    assert last.docs.max() == 0
    assert nothing.weights.sum() == 0 and nothing.docs.max() == -1 and nothing.tokens.shape == (1, 64)
    assert loader.state() | {"fingerprint": None} == {"epoch": 1, "step": 0, "fingerprint": None}


def test_packed_rows_are_full_and_an_epoch_is_not_sorted_by_length():
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(np.log(32), np.log(1024), 30_000)).astype(int)
    order = Packed(length_only(sizes), length=2048, seed=0, shuffle=True)
    rows = order.rows(0)
    assert (sizes - 1).sum() / (rows * 2048) > 0.98
    means = [np.mean([len(sample) for sample in order.row(0, number)]) for number in range(rows)]
    assert 0.9 < np.mean(means[: rows // 2]) / np.mean(means[rows // 2 :]) < 1.1


def length_only(sizes) -> SampleStore:
    n = int(sizes.sum())
    whole = SampleStore.of([Sample(np.zeros(n), np.ones(n), np.zeros(n))])
    starts = np.cumsum(sizes) - sizes
    zeros = np.zeros(len(sizes), np.int64)
    return SampleStore(whole.shards, zeros, zeros, starts, sizes)


def test_windows_grow_with_the_row():
    """Short documents in long rows: a window of 10,000 of them would fill only a dozen rows."""
    sizes = np.random.default_rng(0).integers(20, 60, 60_000)
    loader = Loader(length_only(sizes), length=4096, rows=1, accumulate=1, packed=True, seed=0)
    assert (sizes - 1).sum() / (len(loader) * 4096) > 0.98


def test_epochs_may_have_different_numbers_of_steps(monkeypatch):
    monkeypatch.setattr("tutelage.data.order.WINDOW", 8)
    monkeypatch.setattr("tutelage.data.order._ROWS_A_WINDOW", 1)
    store = store_of(np.random.default_rng(0).integers(2, 32, 60))
    loader = Loader(store, length=32, rows=1, accumulate=1, packed=True, seed=0, epochs=6)
    steps = [loader.steps_per_epoch(epoch) for epoch in range(6)]
    assert len(set(steps)) > 1
    assert len(list(loader)) == sum(steps)


@pytest.mark.parametrize("packed", [False, True])
def test_sequences_weigh_one_each_whatever_survives_the_shift(packed):
    """The first token is learned too in the second sample, but nobody predicts it: 1/2, not 1/3."""
    store = SampleStore.of(
        [
            Sample([1, 2, 3, 4, 5], [0, 1, 1, 1, 1], [0] * 5),
            Sample([1, 2, 3], [1, 1, 1], [0] * 3),
            Sample([1, 2], [0, 1], [0] * 2),
        ]
    )
    options = {
        "length": 8,
        "rows": 1 if packed else 3,
        "accumulate": 1,
        "packed": packed,
        "seed": 0,
        "shuffle": False,
    }
    (batch,) = next(Loader(store, reduction="sequences", **options))
    weights = sorted(batch.weights[batch.docs >= 0].tolist())
    assert weights == [0.25, 0.25, 0.25, 0.25, 0.5, 0.5, 1.0]
    (batch,) = next(Loader(store, reduction="tokens", **options))
    assert batch.weights.sum() == 7


def test_the_longest_micro_batch_is_no_smaller_than_any():
    store = store_of(SIZES)
    for packed in (False, True):
        loader = Loader(store, **OPTIONS | {"packed": packed}, epochs=3)
        longest = loader.longest()
        assert len(longest) == 2
        assert longest[0].positions.max() == max(SIZES) - 2
        most = int((longest[0].docs >= 0).sum())
        assert not packed or most >= 60  # of 64
        for batch in (batch for batches in loader for batch in batches):
            assert batch.tokens.numel() <= longest[0].tokens.numel()
            assert packed or (batch.docs >= 0).sum() <= most
    (one,) = Loader(store_of([9]), length=8, rows=4, accumulate=1, packed=True, seed=0).longest()
    assert one.tokens.shape == (4, 8)


def test_validation_goes_over_the_data_again_and_again():
    loader = Loader(store_of(SIZES), **OPTIONS | {"packed": False}, shuffle=False, epochs=1)
    first = [loader.last_ids for _ in loader]
    assert len(first) == len(loader)
    assert [loader.last_ids for _ in loader] == first
    assert next(iter(loader)) is not None


def test_nothing_to_load_and_what_does_not_fit_are_refused():
    with pytest.raises(UserError, match="there is no sample to load"):
        Loader(SampleStore.of([]), **OPTIONS)
    with pytest.raises(UserError) as error:
        Loader(store_of([3, 40]), **OPTIONS)
    assert str(error.value) == "a document of 40 tokens does not fit rows of 32; truncate or split it first"


def test_one_sample_makes_an_epoch_of_one_step():
    loader = Loader(store_of([2]), **OPTIONS)
    assert [take(loader, 1)[0][0] for _ in range(3)] == [["0-1"]] * 3
    assert loader.state()["epoch"] == 3
    assert best_fit([], 3) == []
