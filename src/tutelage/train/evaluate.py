"""The objective over held-out data: sums over all of it, divided once."""

import math
from collections.abc import Iterable
from typing import Any

import torch

from tutelage import dist
from tutelage.data.batch import Batch
from tutelage.objectives.base import Objective
from tutelage.train.parallel import reshard


@torch.no_grad()
def evaluate(model: Any, objective: Objective, steps: Iterable[list[Batch]]) -> dict[str, float]:
    """Loss (nats), perplexity and the objective's metrics over every batch; the model's mode is put back."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    sums: dict[str, torch.Tensor] = {}
    for batch in (batch for step in steps for batch in step):
        loss = objective(model, batch.to(device))
        for name, value in {"loss": loss.total, "weight": loss.weight, **loss.metrics}.items():
            sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64, device=device)) + value.double()
    model.train(was_training)
    reshard(model)
    reduced = dist.all_reduce_sum(torch.stack(list(sums.values()))).tolist()
    totals = dict(zip(sums, reduced, strict=True))
    weight = totals.pop("weight") or 1.0
    means = {name: value / weight for name, value in totals.items()}
    return {**means, "perplexity": math.exp(min(means["loss"], 700.0))}
