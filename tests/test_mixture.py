"""Several paths in the shares that were asked for, each pass in an order of its own, resumed exactly."""

from collections import Counter

import numpy as np
import pytest
import torch
from tiny_data import OPTIONS, refusal, store_of, take

from tutelage.data.batch import Sample
from tutelage.data.groups import Comparisons
from tutelage.data.loader import Loader
from tutelage.data.store import SampleStore

COUNTS = (7, 40, 13)  # documents of each path
WEIGHTS = [3, 1, 2]


def mixed_store(counts=COUNTS) -> SampleStore:
    shards = []
    for path, count in enumerate(counts):
        (shard,) = store_of(np.random.default_rng(path).integers(2, 30, count), seed=path).shards
        shards.append(shard)
    return SampleStore.of_shards(shards)


def loader(**options) -> Loader:
    settings = {**OPTIONS, "rows": 1, "accumulate": 1, "packed": False, "weights": WEIGHTS} | options
    return Loader(mixed_store(), **settings)


def ids_of(loader: Loader, steps: int) -> list[str]:
    return [name for names, _ in take(loader, steps) for name in names]


def test_the_shares_are_as_asked_for_over_any_stretch():
    paths = Counter(name.split("-")[0] for name in ids_of(loader(), 4096))
    assert [paths[str(path)] for path in range(3)] == [2048, 682, 1366]  # 682.67 and 1365.33, to a row
    some = Counter(name.split("-")[0] for name in ids_of(loader(seed=9), 600))
    assert all(abs(some[str(path)] / 600 - weight / 6) < 0.06 for path, weight in enumerate(WEIGHTS))


@pytest.mark.parametrize("packed", [False, True])
def test_every_pass_over_a_path_has_each_of_its_documents_once(packed):
    names = ids_of(loader(packed=packed), 300)
    for path, count in enumerate(COUNTS):
        own = [name for name in names if name.startswith(f"{path}-")]
        passes = [own[at : at + count] for at in range(0, len(own) - count + 1, count)]
        assert len(passes) > 1 or path == 1  # of which not every pass is whole
        assert all(len(set(each)) == count for each in passes)
        assert len(passes) < 2 or passes[0] != passes[1]


def test_an_epoch_has_as_many_rows_as_all_paths_together():
    made = loader()
    assert [made.steps_per_epoch(epoch) for epoch in range(3)] == [60] * 3
    (share, passes), *_ = made.passes
    assert share == 0.5 and passes == pytest.approx(30 / 7)
    alike = loader(weights=[1, 1, 1]).positions
    lengths = [store_of(np.random.default_rng(p).integers(2, 30, n)).positions for p, n in enumerate(COUNTS)]
    assert alike == round(60 * np.mean([each.mean() for each in lengths]))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_mixture_goes_on_exactly_where_it_was(packed, workers):
    whole = loader(packed=packed, rows=2)
    steps = 3 * whole.steps_per_epoch(0)  # over borders of epochs
    expected = take(whole, steps)
    for stop in (1, whole.steps_per_epoch(0), steps - 3):
        first = loader(packed=packed, rows=2, workers=workers)
        take(first, stop)
        state = first.state()
        first.close()
        second = loader(packed=packed, rows=2, workers=workers)
        second.restore(state)
        for (ids, batches), (own_ids, own) in zip(expected[stop:], take(second, steps - stop), strict=True):
            assert ids == own_ids
            assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(batches, own, strict=True))
        second.close()


def test_ranks_share_a_mixture_without_overlap():
    alone = ids_of(loader(accumulate=2), 30)
    ranks = [take(loader(rank=rank, world=2), 30) for rank in range(2)]
    together = [name for (left, _), (right, _) in zip(*ranks, strict=True) for name in (*left, *right)]
    assert together == alone


def test_answers_to_one_prompt_stay_together_in_a_mixture():
    shards = []
    for path, prompts in enumerate((4, 9)):
        store = store_of([6] * (2 * prompts), seed=path)
        (shard,) = store.shards
        shard.lines = np.repeat(np.arange(1, prompts + 1), 2)
        shard.ranks = np.tile(np.array([0, 1], np.uint8), prompts)
        shard.scores = np.full(2 * prompts, np.nan, np.float32)
        shards.append(shard)
    groups = Comparisons(SampleStore.of_shards(shards))
    assert groups.paths.tolist() == [0] * 4 + [1] * 9
    made = Loader(
        groups,
        length=32,
        rows=1,
        accumulate=1,
        packed=False,
        seed=1,
        weights=[1, 1],
        lay=lambda rows, _: rows,
    )
    taken = [next(made)[0][0] for _ in range(26)]
    assert all([stretch.rank for stretch in row] == [0, 1] for row in taken)
    assert sum(row[0].group < 4 for row in taken) in range(9, 18)


def test_held_out_data_is_no_mixture():
    made = loader(shuffle=False, epochs=1)
    assert ids_of(made, 60) == mixed_store().ids and made.passes == []


def test_what_cannot_be_mixed_is_refused():
    assert refusal(loader, weights=[1, 1e-9, 1]) == (
        "the least of the weights is 0.00000% of their sum; a mixture has at least 0.049% of each source"
    )
    kept = mixed_store()
    kept = kept.take(kept.paths != 1)
    assert refusal(Loader, kept, **{**OPTIONS, "weights": WEIGHTS}) == (
        "nothing is left to learn from in path 2 of the mixture"
    )


def test_the_weights_belong_to_what_a_run_goes_on_with():
    state = loader().state()
    assert "this run has weights" in refusal(loader(weights=[1, 1, 1]).restore, state)


def test_rows_of_the_longest_documents_come_from_any_path():
    samples = [Sample(np.arange(n), np.ones(n), np.zeros(n)) for n in (5, 9)]
    shards = [SampleStore.of([sample]).shards[0] for sample in samples]
    for order in (shards, shards[::-1]):
        made = Loader(
            SampleStore.of_shards(order),
            length=32,
            rows=1,
            accumulate=1,
            packed=False,
            seed=0,
            weights=[1, 1],
        )
        assert made.deepest == 8 and int((made.longest()[0].docs >= 0).sum()) == 8
