"""AdamW with decay groups, learning-rate schedules, and optimizer state that exists before the first step."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from tutelage.train.trainer import Schedule


def adamw(
    parameters: Mapping[str, Tensor], *, lr: float, betas: tuple[float, float], eps: float, wd: float
) -> AdamW:
    """AdamW (https://arxiv.org/abs/1711.05101), fused; norms, biases and other vectors are not decayed."""
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    matrices = [p for name, p in trained.items() if decays(name, p)]
    vectors = [p for name, p in trained.items() if not decays(name, p)]
    groups = [{"params": matrices, "weight_decay": wd}, {"params": vectors, "weight_decay": 0.0}]
    return AdamW([group for group in groups if group["params"]], lr=lr, betas=betas, eps=eps, fused=True)


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: to matrices that are no norm and no bias."""
    return parameter.ndim >= 2 and not any(word in name for word in ("bias", "norm", "ln"))


def schedule(
    kind: Literal["linear", "cosine", "constant"], *, steps: int, warmup: int, floor: float = 0.0
) -> Schedule:
    """Factor of the learning rate at a step, from 0: up over `warmup` steps, then down to `floor` at `steps`.

    The first step of a warm-up already learns: its factor is 1 / warmup, not 0.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if kind == "constant":
            return 1.0
        progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
        shape = 1 - progress if kind == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return floor + (1 - floor) * shape

    return factor


@torch.no_grad()
def allocate_state(optimizer: Optimizer) -> None:
    """Make the optimizer's state exist, fresh as before a first step, so that loading can fill it."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
        for p in group["params"]:
            optimizer.state[p]["step"].zero_()
