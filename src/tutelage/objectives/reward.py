"""Learn a score for answers from which of them are better.

B rows   T positions   A answers of a batch   P pairs of a better and a worse answer to one prompt
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.data.ranked import RankedBatch
from tutelage.model.transformer import Transformer
from tutelage.objectives.base import Loss, learned_positions
from tutelage.objectives.pair_losses import centring, ranking

LENGTHS = (0, 32, 128, 512, 1 << 62)  # tokens of a pair's longer answer: where its bucket ends


def answer_scores(model: Transformer, batch: RankedBatch) -> Tensor:
    """The score of each answer after its prompt, (A,) float32: the head's at the one position that counts."""
    hidden, _, weights, places = learned_positions(model, batch)
    scores = model.scores(hidden) * weights  # (N,)
    sums = scores.new_zeros(len(batch.numbers) + 1)  # the first collects what belongs to no answer
    return sums.index_add(0, batch.answers.flatten()[places] + 1, scores)[1:]


@dataclass(frozen=True, slots=True)
class Ranking:
    """-log s(better - worse) over all ordered pairs, the mean over the pairs of a prompt, of prompts the sum.

    Bradley-Terry's model, for K answers as in InstructGPT (https://arxiv.org/abs/2203.02155).
    """

    use_margins: bool = False  # subtract by how much it is better (https://arxiv.org/abs/2307.09288)
    centre: float = 0.0  # weight of (better + worse)^2, which holds scores around 0

    def __call__(self, model: Transformer, batch: Batch) -> Loss:
        assert isinstance(batch, RankedBatch)
        scores = answer_scores(model, batch)
        better, worse = scores[batch.better], scores[batch.worse]
        margins = batch.margins if self.use_margins else torch.zeros_like(batch.margins)
        losses = ranking(better, worse, margins)
        losses = losses + self.centre * centring(better, worse) if self.centre else losses
        with torch.no_grad():
            right, gap = (better > worse).float(), better - worse
            sums = {"accuracy": right, "margin": gap, "rewards_chosen": better, "rewards_rejected": worse}
            sums = {name: (values * batch.shares).sum() for name, values in sums.items()}
        split, counts = ({}, {}) if losses.requires_grad else _by_length(batch, right, gap)
        return Loss((losses * batch.shares).sum(), batch.shares.sum(), sums | split, counts)


def _by_length(batch: RankedBatch, right: Tensor, gap: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Accuracy and gap of pairs by the length of the longer answer, and by whether the better is longer."""
    n_better, n_worse = batch.lengths[batch.better], batch.lengths[batch.worse]
    longer = torch.maximum(n_better, n_worse)
    buckets = {
        f"to_{end}" if end < LENGTHS[-1] else f"over_{begin}": (longer > begin) & (longer <= end)
        for begin, end in pairwise(LENGTHS)
    }
    buckets |= {"better_longer": n_better > n_worse, "better_shorter": n_better < n_worse}
    sums, counts = {}, {}
    for name, inside in buckets.items():
        weights = batch.shares * inside
        for what, values in (("accuracy", right), ("margin", gap)):
            sums[f"{what}_{name}"], counts[f"{what}_{name}"] = (values * weights).sum(), weights.sum()
    return sums, counts
