"""How far a policy has gone from its reference, over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tutelage import dist
from tutelage.data.batch import Batch
from tutelage.model.transformer import Transformer
from tutelage.objectives.base import kl_divergence, learned_positions
from tutelage.train.parallel import reshard

if TYPE_CHECKING:
    from tutelage.recipes.stage.reference import Reference

GAUGED = 4096  # held-out tokens at which the divergence from the reference is measured


class Divergence:
    """KL(policy || reference) over the whole vocabulary, in nats a token, at held-out places of answers.

    Kept are the reference's hidden states and its head, not the reference. The texts are the data's, not the
    policy's own: what a policy would write may be further away.
    """

    def __init__(self, reference: Reference, steps: Iterable[list[Batch]], device: torch.device) -> None:
        self._kept: list[tuple[Batch, Tensor]] = []
        model = reference.model
        model.eval()
        seen = 0
        with torch.no_grad(), reference.inside():
            for batch in (batch.to(device) for step in steps for batch in step):
                if seen >= GAUGED:  # over all processes, which so stop together
                    break
                self._kept.append((batch, _states(model, batch)))
                seen += int(dist.all_reduce_sum((batch.weights > 0).sum()))
            head = model.head_weight
            self._head = head.detach().clone()
            reshard(model)

    @torch.no_grad()
    def __call__(self, model: Transformer) -> dict[str, float]:
        """How far the model is from the reference."""
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self._head.device)
        for batch, was in self._kept:
            hidden = _states(model, batch)
            counted = torch.ones(len(hidden), device=hidden.device)
            head, cap = model.head_weight, model.config.logit_cap
            sums[0] += kl_divergence(hidden, head, was, self._head, counted, cap=cap).double()
            sums[1] += len(hidden)
        reshard(model)
        total, count = dist.all_reduce_sum(sums).tolist()
        return {"kl": total / (count or 1.0)}


def _states(model: Transformer, batch: Batch) -> Tensor:
    """Hidden states (N, D) of learned positions alone: on CUDA too, where kept prompts could be gigabytes."""
    hidden, _, weights, _ = learned_positions(model, batch)
    return hidden[weights > 0]
