"""The shift, the layout of rows, and how little of them is wasted."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutelage.data.batch import Sample
from tutelage.data.pack import best_fit, collate, empty, pack
from tutelage.text.roles import ROLE_IDS

OTHER = ROLE_IDS["other"]  # the role of padding
FIELDS = ("tokens", "targets", "weights", "positions", "docs", "roles")


def sample(*tokens: int, learned: int = 0, role: int = 1) -> Sample:
    """A document whose last `learned` tokens are learned."""
    n = len(tokens)
    return Sample(list(tokens), [0.0] * (n - learned) + [1.0] * learned, [role] * (n - 1) + [2])


def documents(batch) -> list[tuple]:
    """Every document that stands in a batch: what it reads, predicts and how much, in order of rows."""
    found = []
    for row in range(len(batch.tokens)):
        for doc in range(int(batch.docs[row].max()) + 1):
            there = batch.docs[row] == doc
            found.append(tuple(tuple(getattr(batch, name)[row][there].tolist()) for name in FIELDS[:4]))
    return found


def test_two_documents_in_a_row_by_hand():
    """[7 8 9] with 8, 9 learned and [5 6] with nothing learned take 2 + 1 positions of 5."""
    batch = collate([[sample(7, 8, 9, learned=2), sample(5, 6, role=0)]], 5)
    assert batch.tokens.tolist() == [[7, 8, 5, 0, 0]]
    assert batch.targets.tolist() == [[8, 9, 6, 0, 0]]
    assert batch.weights.tolist() == [[1, 1, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 0, 0, 0]]
    assert batch.docs.tolist() == [[0, 0, 1, -1, -1]]
    assert batch.roles.tolist() == [[1, 1, 0, 4, 4]]


def test_the_weight_of_a_first_token_goes_nowhere():
    batch = collate([[Sample([1, 2, 3], [9.0, 0.5, 0.25], [0, 0, 0])]], 2)
    assert batch.weights.tolist() == [[0.5, 0.25]]


def test_fields_have_the_types_the_model_reads():
    batch = collate([[Sample(np.array([1, 2], np.uint32), np.ones(2, np.float32), np.zeros(2, np.uint8))]], 1)
    kinds = {name: getattr(batch, name).dtype for name in FIELDS}
    assert kinds.pop("weights") == torch.float32
    assert set(kinds.values()) == {torch.int64}
    assert all(torch.equal(getattr(batch.to("cpu"), name), getattr(batch, name)) for name in FIELDS)


def test_a_row_of_nothing_is_padding():
    for batch in (empty(2, 3), collate([[], [sample(4)]], 3), collate([[sample(4), sample(5)], []], 3)):
        assert batch.docs.tolist() == [[-1] * 3] * 2
        assert batch.weights.sum() == 0


def test_no_rows_are_a_batch_of_none():
    assert collate([], 4).tokens.shape == (0, 4)


@given(st.lists(st.lists(st.integers(1, 9), max_size=5), min_size=1, max_size=4))
def test_collating_agrees_with_laying_one_token_after_another(row_sizes):
    rng = np.random.default_rng(0)
    rows = [
        [
            Sample(rng.integers(1, 50, n), rng.random(n).astype(np.float32), rng.integers(0, 5, n))
            for n in sizes
        ]
        for sizes in row_sizes
    ]
    length = max(sum(s.positions for s in row) for row in rows) + 1
    batch = collate(rows, length)
    for number, row in enumerate(rows):
        expected = [
            (s.tokens[at], s.tokens[at + 1], s.weights[at + 1], at, doc, s.roles[at])
            for doc, s in enumerate(row)
            for at in range(len(s) - 1)
        ]
        expected += [(0, 0, 0, 0, -1, OTHER)] * (length - len(expected))
        laid = zip(*(getattr(batch, name)[number].tolist() for name in FIELDS), strict=True)
        assert list(laid) == [tuple(map(float, each)) for each in expected]


@given(st.lists(st.integers(0, 20), max_size=200), st.integers(20, 40))
def test_bins_hold_everything_once_and_none_overflows(sizes, capacity):
    bins = best_fit(sizes, capacity)
    assert sorted(index for each in bins for index in each) == list(range(len(sizes)))
    assert all(sum(sizes[index] for index in each) <= capacity for each in bins)
    assert not sum(sizes) or len(bins) <= 2 * sum(sizes) / capacity + 1  # no two bins could be one
    assert bins == best_fit(np.array(sizes, np.int64), capacity)


def test_the_tightest_space_is_chosen():
    """6, 5 open bins of 10; 4 goes beside 6 (space 4), not beside 5 (space 5); then 3 beside 5."""
    assert best_fit([5, 3, 6, 4], 10) == [[2, 3], [0, 1]]


def test_a_hundred_thousand_documents_take_about_a_second_and_waste_little():
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(np.log(32), np.log(1024), 100_000)).astype(int)
    start = time.process_time()
    bins = best_fit(sizes, 2048)
    assert time.process_time() - start < 3
    assert sizes.sum() / (len(bins) * 2048) > 0.99


def test_what_is_too_long_is_refused():
    with pytest.raises(ValueError) as error:
        best_fit([3, 12], 11)
    assert str(error.value) == ("a document of 13 tokens does not fit rows of 11; truncate or split it first")
    with pytest.raises(ValueError) as error:
        collate([[sample(1, 2, 3), sample(4, 5, 6)]], 3)
    assert str(error.value) == "4 positions of documents do not fit a row of 3; pack them first"
    assert len(best_fit([11], 11)) == 1  # length + 1 tokens just fit


def test_a_pair_is_never_split_over_batches():
    rng = np.random.default_rng(1)
    pairs = []
    for number in range(40):
        first, second = rng.integers(2, 9, 2)
        pairs.append([sample(*[2 * number + 1] * first), sample(*[2 * number + 2] * second)])
    batches = list(pack(pairs, rows=2, length=8))
    where = {}
    for number, batch in enumerate(batches):
        assert batch.tokens.shape == (2, 8)
        for document in documents(batch):
            where.setdefault((document[0][0] - 1) // 2, []).append(number)
    assert len(where) == 40
    assert all(len(numbers) == 2 and len(set(numbers)) == 1 for numbers in where.values())


def test_a_group_that_fits_a_row_keeps_its_order_in_it():
    (batch,) = pack([[sample(1, 1), sample(2, 2, 2), sample(3, 3)]], rows=1, length=4)
    assert batch.tokens.tolist() == [[1, 2, 2, 3]]


@given(st.lists(st.lists(st.integers(1, 8), min_size=1, max_size=3), max_size=12), st.integers(3, 4))
def test_packing_keeps_every_prediction_once(group_sizes, rows):
    token, groups = 0, []
    for sizes in group_sizes:
        groups.append([])
        for n in sizes:
            groups[-1].append(sample(*range(token, token + n), learned=n // 2))
            token += n
    found = [document for batch in pack(groups, rows=rows, length=7) for document in documents(batch)]
    expected = [
        (tuple(s.tokens[:-1]), tuple(s.tokens[1:]), tuple(s.weights[1:]), tuple(range(len(s) - 1)))
        for group in groups
        for s in group
        if len(s) > 1
    ]
    assert sorted(document for document in found if document[0]) == sorted(expected)


def test_a_group_larger_than_a_batch_is_refused():
    group = [sample(*range(8)) for _ in range(3)]
    with pytest.raises(ValueError) as error:
        list(pack([group], rows=2, length=7))
    assert str(error.value) == "a group needs 3 rows of 7 and a batch has 2; raise one of them"
