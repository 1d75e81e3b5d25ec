"""Rotary position embeddings, rotated by halves as in Hugging Face files.

B rows   T positions   H heads   C head dim
"""

import math
from typing import Any

import torch
from torch import Tensor


def frequencies(head_dim: int, theta: float, scaling: dict[str, Any] | None = None) -> Tensor:
    """Radians a position turns each pair, (C/2,) float32; `scaling` is HF's dict of type llama3 or None.

    RoFormer, https://arxiv.org/abs/2104.09864; Llama 3.1's scaling as in its reference code.
    """
    plain = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    if scaling is None:
        return plain
    factor, old = scaling["factor"], scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelength = 2 * math.pi / plain
    blend = (old / wavelength - low) / (high - low)
    smooth = (1 - blend) * plain / factor + blend * plain
    scaled = torch.where(wavelength > old / low, plain / factor, smooth)
    return torch.where(wavelength < old / high, plain, scaled)


def rotation(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of every position, each (B, 1, T, C) in `dtype`; the angles are formed in float32."""
    angles = positions[:, None, :, None].float() * frequencies  # (B, 1, T, C/2)
    angles = torch.cat((angles, angles), dim=-1)  # (B, 1, T, C)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """(B, H, T, C) -> (B, H, T, C)"""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
