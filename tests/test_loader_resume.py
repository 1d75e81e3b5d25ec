"""Killed and resumed, on other ranks or with threads working ahead, a run sees what an unbroken one sees."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_data import OPTIONS, SIZES, store_of, take

from tutelage.data.loader import Loader
from tutelage.errors import UserError

FIELDS = ("tokens", "targets", "weights", "positions", "docs", "roles")


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


def test_going_back_forgets_what_was_prefetched():
    loader = Loader(store_of(SIZES), workers=2, **OPTIONS)
    start = loader.state()
    first = take(loader, 3)
    loader.restore(start)
    assert same(take(loader, 3), first)
    loader.close()


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
