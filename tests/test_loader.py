"""Every sample once an epoch, in an order a killed run finds again, in steps that can be cut in any way."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutelage.data.batch import Sample
from tutelage.data.loader import Loader
from tutelage.data.pack import best_fit
from tutelage.data.store import SampleStore
from tutelage.errors import UserError

FIELDS = ("tokens", "targets", "weights", "positions", "docs", "roles")


def store_of(sizes, seed: int = 0) -> SampleStore:
    """Documents of these numbers of tokens, each of its own tokens, about half of them learned."""
    rng = np.random.default_rng(seed)
    samples = []
    for number, n in enumerate(sizes):
        weights = rng.integers(0, 2, n).astype(np.float32)
        weights[-1] = 1
        samples.append(Sample(np.full(n, number + 1), weights, rng.integers(0, 5, n)))
    return SampleStore.of(samples)


SIZES = np.random.default_rng(5).integers(2, 30, 37).tolist()
OPTIONS = {"length": 32, "rows": 2, "accumulate": 2, "packed": True, "seed": 3}


def take(loader: Loader, steps: int) -> list[tuple[list[str], list]]:
    return [(loader.last_ids, batches) for batches in (next(loader) for _ in range(steps))]


def same(first, second) -> bool:
    return len(first) == len(second) and all(
        ids == other_ids
        and len(batches) == len(others)
        and all(
            torch.equal(getattr(batch, name), getattr(other, name))
            for batch, other in zip(batches, others, strict=True)
            for name in FIELDS
        )
        for (ids, batches), (other_ids, others) in zip(first, second, strict=True)
    )


sizes_strategy = st.lists(st.integers(2, 17), min_size=1, max_size=40)


@given(
    sizes=sizes_strategy,
    packed=st.booleans(),
    rows=st.integers(1, 3),
    accumulate=st.integers(1, 3),
    world=st.integers(1, 3),
    shuffle=st.booleans(),
    stops=st.lists(st.integers(0, 30), max_size=3),
)
def test_every_sample_once_an_epoch_over_ranks_and_resumes(
    sizes, packed, rows, accumulate, world, shuffle, stops
):
    store = store_of(sizes)
    seen: list[list[str]] = [[], []]
    counts = []
    options = {"rows": rows, "accumulate": accumulate, "packed": packed, "shuffle": shuffle}
    for rank in range(world):
        make = partial(Loader, store, length=16, seed=1, rank=rank, world=world, epochs=2, **options)
        loader, taken = make(), 0
        counts.append([])
        while True:
            if taken in stops:
                state = json.loads(json.dumps(loader.state()))
                loader = make()
                loader.restore(state)
            epoch = loader.state()["epoch"]
            batches = next(loader, None)
            if batches is None:
                break
            taken += 1
            counts[-1].append(len(batches))
            assert len(batches) == accumulate
            seen[epoch] += loader.last_ids
            documents = sum(len(np.unique(row[row >= 0])) for batch in batches for row in batch.docs)
            assert documents == len(loader.last_ids)
    assert all(sorted(epoch) == sorted(store.ids) for epoch in seen)
    assert all(count == counts[0] for count in counts)  # no rank waits for another


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_twice_and_across_an_epoch_gives_what_an_unbroken_run_gives(packed, workers):
    store, options = store_of(SIZES), OPTIONS | {"packed": packed}
    unbroken = Loader(store, **options)
    steps = unbroken.steps_per_epoch(0)
    expected = take(unbroken, 3 * steps)
    for first, second in [(1, 2), (steps - 1, 1), (steps, 1), (steps, steps), (2, 2 * steps - 3)]:
        loader = Loader(store, workers=workers, **options)
        found = take(loader, first)
        for more in (second, 3 * steps - first - second):
            state = loader.state()
            loader.close()
            loader = Loader(store_of(SIZES), workers=workers, **options)
            loader.restore(state)
            found += take(loader, more)
        loader.close()
        assert same(found, expected)


def test_prefetching_changes_nothing_and_counts_only_what_was_given():
    store = store_of(SIZES)
    plain, ahead = Loader(store, **OPTIONS), Loader(store, workers=3, **OPTIONS)
    for _ in range(12):
        assert same(take(plain, 1), take(ahead, 1))
        assert plain.state() == ahead.state()
    ahead.close()
    assert same(take(plain, 3), take(ahead, 3))


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


def test_a_run_may_continue_on_more_ranks_with_the_same_step():
    store = store_of(SIZES)
    before = Loader(store, length=32, rows=2, accumulate=2, packed=False, seed=0)
    take(before, 3)
    after = [
        Loader(store, length=32, rows=2, accumulate=1, packed=False, seed=0, rank=rank, world=2)
        for rank in (0, 1)
    ]
    for loader in after:
        loader.restore(before.state())
        next(loader)
    next(before)
    assert sorted(before.last_ids) == sorted(after[0].last_ids + after[1].last_ids)


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
    loader = Loader(length_only(sizes), length=2048, rows=1, accumulate=8, packed=True, seed=0, epochs=1)
    plan = loader._plan(0)
    assert (sizes - 1).sum() / (len(plan) * 2048) > 0.98
    means = np.array([sizes[row].mean() for row in plan])
    halves = means[: len(means) // 2].mean() / means[len(means) // 2 :].mean()
    assert 0.9 < halves < 1.1
    assert len(loader) == -(-len(plan) // 8)


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
    monkeypatch.setattr("tutelage.data.loader.WINDOW", 8)
    monkeypatch.setattr("tutelage.data.loader._ROWS_A_WINDOW", 1)
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


def test_a_state_of_other_data_or_of_another_order_is_refused():
    loader = Loader(store_of(SIZES), **OPTIONS)
    take(loader, 2)
    state = loader.state()
    changes = [
        (store_of(SIZES, seed=9), {}, "data"),
        (store_of(SIZES[1:]), {}, "data"),
        (store_of(SIZES), {"seed": 4}, "seed"),
        (store_of(SIZES), {"rows": 3}, "samples or rows a step"),
        (store_of(SIZES), {"length": 40}, "row length"),
        (store_of(SIZES), {"packed": False}, "packing"),
        (store_of(SIZES), {"shuffle": False}, "shuffling"),
    ]
    for store, options, name in changes:
        with pytest.raises(UserError, match=name):
            Loader(store, **OPTIONS | options).restore(state)
    with pytest.raises(UserError) as error:
        Loader(store_of(SIZES), **OPTIONS | {"seed": 4}).restore(state)
    assert str(error.value) == (
        "cannot continue in the middle of other data: the checkpoint was made with seed 3, "
        "this run has seed 4; set it back, or start a new run"
    )


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
