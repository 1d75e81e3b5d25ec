"""The ranking objective over batches: its numbers by hand, what must not change it, what it says."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_objectives import tiny
from test_preference import answers, assert_equal_runs, gradients
from torch import nn

from tutelage.data.batch import Sample
from tutelage.data.groups import Comparisons
from tutelage.data.loader import Loader
from tutelage.data.ranked import collate_ranked
from tutelage.data.store import SampleStore
from tutelage.model.transformer import Transformer, give_score_head_
from tutelage.objectives.reward import Ranking, answer_scores

OBJECTIVES = {
    "plain": Ranking(),
    "margins": Ranking(use_margins=True),
    "centred": Ranking(centre=0.1),
    "margins, centred": Ranking(use_margins=True, centre=0.1),
}
SCORES = [4, 1, 5, 2.5, 2, math.nan, math.nan, 3, 1, 9, 8, 8, 0, 1, 0]  # of the answers of `answers()`


def judge(**settings) -> Transformer:
    """A tiny model whose score head is large enough to matter."""
    model = tiny(**settings)
    give_score_head_(model, seed=0)
    with torch.no_grad():
        model.head_weight.mul_(30)
    return model


class Fixed(nn.Module):
    """Gives these scores to the positions that count, in their order, for arithmetic by hand."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, tokens, positions, docs=None, *, roles=None, branches=None):
        return torch.zeros(*tokens.shape, 1)

    def scores(self, hidden):
        return self.values


def store_of(sizes, *, scores=None, ranks=None, lengths=None) -> SampleStore:
    """Groups of so many answers, each of so many learned tokens after a prompt of two."""
    lengths = lengths or [1] * sum(sizes)
    samples = [Sample([5, 6, *[7] * n], [0, 0, *[1] * n], [1, 1, *[2] * n]) for n in lengths]
    store = SampleStore.of(samples, kind="ranked")
    store.shards[0] = replace(
        store.shards[0],
        lines=np.repeat(np.arange(len(sizes)), sizes),
        ranks=np.array(ranks or [rank for size in sizes for rank in range(size)], np.uint8),
        scores=np.array(scores or [math.nan] * sum(sizes), np.float32),
    )
    return store


def laid(store, *, rows, share=False, packed=False):
    """The whole of a store in batches of so many groups, or of packed rows."""
    groups = Comparisons(store, share_prompt=share, scored=True)
    settings = {"rows": rows, "accumulate": 1, "packed": packed, "seed": 0, "shuffle": False, "epochs": 1}
    return [batch for step in Loader(groups, length=100, lay=collate_ranked, **settings) for batch in step]


def loss_of(values, objective, **settings):
    """The mean loss over prompts of answers that are given these scores, and the sums."""
    sizes = settings.pop("sizes", (len(values),))
    (batch,) = laid(store_of(sizes, **settings), rows=len(sizes))
    loss = objective(Fixed(values), batch)
    return float(loss.total.detach()) / float(loss.weight), loss


def test_ranked_answers_by_hand():
    """-log s of the gaps .9, 1.7, .8 is .341154, .167786, .371101, in the mean .293347."""
    assert loss_of([1.2, 0.3, -0.5], Ranking())[0] == pytest.approx(0.293347, abs=1e-6)
    assert loss_of([1.2, 0.3], Ranking())[0] == pytest.approx(0.341154, abs=1e-6)


def test_the_mean_is_over_the_pairs_of_a_prompt_and_then_over_prompts():
    mean, loss = loss_of([1.2, 0.3, -0.5, 1.2, 0.3], Ranking(), sizes=(3, 2))
    assert mean == pytest.approx((0.293347 + 0.341154) / 2, abs=1e-6) and float(loss.weight) == pytest.approx(
        2
    )
    said = {name: float(value) / 2 for name, value in loss.metrics.items()}
    assert said["accuracy"] == pytest.approx(1) and said["margin"] == pytest.approx((3.4 / 3 + 0.9) / 2)
    assert said["rewards_chosen"] == pytest.approx((2.7 / 3 + 1.2) / 2)
    assert said["rewards_rejected"] == pytest.approx((-0.7 / 3 + 0.3) / 2)


def test_margins_are_subtracted_and_unknown_ones_are_0():
    """Gaps .9, 1.7, .8 less margins 1, 1.5, .5: -log s(-.1), s(.2), s(.3)."""
    by_hand = [math.log(1 + math.exp(-x)) for x in (-0.1, 0.2, 0.3)]
    objective, scores = Ranking(use_margins=True), [2, 1, 0.5]
    assert loss_of([1.2, 0.3, -0.5], objective, scores=scores)[0] == pytest.approx(sum(by_hand) / 3, abs=1e-6)
    assert loss_of([1.2, 0.3, -0.5], objective)[0] == pytest.approx(0.293347, abs=1e-6)
    assert loss_of([1.2, 0.3, -0.5], Ranking(), scores=scores)[0] == pytest.approx(0.293347, abs=1e-6)


def test_centring_adds_the_square_of_the_sum():
    """.1 x the mean of 1.5^2, .7^2, (-.2)^2."""
    mean, _ = loss_of([1.2, 0.3, -0.5], Ranking(centre=0.1))
    assert mean == pytest.approx(0.293347 + 0.1 * (2.25 + 0.49 + 0.04) / 3, abs=1e-6)


def test_ties_are_no_pairs_and_a_prompt_of_ties_counts_nothing():
    """Ranks 0 1 1: the gaps .9 and 1.7 count, .8 does not."""
    by_hand = (math.log(1 + math.exp(-0.9)) + math.log(1 + math.exp(-1.7))) / 2
    ranks = {"ranks": [0, 1, 1], "scores": [3, 1, 1]}
    assert loss_of([1.2, 0.3, -0.5], Ranking(), **ranks)[0] == pytest.approx(by_hand, abs=1e-6)
    ranks = {"ranks": [0, 1, 1, 0, 0], "sizes": (3, 2)}
    mean, loss = loss_of([1.2, 0.3, -0.5, 7, 9], Ranking(), **ranks)
    assert mean == pytest.approx(by_hand, abs=1e-6) and float(loss.weight) == pytest.approx(1)


def test_equal_scores_are_a_guess_and_not_right():
    mean, loss = loss_of([0.7, 0.7], Ranking())
    assert mean == pytest.approx(math.log(2)) and float(loss.metrics["accuracy"]) == 0


def test_length_buckets_by_hand_and_only_where_nothing_is_learned():
    """Learned tokens 32 and 9, 33 and 40, 3 and 600, 5 and 5; the second pair alone is in the wrong order.

    By the longer answer: to 32 has the first and the last, to 128 the second, over 512 the third.
    """
    lengths, scores = [32, 9, 33, 40, 3, 600, 5, 5], [2.0, 1, 0, 3, 5, 1, 1, 0]
    store = store_of((2, 2, 2, 2), lengths=lengths)
    (batch,) = [collate_ranked([Comparisons(store, scored=True).group(i) for i in range(4)], 700)]
    learning = Ranking()(Fixed(scores), batch)
    with torch.no_grad():
        loss = Ranking()(Fixed(scores), batch)
    assert not learning.counts and learning.metrics.keys() == {
        "accuracy",
        "margin",
        "rewards_chosen",
        "rewards_rejected",
    }
    counts = {
        name.removeprefix("accuracy_"): float(n) for name, n in loss.counts.items() if "accuracy" in name
    }
    assert counts == {
        "to_32": 2, "to_128": 1, "to_512": 0, "over_512": 1, "better_longer": 1, "better_shorter": 2,
    }  # fmt: skip
    right = {name: float(loss.metrics[f"accuracy_{name}"]) for name in counts}
    assert right == {
        "to_32": 2, "to_128": 0, "to_512": 0, "over_512": 1, "better_longer": 1, "better_shorter": 1,
    }  # fmt: skip
    gaps = {name: float(loss.metrics[f"margin_{name}"]) for name in counts}
    assert gaps == {
        "to_32": 2, "to_128": -3, "to_512": 0, "over_512": 4, "better_longer": 1, "better_shorter": 1,
    }  # fmt: skip


def test_an_answers_score_is_the_heads_at_its_last_token():
    """Each answer alone through the model, against batches of any layout."""
    model, store = judge(roles=True), answers()
    expected = []
    for number in range(len(store)):
        sample = store[number]
        tokens, roles = (torch.tensor(np.asarray(v, np.int64))[None] for v in (sample.tokens, sample.roles))
        hidden = model(tokens, torch.arange(tokens.shape[1])[None], roles=roles)
        expected.append(model.scores(hidden)[0, -1].item())
    assert np.std(expected) > 0.1
    for share in (False, True):
        for rows, packed in ((1, False), (6, False), (2, True)):
            found = {}
            for batch in laid(store, rows=rows, share=share, packed=packed):
                scores = answer_scores(model, batch).tolist()
                found |= dict(zip(batch.numbers.tolist(), scores, strict=True))
            assert [found[i] for i in range(len(store))] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_does_not_depend_on_how_it_is_cut_or_on_sharing_prompts(name):
    objective, store = OBJECTIVES[name], answers(scores=SCORES)
    model = judge(roles=True)
    whole = gradients(model, objective, laid(store, rows=6))
    assert any(grad.abs().max() > 1e-3 for grad in whole[1])
    for batches in (
        laid(store, rows=1),
        laid(store, rows=4),
        laid(store, rows=2, packed=True),
        laid(store, rows=6, share=True),
        laid(store, rows=1, share=True),
        laid(store, rows=2, share=True, packed=True),
        [*laid(store, rows=3), collate_ranked([[]], 64)],  # an epoch's last step is topped up
    ):
        assert_equal_runs(gradients(model, objective, batches), whole)


def test_an_empty_micro_batch_counts_nothing_and_keeps_its_metrics():
    model, full = judge(), laid(answers(), rows=6)[0]
    for objective in OBJECTIVES.values():
        loss = objective(model, collate_ranked([[], []], 64))
        loss.total.backward()
        assert float(loss.total) == 0 and float(loss.weight) == 0
        assert loss.metrics.keys() == objective(model, full).metrics.keys()
        with torch.no_grad():
            one, other = objective(model, collate_ranked([[]], 64)), objective(model, full)
        assert one.metrics.keys() == other.metrics.keys() and one.counts.keys() == other.counts.keys()
        assert not any(float(value) for value in (*one.metrics.values(), *one.counts.values()))
