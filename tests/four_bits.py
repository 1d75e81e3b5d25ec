"""NF4 and FP4 in plain PyTorch, as the QLoRA paper has them (arxiv 2305.14314): the oracle for ours."""

import torch
from torch import Tensor

BLOCK, SCALES = 64, 256
# Appendix E of the paper, to the digits of float32.
NF4 = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023),
    1.0,
]
# Sign, two bits of exponent, one of mantissa; the smallest level but 0 is 0.0625 of the unit, the largest 12.
FP4 = [sign * value / 12 for sign in (1, -1) for value in (0, 0.0625, 8, 12, 4, 6, 2, 3)]
LEVELS = {"nf4": NF4, "fp4": FP4}


def quantize(weight: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Codes (n,) and the largest size in each block of 64: the nearest level of value over scale."""
    values = weight.flatten().double()
    blocks = torch.nn.functional.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1)
    ratios = blocks / scales.where(scales > 0, 1.0)[:, None]
    codes = _nearest(ratios.flatten(), torch.tensor(LEVELS[kind], dtype=torch.float64))
    return codes[: len(values)], scales


def dequantize(codes: Tensor, scales: Tensor, kind: str) -> Tensor:
    """(n,) float64"""
    levels = torch.tensor(LEVELS[kind], dtype=torch.float64)[codes]
    return levels * scales.repeat_interleave(BLOCK)[: len(codes)]


def double_quantized(scales: Tensor, codes: Tensor | None = None) -> Tensor:
    """The scales after 8 bits: less their mean, in blocks of 256, each at the nearest of 256 levels.

    Or at the levels that `codes` say.
    """
    offset = scales.mean()
    blocks = torch.nn.functional.pad(scales - offset, (0, -len(scales) % SCALES)).view(-1, SCALES)
    largest = blocks.abs().amax(1, keepdim=True)
    levels = _dynamic_levels()
    if codes is None:
        codes = _nearest((blocks / largest.where(largest > 0, 1.0)).flatten(), levels)[: len(scales)]
    return levels[codes] * largest.expand_as(blocks).flatten()[: len(scales)] + offset


def unpacked(codes: Tensor, n: int) -> Tensor:
    """Two codes a byte, the first in the upper half, as bitsandbytes and torchao store them -> (n,)."""
    return torch.stack((codes.flatten() >> 4, codes.flatten() & 15), dim=1).flatten()[:n].long()


def _dynamic_levels() -> Tensor:
    """Dynamic tree quantization: from 1e-6 to 1, a decade has twice as many levels as the one below."""
    levels = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1, dtype=torch.float64)
        for middle in (edges[1:] + edges[:-1]) / 2 * 10.0 ** (decade - 6):
            levels += [float(middle), -float(middle)]
    return torch.tensor(sorted(levels), dtype=torch.float64)


def _nearest(values: Tensor, levels: Tensor) -> Tensor:
    return (values[:, None] - levels).abs().argmin(1)
