"""The objective over held-out data: sums over all of it, divided once."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tutelage import dist
from tutelage.data.batch import Batch
from tutelage.objectives.base import Objective
from tutelage.train.parallel import reshard
from tutelage.train.trainer import COUNT, means


@torch.no_grad()
def evaluate(
    model: Any,
    objective: Objective,
    steps: Iterable[list[Batch]],
    *,
    likelihood: bool = True,
    token_bytes: Tensor | None = None,
) -> dict[str, float]:
    """Loss (nats), perplexity and the objective's metrics over every batch; the model's mode is put back.

    A loss that is no `likelihood` of tokens has no perplexity.

    With `token_bytes` (V,), the bytes of text a token stands for, also the bits per byte of what is learned,
    which compares models whatever their vocabularies.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    sums: dict[str, torch.Tensor] = {}
    for batch in (batch for step in steps for batch in step):
        loss = objective(model, batch.to(device))
        parts = {"loss": loss.total, "weight": loss.weight, **loss.metrics}
        parts |= {f"{COUNT}{name}": count for name, count in loss.counts.items()}
        if token_bytes is not None:
            parts["bytes"] = (token_bytes[batch.targets] * (batch.weights > 0)).sum().to(device)
        for name, value in parts.items():
            sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64, device=device)) + value.double()
    model.train(was_training)
    reshard(model)
    reduced = dist.all_reduce_sum(torch.stack(list(sums.values()))).tolist()
    totals = dict(zip(sums, reduced, strict=True))
    weight = totals.pop("weight") or 1.0
    n_bytes, nats = totals.pop("bytes", 0.0), totals["loss"]
    values = means(totals, weight)
    if likelihood:
        values["perplexity"] = math.exp(min(values["loss"], 700.0))
    if n_bytes:
        values["bits_per_byte"] = nats / math.log(2) / n_bytes
    return values
