"""Rotary position embeddings, rotated by halves as in Hugging Face files, and how they reach further.

B rows   T positions   H heads   C head dim   R how many of it turn
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Scaling = Mapping[str, Any]  # HF's words, as config_rope.py leaves them: complete


@dataclass(slots=True)
class Rope:
    """How positions turn the queries and keys of one kind of layer."""

    frequencies: Tensor  # (1, R/2), or (2, R/2): of documents within the original context, and of longer ones
    amplitude: float = 1.0  # of cos and sin: yarn's and longrope's temperature of attention

    def rotation(self, positions: Tensor, long: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin of every position, each (B, 1, T, R) in `dtype`; the angles are formed in float32.

        `long` (B, T) bool: whose document is longer than the original context.
        """
        if self.frequencies.device != positions.device:
            self.frequencies = self.frequencies.to(positions.device)
        turns = self.frequencies[0] if len(self.frequencies) == 1 else self.frequencies[_row(long)]
        angles = positions[..., None].float() * turns  # (B, T, R/2)
        angles = torch.cat((angles, angles), dim=-1)[:, None]  # (B, 1, T, R)
        cos, sin = angles.cos(), angles.sin()
        if self.amplitude != 1.0:
            cos, sin = cos * self.amplitude, sin * self.amplitude
        return cos.to(dtype), sin.to(dtype)


def _row(long: Tensor | None) -> Tensor:
    assert long is not None
    return long.long()


def rope(dim: int, theta: float, scaling: Scaling | None) -> Rope:
    """How `dim` of a head's numbers turn. Made on the CPU: a model on the meta device must not lose it."""
    reaches = (False, True) if scaling and scaling["rope_type"] == "longrope" else (False,)
    with torch.device("cpu"):
        tables = [frequencies(dim, theta, scaling, long=long) for long in reaches]
        return Rope(torch.stack(tables), (scaling or {}).get("attention_factor", 1.0))


def frequencies(dim: int, theta: float, scaling: Scaling | None = None, *, long: bool = False) -> Tensor:
    """Radians a position turns each pair, (R/2,) float32, R = `dim`; `scaling` is HF's dict or None.

    RoFormer, https://arxiv.org/abs/2104.09864. `long`: with longrope, in documents past the original context.
    """
    spread = theta ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim)
    if scaling is None:
        return 1.0 / spread
    if scaling["rope_type"] == "longrope":  # https://arxiv.org/abs/2402.13753
        return 1.0 / (torch.tensor(scaling["long_factor" if long else "short_factor"]) * spread)
    return _SCALED[scaling["rope_type"]](spread, theta, scaling)


def _linear(spread: Tensor, theta: float, scaling: Scaling) -> Tensor:
    """Positions divided by the factor, https://arxiv.org/abs/2306.15595."""
    return 1.0 / spread / scaling["factor"]


def _llama3(spread: Tensor, theta: float, scaling: Scaling) -> Tensor:
    """As in the reference code of Llama 3.1."""
    plain, factor, old = 1.0 / spread, scaling["factor"], scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelength = 2 * math.pi / plain
    blend = (old / wavelength - low) / (high - low)
    smooth = (1 - blend) * plain / factor + blend * plain
    scaled = torch.where(wavelength > old / low, plain / factor, smooth)
    return torch.where(wavelength < old / high, plain, scaled)


def _yarn(spread: Tensor, theta: float, scaling: Scaling) -> Tensor:
    """Fast pairs as they were, slow ones divided, between them a ramp: https://arxiv.org/abs/2309.00071."""
    pairs, old = len(spread), scaling["original_max_position_embeddings"]
    # At which pair the original context holds so many rotations.
    low, high = (
        pairs * math.log(old / (rotations * 2 * math.pi)) / math.log(theta)
        for rotations in (scaling["beta_fast"], scaling["beta_slow"])
    )
    if scaling["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    ramp = (torch.arange(pairs).float() - low) / ((high - low) or 0.001)
    kept = 1 - ramp.clamp(0, 1)
    return 1.0 / (scaling["factor"] * spread) * (1 - kept) + 1.0 / spread * kept


_SCALED: dict[str, Callable[[Tensor, float, Scaling], Tensor]] = {
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}


def document_lengths(positions: Tensor, docs: Tensor | None) -> Tensor:
    """(B, T), (B, T) -> (B, T): of every position, how long its document is; `docs` None: the row is one."""
    if docs is None:
        return (positions.amax(1, keepdim=True) + 1).expand_as(positions)
    B, T = docs.shape
    slots = docs + 1  # padding, −1, is a document too
    last = positions.new_zeros(B, T + 1).scatter_reduce(1, slots, positions, "amax")
    return last.gather(1, slots) + 1


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """(B, H, T, C) -> (B, H, T, C): the first R of C turn, in float32 if cos is; the others stay."""
    cos, sin = rotation
    kept = x[..., cos.shape[-1] :]
    turned = x if not kept.shape[-1] else x[..., : cos.shape[-1]]
    first, second = turned.chunk(2, dim=-1)
    turned = (turned * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)
    return turned if not kept.shape[-1] else torch.cat((turned, kept), dim=-1)
