"""AdamW with decay groups, Muon beside it, learning-rate schedules, and state that exists before a step."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

from tutelage.errors import UserError
from tutelage.train.narrow_adamw import Kind, NarrowAdamW
from tutelage.train.trainer import Schedule


def adamw(
    parameters: Mapping[str, Tensor], *, lr: float, betas: tuple[float, float], eps: float, wd: float
) -> AdamW:
    """AdamW (https://arxiv.org/abs/1711.05101), fused; norms, biases and other vectors are not decayed."""
    return AdamW(_groups(parameters, wd), lr=lr, betas=betas, eps=eps, fused=True)


def narrow_adamw(
    parameters: Mapping[str, Tensor],
    *,
    kind: Kind,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    wd: float,
    seed: int,
) -> NarrowAdamW:
    """The same, with moments in fewer bytes."""
    return NarrowAdamW(_groups(parameters, wd), kind=kind, lr=lr, betas=betas, eps=eps, seed=seed)


def _groups(parameters: Mapping[str, Tensor], wd: float) -> list[dict[str, Any]]:
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    matrices = [p for name, p in trained.items() if decays(name, p)]
    vectors = [p for name, p in trained.items() if not decays(name, p)]
    groups = [{"params": matrices, "weight_decay": wd}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: to matrices that are no norm and no bias."""
    return parameter.ndim >= 2 and not any(word in name for word in ("bias", "norm", "ln"))


class MuonAdamW(Optimizer):
    """Muon for the matrices inside blocks, AdamW for embeddings, head, norms and biases, as one optimizer.

    Muon (https://kellerjordan.github.io/posts/muon/) moves a matrix by its momentum made orthogonal, here
    scaled to the size of AdamW's steps (https://arxiv.org/abs/2502.16982), so that one learning rate and one
    weight decay suit both. Both work on this object's groups and state: to others it is one optimizer.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        lr: float,
        muon_lr: float | None,
        betas: tuple[float, float],
        eps: float,
        wd: float,
    ):
        inside = {name: p for name, p in parameters.items() if p.requires_grad and by_muon(name, p)}
        others = {name: p for name, p in parameters.items() if name not in inside}
        if not inside or not others:
            raise UserError(
                "optimizer muon trains matrices inside blocks and leaves all else to adamw, and one of the "
                "two has nothing to train; give --optimizer adamw"
            )
        rate = lr if muon_lr is None else muon_lr
        self._adamw = adamw(others, lr=lr, betas=betas, eps=eps, wd=wd)
        self._muon = Muon(list(inside.values()), lr=rate, weight_decay=wd, adjust_lr_fn="match_rms_adamw")
        super().__init__([*self._adamw.param_groups, *self._muon.param_groups], {})
        for part in (self._adamw, self._muon):
            part.state = self.state
        self._adamw.param_groups = self.param_groups[:-1]
        self._muon.param_groups = self.param_groups[-1:]

    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of each."""
        assert closure is None
        self._adamw.step()
        self._muon.step()


def by_muon(name: str, parameter: Tensor) -> bool:
    """Whether Muon trains it: a matrix inside a block."""
    outside = ("embed_tokens", "role_embeddings", "lm_head", "score")
    return decays(name, parameter) and not any(word in name for word in outside)


def schedule(
    kind: Literal["linear", "cosine", "constant", "wsd"],
    *,
    steps: int,
    warmup: int,
    floor: float = 0.0,
    start: float = 0.0,
    decay_ratio: float = 0.2,
    decay_in_warmup: bool = False,
) -> Schedule:
    """Factor of the rate at a step, from 0: up from `start` over `warmup` steps, then down to `floor`.

    The first step of a warm-up already learns: its factor is start + (1 - start) / warmup, where schedules
    that count from 0 have `start`. linear and cosine fall from the end of the warm-up to `steps`; with
    `decay_in_warmup` from step 0, times the warm-up. wsd (warm-up, stable, decay) stays at 1 until the last
    `decay_ratio` of the steps, then falls by 1 - sqrt(progress) (https://arxiv.org/abs/2405.18392).
    """
    first = 0 if decay_in_warmup else warmup  # step of the decay
    if kind == "wsd":
        first = max(warmup, steps - round(decay_ratio * steps))

    def factor(step: int) -> float:
        rise = min((step + 1) / warmup, 1.0) if warmup else 1.0
        progress = min(max(step - first, 0) / max(steps - first, 1), 1.0)
        fall = floor + (1 - floor) * _falling(kind, progress)
        return (start + (1 - start) * rise) * fall

    return factor


def _falling(kind: str, progress: float) -> float:
    """From 1 to 0 as progress goes from 0 to 1."""
    if kind == "linear":
        return 1 - progress
    if kind == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return 1 - math.sqrt(progress) if kind == "wsd" else 1.0


@torch.no_grad()
def allocate_state(optimizer: Optimizer) -> None:
    """Make the optimizer's state exist, fresh as before a first step, so that loading can fill it.

    One after another: gradients of all weights would be more than a step has that releases them.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
            optimizer.step()
            p.grad = None
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
        for p in group["params"]:
            if "step" in optimizer.state[p]:
                optimizer.state[p]["step"].zero_()
