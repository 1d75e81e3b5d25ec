"""Learn which answers are better: DPO and its relatives, SimPO, and KTO, which needs no pairs.

B rows   T positions   A answers of a batch   P pairs of a better and a worse answer to one prompt
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.data.ranked import RankedBatch
from tutelage.model.transformer import Transformer
from tutelage.objectives.base import Loss, token_logps
from tutelage.objectives.pair_losses import PairLoss, Pairs, kto, normalised, simpo


def answer_logps(model: Transformer, batch: RankedBatch) -> Tensor:
    """log p(answer) of each answer, (A,) float32: the sum over its learned tokens."""
    logps = token_logps(model, batch) * batch.weights  # (B, T)
    sums = logps.new_zeros(len(batch.numbers) + 1)  # the first collects what belongs to no answer: zeros
    return sums.index_add(0, batch.answers.flatten() + 1, logps.flatten())[1:]


def pairs_of(batch: RankedBatch, logps: Tensor) -> Pairs:
    """The pairs of a batch whose answers have these log-probabilities (A,); without a reference its are 0."""
    ref = torch.zeros_like(logps) if batch.ref_logps is None else batch.ref_logps
    better, worse = batch.better, batch.worse
    return Pairs(
        chosen=logps[better],
        rejected=logps[worse],
        ref_chosen=ref[better],
        ref_rejected=ref[worse],
        n_chosen=batch.lengths[better],
        n_rejected=batch.lengths[worse],
        margins=batch.margins,
    )


@dataclass(frozen=True, slots=True)
class DPO:
    """A loss of `pair_losses` over all pairs, a prompt counting once however many pairs it has."""

    loss: PairLoss
    beta: float = 0.1
    smoothing: float = 0.0  # chance that a label is wrong
    by_length: bool = False  # every log-probability divided by its answer's length
    nll: float = (
        0.0  # weight of the chosen answers' own loss, by the token: RPO, https://arxiv.org/abs/2404.19733
    )

    def __call__(self, model: Transformer, batch: Batch) -> Loss:
        assert isinstance(batch, RankedBatch)
        pairs = pairs_of(batch, answer_logps(model, batch))
        counted = normalised(pairs) if self.by_length else pairs
        losses = self.loss(counted, self.beta, self.smoothing)
        rewards = self.beta * counted.chosen_gain, self.beta * counted.rejected_gain
        return _compared(batch, pairs, losses, *rewards, nll=self.nll)


@dataclass(frozen=True, slots=True)
class SimPO:
    """SimPO, https://arxiv.org/abs/2405.14734: no reference; log-probabilities by the learned token."""

    beta: float = 1.0
    gamma: float = 1.0  # wanted margin, in nats a token: the paper's gamma / beta
    nll: float = 0.0

    def __call__(self, model: Transformer, batch: Batch) -> Loss:
        assert isinstance(batch, RankedBatch)
        pairs = pairs_of(batch, answer_logps(model, batch))
        means = normalised(pairs)
        losses = simpo(pairs, self.beta, self.gamma)
        return _compared(
            batch, pairs, losses, self.beta * means.chosen, self.beta * means.rejected, nll=self.nll
        )


@dataclass(frozen=True, slots=True)
class KTO:
    """KTO, https://arxiv.org/abs/2402.01306: answers one by one, liked or not. Each counts the same."""

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __call__(self, model: Transformer, batch: Batch) -> Loss:
        assert isinstance(batch, RankedBatch)
        logps = answer_logps(model, batch)
        ref = torch.zeros_like(logps) if batch.ref_logps is None else batch.ref_logps
        drift = logps.new_zeros(()) if batch.drift is None else batch.drift
        weights = self.desirable_weight, self.undesirable_weight
        losses = kto(logps, ref, batch.liked, drift, self.beta, *weights)
        rewards, liked, n = (self.beta * (logps - ref)).detach(), batch.liked, losses.new_tensor(len(losses))
        kinds = {"chosen": liked.float(), "rejected": (~liked).float()}
        sums = {f"rewards_{kind}": (rewards * mask).sum() for kind, mask in kinds.items()}
        sums |= {f"logps_{kind}": (logps.detach() * mask).sum() for kind, mask in kinds.items()}
        counts = {name: kinds[name.rpartition("_")[2]].sum() for name in sums}
        sums["drift"] = drift * n
        if len(batch.better):
            won = rewards[batch.better] > rewards[batch.worse]
            sums["accuracy"], counts["accuracy"] = (won * batch.shares).sum(), batch.shares.sum()
        else:  # the same names on every process, whatever its data
            sums["accuracy"], counts["accuracy"] = torch.zeros_like(n), torch.zeros_like(n)
        return Loss(losses.sum(), n, sums, counts)


def _compared(
    batch: RankedBatch, pairs: Pairs, losses: Tensor, chosen: Tensor, rejected: Tensor, *, nll: float
) -> Loss:
    """The loss of pairs (P,) and what to watch; `chosen` and `rejected` (P,) are what the policy gives them.

    With `nll`, the weight of the chosen answers' own loss, each by its own length.
    """
    own = -pairs.chosen / pairs.n_chosen.clamp(min=1)
    losses = losses + nll * own if nll else losses
    with torch.no_grad():
        means = normalised(pairs)
        longer = pairs.n_chosen - pairs.n_rejected
        watched = {
            "accuracy": (chosen > rejected).float(),
            "margin": chosen - rejected,
            "rewards_chosen": chosen,
            "rewards_rejected": rejected,
            "logps_chosen": pairs.chosen,
            "logps_rejected": pairs.rejected,
            "likelier": (means.chosen > means.rejected).float(),  # by the token, whatever the reference says
            "length_gap": longer
            * (chosen - rejected).sign(),  # tokens: of what it prefers, against the other
        }
        watched |= {"nll": own} if nll else {}
    sums = {name: (values.detach() * batch.shares).sum() for name, values in watched.items()}
    return Loss((losses * batch.shares).sum(), batch.shares.sum(), sums)
