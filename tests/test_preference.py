"""Preference objectives over batches: what they sum, and what must not change it."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from test_objectives import VOCABULARY, tiny
from torch.nn import functional as F

from tutelage.data.batch import Sample
from tutelage.data.groups import Comparisons, Stretch
from tutelage.data.loader import Loader
from tutelage.data.pack import empty
from tutelage.data.ranked import collate_ranked, collate_with_strays
from tutelage.data.store import SampleStore
from tutelage.objectives.pair_losses import LOSSES
from tutelage.objectives.preference import DPO, KTO, SimPO, answer_logps

SMOOTHING = {"exo": 0.1, "robust": 0.2, "sigmoid": 0.1}
OBJECTIVES = {name: DPO(loss, 0.3, SMOOTHING.get(name, 0.0)) for name, loss in LOSSES.items()}
OBJECTIVES |= {
    "sigmoid by length": DPO(LOSSES["sigmoid"], 2.0, by_length=True),
    "rpo": DPO(LOSSES["sigmoid"], 0.3, nll=0.7),
    "simpo": SimPO(2.0, 0.5),
    "simpo nll": SimPO(2.0, 0.5, nll=0.3),
    "kto": KTO(0.3, 1.3, 0.8),
}


def answers(*, sizes=(2, 3, 2, 2, 4, 2), seed=0, prompts=(5, 1, 9, 3, 12, 2), scores=None) -> SampleStore:
    """Groups of random answers of ragged lengths, each after the prompt of its group."""
    draw = np.random.default_rng(seed)
    samples, lines, ranks = [], [], []
    for line, (size, length) in enumerate(zip(sizes, prompts, strict=True), start=1):
        prompt = draw.integers(0, VOCABULARY, length).tolist()
        for rank in range(size):
            own = draw.integers(0, VOCABULARY, int(draw.integers(1, 9))).tolist()
            weights = [0.0] * length + [1.0] * len(own)
            roles = [1] * length + [2] * len(own)
            samples.append(Sample(prompt + own, weights, roles))
            lines.append(line)
            ranks.append(rank)
    store = SampleStore.of(samples, kind="ranked")
    known = np.full(len(samples), np.nan) if scores is None else np.array(scores)
    store.shards[0] = replace(
        store.shards[0],
        lines=np.array(lines),
        ranks=np.array(ranks, np.uint8),
        scores=known.astype(np.float32),
    )
    return store


def laid(store, *, rows, share=False, packed=False, strays=False, length=80):
    """The whole of a store in batches of so many groups, or of packed rows."""
    groups = Comparisons(store, share_prompt=share)
    lay = partial(collate_with_strays, groups) if strays else collate_ranked
    loader = Loader(
        groups,
        length=length,
        rows=rows,
        accumulate=1,
        packed=packed,
        seed=0,
        shuffle=False,
        epochs=1,
        lay=lay,
    )
    return [batch for step in loader for batch in step]


def judged(batch, *, seed=7):
    """The batch with a made-up reference: a number for every answer, whatever batch it is in."""
    table = torch.randn(100, generator=torch.Generator().manual_seed(seed)) * 3 - 20
    return replace(batch, ref_logps=table[batch.numbers], drift=torch.tensor(0.4))


def gradients(model, objective, batches):
    total, weight, sums = 0.0, 0.0, {}
    for batch in batches:
        loss = objective(model, judged(batch))
        loss.total.backward()
        total, weight = total + float(loss.total), weight + float(loss.weight)
        for name, value in loss.metrics.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    grads = [p.grad / weight for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return total / weight, grads, sums


def assert_equal_runs(one, other, tolerance=1e-5):
    """Gradients by the largest of their tensor where that is above 1: SPPO's are tens, their rounding too."""
    assert one[0] == pytest.approx(other[0], rel=tolerance, abs=tolerance)
    for a, b in zip(one[1], other[1], strict=True):
        scale = max(1.0, float(b.abs().max()))
        torch.testing.assert_close(a, b, atol=tolerance * scale, rtol=tolerance)
    assert one[2] == pytest.approx(other[2], rel=1e-4, abs=1e-4)


def test_an_answers_logp_is_that_of_its_tokens_after_the_prompt():
    """Each answer alone through the model: log-softmax of the logits, summed where its weight is 1."""
    model, store = tiny(), answers()
    found = torch.cat([answer_logps(model, batch) for batch in laid(store, rows=2)])
    for number in range(len(store)):
        sample = store[number]
        tokens = torch.tensor(np.asarray(sample.tokens, np.int64))[None]
        places = torch.arange(tokens.shape[1])[None]
        logps = F.log_softmax(model.unembed(model(tokens, places)), -1)[0, :-1]
        own = logps.gather(1, tokens[0, 1:, None])[:, 0]
        expected = (own * torch.tensor(np.asarray(sample.weights))[1:]).sum()
        assert found[number].item() == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_does_not_depend_on_how_it_is_cut(name):
    model, objective, store = tiny(), OBJECTIVES[name], answers()
    whole = gradients(model, objective, laid(store, rows=6))
    for batches in (
        laid(store, rows=1),
        laid(store, rows=4),
        laid(store, rows=2, packed=True),
        [*laid(store, rows=3), collate_ranked([[]], 64)],  # an epoch's last step is topped up
    ):
        assert_equal_runs(gradients(model, objective, batches), whole)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_shared_prompt_changes_no_gradient(name):
    model, objective, store = tiny(roles=True), OBJECTIVES[name], answers()
    apart = gradients(model, objective, laid(store, rows=6))
    for batches in (
        laid(store, rows=6, share=True),
        laid(store, rows=1, share=True),
        laid(store, rows=2, share=True, packed=True),
    ):
        assert_equal_runs(gradients(model, objective, batches), apart)


def test_a_shared_prompt_is_laid_once_and_its_last_token_by_every_answer():
    """Prompt 7 8 9, answers 1 2 and 3: the trunk reads 7 8; each answer begins by reading the 9.

    tokens     7 8 | 9 1 | 9        targets    8 9 | 1 2 | 3
    positions  0 1 | 2 3 | 2        weights    0 0 | 1 1 | 1        branches  0 0 | 1 1 | 2
    """
    samples = [Sample([7, 8, 9, 1, 2], [0, 0, 0, 1, 1], [1, 1, 1, 2, 2])]
    samples.append(Sample([7, 8, 9, 3], [0, 0, 0, 1], [1, 1, 1, 2]))
    store = SampleStore.of(samples, kind="ranked")
    ranks, scores = np.array([0, 1], np.uint8), np.array([0.5, 0], np.float32)
    store.shards[0] = replace(store.shards[0], lines=np.array([1, 1]), ranks=ranks, scores=scores)
    (batch,) = laid(store, rows=1, share=True)
    rows = {
        "tokens": [7, 8, 9, 1, 9],
        "targets": [8, 9, 1, 2, 3],
        "weights": [0, 0, 1, 1, 1],
        "positions": [0, 1, 2, 3, 2],
        "docs": [0] * 5,
        "roles": [1, 1, 1, 2, 1],
        "branches": [0, 0, 1, 1, 2],
        "answers": [-1, -1, 0, 0, 1],
    }
    assert {name: getattr(batch, name)[0, :5].tolist() for name in rows} == rows
    assert batch.docs[0, 5:].eq(-1).all() and batch.answers[0, 5:].eq(-1).all()
    assert batch.better.tolist() == [0] and batch.worse.tolist() == [1]
    assert batch.lengths.tolist() == [2, 1] and batch.margins.tolist() == [0.5]
    assert batch.liked.tolist() == [True, False] and batch.shares.tolist() == [1]


def test_ranked_answers_give_every_ordered_pair_and_ties_none():
    """Ranks 0 1 1 2: five pairs, each 1/5 of its prompt; their margins are the differences of scores."""
    store = answers(sizes=(4,), prompts=(3,), scores=[5, 2, 2, 0.5])
    store.shards[0] = replace(store.shards[0], ranks=np.array([0, 1, 1, 2], np.uint8))
    (batch,) = laid(store, rows=1)
    pairs = list(zip(batch.better.tolist(), batch.worse.tolist(), strict=True))
    assert pairs == [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]
    assert batch.shares.tolist() == pytest.approx([0.2] * 5)
    assert batch.margins.tolist() == [3, 3, 4.5, 1.5, 1.5]
    assert batch.liked.tolist() == [True, False, False, False]


def test_a_prompt_weighs_one_however_many_pairs_it_has():
    model, store = tiny(), answers()
    loss = DPO(LOSSES["sigmoid"])(model, judged(laid(store, rows=6)[0]))
    assert float(loss.weight) == pytest.approx(6)
    each = [DPO(LOSSES["sigmoid"])(model, judged(batch)) for batch in laid(store, rows=1)]
    assert float(loss.total) == pytest.approx(sum(float(one.total) for one in each), rel=1e-5)


def test_simpo_divides_by_learned_tokens_and_never_mixes_pairs():
    """torchllms took padded lengths, and (B,) against (B, 1) mixed the pairs (defect 1.13.1).

    By hand: margin_i = logp_w / |w| - logp_l / |l| of one pair, |y| its learned tokens, whatever the row.
    """
    model, store = tiny(), answers(sizes=(2, 2, 2), prompts=(4, 11, 2))
    (batch,) = laid(store, rows=3)
    logps, n = answer_logps(model, batch).detach(), [store[i].weights.sum() for i in range(6)]
    margins = [logps[2 * i] / n[2 * i] - logps[2 * i + 1] / n[2 * i + 1] for i in range(3)]
    expected = sum(-math.log(1 / (1 + math.exp(-1.5 * (float(margin) - 0.3)))) for margin in margins)
    wide = Loader(
        Comparisons(store),
        length=300,
        rows=1,
        accumulate=1,
        packed=True,
        seed=0,
        epochs=1,
        lay=collate_ranked,
    )
    for one in (batch, *next(iter(wide))):
        loss = SimPO(1.5, 0.3)(model, one)
        assert float(loss.total) == pytest.approx(expected, abs=1e-4) and float(loss.weight) == pytest.approx(
            3
        )


def test_no_tensor_of_all_logits_is_formed():
    """A chunk of logits at a time, and answers' positions alone meet the head."""
    store = answers()
    (batch,) = laid(store, rows=6)
    learned = int((batch.weights > 0).sum())
    assert learned < batch.weights.numel() / 2
    model = tiny()
    met = []
    handle = torch.Tensor.__matmul__

    def watching(left, right):
        if right.dim() == 2 and right.shape[-1] == VOCABULARY:
            met.append(left.shape[0])
        return handle(left, right)

    torch.Tensor.__matmul__ = watching
    try:
        answer_logps(model, batch)
    finally:
        torch.Tensor.__matmul__ = handle
    assert met == [learned]


def test_an_empty_micro_batch_counts_nothing_and_keeps_its_metrics():
    model = tiny()
    full = judged(laid(answers(), rows=6)[0])
    for objective in OBJECTIVES.values():
        loss = objective(model, judged(collate_ranked([[], []], 64)))
        loss.total.backward()
        assert float(loss.total) == 0 and float(loss.weight) == 0
        assert loss.metrics.keys() == objective(model, full).metrics.keys()
    assert empty(2, 64).docs.eq(-1).all()


def test_strays_are_prompts_with_answers_to_others():
    """Answer k of a record takes the answer k of the record before it, in place of its own."""
    store = answers(sizes=(2, 1, 3), prompts=(4, 2, 3))
    groups = Comparisons(store)
    expected = {0: (0, 3), 1: (1, 4), 2: (2, 0), 3: (3, 2), 4: (4, 2), 5: (5, 2)}
    for number, (prompt, answer) in expected.items():
        stray = groups.stray(number)
        assert isinstance(stray, Stretch) and stray.number == number + 6
        own, other = store[prompt], store[answer]
        cut, begin = int(np.argmax(own.weights > 0)), int(np.argmax(other.weights > 0))
        wanted = [*own.tokens[:cut].tolist(), *other.tokens[begin:].tolist()][: int(store.lengths.max())]
        assert np.asarray(stray.tokens).tolist() == wanted
    (batch,) = laid(store, rows=3, strays=True)
    assert batch.strays is not None and batch.strays.numbers.tolist() == list(range(6, 12))
    assert not len(batch.strays.better)


def test_a_judged_answer_counts_at_its_last_token_alone():
    store = answers(sizes=(2,), prompts=(3,))
    for share in (False, True):
        groups = Comparisons(store, scored=True, share_prompt=share)
        batch = collate_ranked([groups.group(0)], 64)
        counted = batch.weights > 0
        assert batch.tokens[counted].tolist() == [int(store[i].tokens[-1]) for i in range(2)]
        assert batch.positions[counted].tolist() == [len(store[i]) - 1 for i in range(2)]
        assert batch.answers[counted].tolist() == [0, 1]
        assert batch.lengths.tolist() == [store[i].weights.sum() for i in range(2)]
