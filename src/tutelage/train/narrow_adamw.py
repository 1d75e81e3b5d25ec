"""AdamW whose moments wait in two bytes or one each: computed in float32, a stretch of weights at a time.

float32 moments are 8 bytes a weight; here they are 4 (`bf16`) or little more than 2 (`8bit`).
"""

import logging
from collections.abc import Iterable
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

Kind = Literal["bf16", "8bit", "paged_8bit"]
BLOCK = 256  # weights that share a scale, in the kernels of bitsandbytes
SMALLEST = 4096  # weights that are worth a scale; fewer, as in norms, have float32 moments
STRETCH = 1 << 20  # weights computed at a time: their moments in float32 are 8 MiB


class NarrowAdamW(Optimizer):
    """AdamW (https://arxiv.org/abs/1711.05101), its moments in bfloat16 or in 8 bits by blocks.

    In bfloat16 the second moment is rounded up or down by chance: a step changes it by 1 - beta, less than
    half a digit, so that the nearest would be what it was, for ever. Its chance is that of `seed`, of the
    step and of the parameter, whatever else draws numbers. 8 bits (https://arxiv.org/abs/2110.02861) are
    computed by bitsandbytes; `paged_8bit` lets CUDA move moments to main memory when there is no room.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        kind: Kind,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        seed: int = 0,
    ):
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})
        self._kind = kind
        self._bitsandbytes = None if kind == "bf16" else _bitsandbytes()
        parameters = [p for group in self.param_groups for p in group["params"]]
        self._seeds = {p: seed * len(parameters) + n for n, p in enumerate(parameters)}
        self._maps: list[Tensor] = []

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, group)

    def _move(self, p: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state.update(self._fresh(p))
        state["step"] += 1
        moments = (state["exp_avg"], state["exp_avg_sq"])
        assert p.grad is not None
        weights, first, second = (_local(x).view(-1) for x in (p, *moments))  # (N,), this process's share
        gradient = _local(p.grad).reshape(-1)
        if first.dtype == torch.uint8:
            self._move_8bit(weights, gradient, first, second, state, group)
            return
        chance = torch.Generator(weights.device)
        chance.manual_seed(hash((self._seeds[p], int(state["step"]))) & (2**63 - 1))
        step = state["step"].to(weights.device)
        for parts in zip(*(x.split(STRETCH) for x in (weights, gradient, first, second)), strict=True):
            wide = [x.float() for x in parts]  # itself where it is float32
            torch._fused_adamw_(  # pyright: ignore[reportPrivateImportUsage]
                [wide[0]],
                [wide[1]],
                [wide[2]],
                [wide[3]],
                [],
                [step],
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )
            for part, computed in zip((parts[0], parts[2]), (wide[0], wide[2]), strict=True):
                if part is not computed:
                    part.copy_(computed)
            if parts[3] is not wide[3]:
                round_by_chance_(parts[3], wide[3], chance)

    def _move_8bit(
        self,
        weights: Tensor,
        gradient: Tensor,
        first: Tensor,
        second: Tensor,
        state: dict[str, Tensor],
        group: dict[str, Any],
    ) -> None:
        signed, unsigned = self._codes(weights.device)
        scales = (state["scale"].split(STRETCH // BLOCK), state["scale_sq"].split(STRETCH // BLOCK))
        stretches = (x.split(STRETCH) for x in (gradient, weights, first, second))
        for g, p, m, v, scale, scale_sq in zip(*stretches, *scales, strict=True):
            torch.ops.bitsandbytes.optimizer_update_8bit_blockwise(
                "adam",
                g,
                p,
                m,
                v,
                *group["betas"],
                0.0,
                0.0,
                group["eps"],
                int(state["step"]),
                group["lr"],
                signed,
                unsigned,
                scale,
                scale_sq,
                group["weight_decay"],
                1.0,
            )

    def _fresh(self, p: Tensor) -> dict[str, Tensor]:
        """The state before a first step; `step` stays in main memory, where it is read."""
        step = torch.zeros(())
        if self._kind == "bf16":
            moments = [torch.zeros_like(p, dtype=torch.bfloat16) for _ in range(2)]
            return {"step": step, "exp_avg": moments[0], "exp_avg_sq": moments[1]}
        if p.numel() < SMALLEST:
            moments = [torch.zeros_like(p, dtype=torch.float32) for _ in range(2)]
            return {"step": step, "exp_avg": moments[0], "exp_avg_sq": moments[1]}
        blocks = -(-p.numel() // BLOCK)
        scales = [torch.zeros(blocks, device=p.device) for _ in range(2)]
        codes = [self._buffer(p) for _ in range(2)]
        names = ("exp_avg", "exp_avg_sq", "scale", "scale_sq")
        return {"step": step, **dict(zip(names, (*codes, *scales), strict=True))}

    def _buffer(self, p: Tensor) -> Tensor:
        if self._kind == "8bit":
            return torch.zeros_like(p, dtype=torch.uint8)
        assert self._bitsandbytes is not None
        paged = self._bitsandbytes.get_paged(*p.shape, dtype=torch.uint8, device=p.device)
        self._bitsandbytes.fill(paged, 0)
        return paged

    def _codes(self, device: torch.device) -> list[Tensor]:
        """What the 256 codes of the first moment stand for, and those of the second, which has no sign."""
        if not self._maps:
            assert self._bitsandbytes is not None
            create = self._bitsandbytes.create_dynamic_map
            self._maps = [create(signed=signed).to(device) for signed in (True, False)]
        return self._maps


def _bitsandbytes() -> Any:
    # It warns on CPUs that a kernel of another package, which nothing here needs, is not there.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    return import_module("bitsandbytes.functional")


def round_by_chance_(narrow: Tensor, wide: Tensor, chance: torch.Generator) -> None:
    """Fill bfloat16 `narrow` with one of the two neighbours of each of `wide`, the nearer the likelier.

    So that their mean is the number itself. All are finite: infinity would become a NaN.
    """
    n = wide.numel()
    drawn = torch.empty(-(-n // 4), dtype=torch.int64, device=wide.device).random_(
        -(2**63), None, generator=chance
    )
    below = drawn.view(torch.int16)[:n].to(torch.int32) & 0xFFFF  # what is cut off, at random
    bits = (wide.view(torch.int32) + below) & -0x10000
    narrow.copy_(bits.view(torch.float32))


def _local(tensor: Tensor) -> Tensor:
    """This process's share of it."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()
