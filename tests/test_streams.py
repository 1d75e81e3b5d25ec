"""Rows of pretokenized shards: every token of a pass once, whatever the ranks and interruptions."""

from collections import Counter

import numpy as np
import pytest
from tiny_data import refusal
from tiny_shards import TOKENIZER, shards

from tutelage.data.loader import Loader
from tutelage.data.shards import TokenShards
from tutelage.data.shares import BLOCK, shuffled
from tutelage.data.store import SampleStore, split_documents
from tutelage.data.streams import Streamed, TokenStreams


def predicted(order: Streamed, epoch: int) -> Counter:
    """How often each token of each document is predicted in an epoch: (source, document, place) -> times."""
    times: Counter = Counter()
    for number in range(order.rows(epoch)):
        for name, sample in zip(order.ids(epoch, number), order.row(epoch, number), strict=True):
            source, rest = name.split("-")
            document, start = rest.split("/")
            for place in range(int(start) + 1, int(start) + len(sample)):
                times[int(source), int(document), place] += 1
    return times


def every_token(sources: list[TokenShards]) -> set:
    return {
        (number, piece.document + 1, place)
        for number, source in enumerate(sources)
        for piece in source.pieces(0, source.positions)
        for place in range(1, len(piece.tokens))
    }


@pytest.mark.parametrize("length", [1, 2, 7, 64, 1000, 10**6])
def test_every_token_but_a_documents_first_is_predicted_once_an_epoch(tmp_path, length):
    sources = [shards(tmp_path / "a", 30), shards(tmp_path / "b", 5, seed=1)]
    order = Streamed(TokenStreams(sources), length=length, seed=4, shuffle=True)
    for epoch in (0, 1, 5):
        times = predicted(order, epoch)
        assert set(times) == every_token(sources) and set(times.values()) == {1}


def test_a_row_holds_the_text_that_its_name_says(tmp_path):
    source = shards(tmp_path, 20)
    whole = {p.document + 1: p.tokens for p in source.pieces(0, source.positions)}
    order = Streamed(TokenStreams([source]), length=16, seed=0, shuffle=True)
    for number in range(order.rows(0)):
        for name, sample in zip(order.ids(0, number), order.row(0, number), strict=True):
            document, start = map(int, name.split("-")[1].split("/"))
            assert np.array_equal(sample.tokens, whole[document][start : start + len(sample)])
            assert np.all(sample.weights == 1) and len(sample.weights) == len(sample.roles) == len(sample)


def test_all_rows_but_the_first_and_last_of_a_pass_are_full(tmp_path):
    order = Streamed(TokenStreams([shards(tmp_path, 50)]), length=32, seed=0, shuffle=True)
    sizes = sorted(sum(sample.positions for sample in order.row(1, n)) for n in range(order.rows(1)))
    assert set(sizes[2:]) == {32}


def test_another_epoch_has_other_rows_and_another_seed_too(tmp_path):
    source = shards(tmp_path, 50)

    def rows(seed: int, epoch: int) -> set:
        order = Streamed(TokenStreams([source]), length=32, seed=seed, shuffle=True)
        return {tuple(order.ids(epoch, n)) for n in range(order.rows(epoch))}

    assert rows(0, 0) == rows(0, 0)
    assert len(rows(0, 0) & rows(0, 1)) < len(rows(0, 0)) / 4
    assert len(rows(0, 0) & rows(1, 0)) < len(rows(0, 0)) / 4


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (1, 4), (2, 2), (4, 1), (3, 2)])
def test_ranks_share_an_epoch_and_a_resumed_loader_repeats_and_loses_nothing(tmp_path, world, accumulate):
    source = shards(tmp_path, 40)

    def loader(rank: int) -> Loader:
        options = {"length": 16, "rows": 2, "packed": True, "seed": 9, "epochs": 2, "workers": rank % 2}
        return Loader(TokenStreams([source]), accumulate=accumulate, rank=rank, world=world, **options)

    ids: list[str] = []
    for rank in range(world):
        part = loader(rank)
        for step in range(10**9):
            try:
                next(part)
            except StopIteration:
                break
            ids += part.last_ids
            if step % 3 == 1:  # an interruption after every third step
                state = part.state()
                part.close()
                part = loader(rank)
                part.restore(state)
        part.close()
    order = Streamed(TokenStreams([source]), length=16, seed=9, shuffle=True)
    wanted = [name for epoch in (0, 1) for n in range(order.rows(epoch)) for name in order.ids(epoch, n)]
    assert Counter(ids) == Counter(wanted)


def test_a_mixture_has_its_shares_and_each_pass_over_a_source_has_every_token_once(tmp_path):
    sources = [shards(tmp_path / "a", 300), shards(tmp_path / "b", 10, seed=1), shards(tmp_path / "c", 40)]
    order = Streamed(TokenStreams(sources, [1, 2, 5]), length=16, seed=2, shuffle=True)
    places = [order._place(0, number) for number in range(2 * BLOCK)]
    counts = Counter(source for source, _, _ in places)
    assert [counts[n] / len(places) for n in range(3)] == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=1e-3)
    # Any stretch is mixed, not one source after another.
    assert {source for source, _, _ in places[:64]} == {0, 1, 2}
    for source in range(3):
        mine = [(turn, row) for number, turn, row in places if number == source]
        rows = -(-sources[source].positions // 16)
        assert len(mine) == len(set(mine))
        for turn in range(len(mine) // rows):
            assert sorted(row for t, row in mine if t == turn) == list(range(rows))


@pytest.mark.parametrize("count", [73, 200, 1500])
def test_a_mixture_of_many_sources_never_takes_a_row_back(tmp_path, count):
    source = shards(tmp_path, 30)
    order = Streamed(TokenStreams([source] * count, [1.0] * count), length=16, seed=0, shuffle=True)
    before = [0] * count
    for block in range(1, 60):
        taken = order._shares.before(block * BLOCK)
        assert sum(taken) == block * BLOCK and all(a <= b for a, b in zip(before, taken, strict=True))
        before = taken


def test_a_share_too_small_to_be_mixed_in_is_refused(tmp_path):
    source = shards(tmp_path, 3)
    assert "least of the weights" in refusal(TokenStreams, [source] * 2, [1.0, 1e-4])
    assert "one above 0 is needed" in refusal(TokenStreams, [source] * 2, [1.0, float("inf")])


def test_a_mixture_goes_on_across_epochs_where_it_was(tmp_path):
    sources = [shards(tmp_path / "a", 30), shards(tmp_path / "b", 10, seed=1)]
    order = Streamed(TokenStreams(sources, [1, 3]), length=16, seed=2, shuffle=True)
    rows = order.rows(0)
    flat = [order._place(epoch, number) for epoch in range(4) for number in range(rows)]
    assert flat == [order._place(0, number) for number in range(4 * rows)]
    assert len(set(flat)) == len(flat)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 64, 65, 1000, 4097])
def test_shuffled_is_a_permutation_that_the_key_draws(count):
    one, other = ([shuffled(n, count, key, 7) for n in range(count)] for key in (1, 2))
    assert sorted(one) == sorted(other) == list(range(count))
    if count >= 64:
        assert one != other and one != list(range(count))
        assert abs(np.corrcoef(np.arange(count), one)[0, 1]) < 0.4


def test_weights_that_do_not_fit_are_refused(tmp_path):
    source = shards(tmp_path, 3)
    assert "one above 0 is needed for each" in refusal(TokenStreams, [source], [1.0, 2.0])
    assert "one above 0" in refusal(TokenStreams, [source], [0.0])


def test_going_on_with_other_weights_is_refused(tmp_path):
    sources = [shards(tmp_path / "a", 30), shards(tmp_path / "b", 10, seed=1)]
    options = {"length": 16, "rows": 2, "accumulate": 1, "packed": True, "seed": 9}
    state = Loader(TokenStreams(sources, [1, 3]), **options).state()
    changed = refusal(Loader(TokenStreams(sources, [1, 2]), **options).restore, state)
    assert "weights 0.25 0.75" in changed


def test_validation_reads_the_text_as_it_stands(tmp_path):
    source = shards(tmp_path, 10)
    order = Streamed(TokenStreams([source]), length=16, seed=0, shuffle=False)
    starts = [order.ids(0, number)[0] for number in range(order.rows(0))]
    numbers = [tuple(map(int, name.split("-")[1].split("/"))) for name in starts]
    assert numbers == sorted(numbers) and numbers[0] == (1, 0)


def test_shards_of_another_tokenizer_are_refused(tmp_path):
    source = shards(tmp_path, 3)
    source.check(TOKENIZER.fingerprint)
    assert "another tokenizer" in refusal(source.check, "0" * 32)


def test_shards_can_be_packed_whole_and_every_token_is_still_predicted_once(tmp_path):
    sources = [shards(tmp_path / "a", 60), shards(tmp_path / "b", 5, seed=1)]
    store = SampleStore.of_shards(
        [shard for path, source in enumerate(sources) for shard in source.samples(path)]
    )
    store = split_documents(store, 32)
    loader = Loader(store, length=32, rows=2, accumulate=1, packed=True, seed=0, epochs=1)
    read = sum(float(batch.weights.sum()) for step in loader for batch in step)
    assert read == sum(source.positions for source in sources)
    assert len(set(store.ids)) == len(store)
    documents = [piece.tokens.tolist() for piece in sources[1].pieces(0, sources[1].positions)]
    again = SampleStore.of_shards(sources[1].samples(7))
    assert [sample.tokens.tolist() for sample in again] == documents
    assert again.ids == [f"7-{number}" for number in range(1, len(documents) + 1)]
