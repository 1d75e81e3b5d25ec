"""Frozen linear layers in 4 or 8 bits: for adapters on a small base (QLoRA) and for models that barely fit.

NF4 and FP4 give 64 weights a scale and each weight one of 16 levels, by bitsandbytes (arxiv 2305.14314); int8
gives every row a scale. Matmuls run in the dtype of their input, on weights that are made again each time.
"""

import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import flop_registry, register_flop_formula

from tutelage.errors import UserError
from tutelage.model.transformer import Transformer

Kind = Literal["nf4", "fp4", "int8"]
BLOCK = 64  # weights that share a scale, in 4 bits
SCALES = 256  # of these that share one in turn, doubly quantized
_FEW = 16  # rows: 2048 x 2048 takes 0.2 ms for one and 1.5 for 16; making the weight first, always 2.3
_PIECE = 2**18  # weights quantized at a time: in float32 and sorted into levels they take some megabytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantization:
    """What to make of linear layers. Refuses a kind whose library is not installed."""

    kind: Kind = "nf4"
    double: bool = True  # 4-bit scales in 8 bits of their own: 4.13 bits a weight instead of 4.5

    def __post_init__(self) -> None:
        if self.kind != "int8":
            load_library()


class QuantizedLinear(nn.Module):
    """A linear layer whose weight is never trained. It has no weight among its parameters, nor in its
    state_dict, and no dtype: `.to` moves it to devices and nothing else.
    """

    codes: Tensor
    scales: Tensor  # as the bits of floats: `.to(dtype)` and `.bfloat16()` would round floats

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, quantization: Quantization):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self.kind: Kind = quantization.kind
        stored = _rows(weight) if self.kind == "int8" else _blocks(weight, self.kind, quantization.double)
        self._stored = tuple(stored)
        for name, tensor in stored.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        x = input
        if self.kind == "int8" and _few(x) and not torch.is_grad_enabled():
            scales, rows = self.scales.view(torch.bfloat16), x.reshape(-1, self.in_features)
            multiply = torch._weight_int8pack_mm  # pyright: ignore[reportPrivateImportUsage]
            out = multiply(rows, self.codes, scales).view(*x.shape[:-1], self.out_features)
            return out if self.bias is None else out + self.bias
        return _FrozenLinear.apply(x, self.bias, self.kind, self._shape, *self._tensors())

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that the layer computes with, (out, in)."""
        return _dequantize(self.kind, self._shape, self._tensors(), dtype)

    def extra_repr(self) -> str:
        """What printing a model shows of it."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, kind={self.kind}"

    @property
    def _shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._stored]


def quantize_(model: Transformer, quantization: Quantization) -> None:
    """Replace every linear layer inside the blocks; embedding, norms and head stay as they are."""
    for name in quantizable(model):
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        quantized = QuantizedLinear(linear.weight.detach(), linear.bias, quantization)
        model.set_submodule(name, quantized.train(linear.training))


def quantizable(model: Transformer) -> list[str]:
    """The names of the linear layers inside the blocks."""
    layers = model.model.layers.named_modules(prefix="model.layers")
    return [name for name, module in layers if isinstance(module, nn.Linear)]


def quantized_size(model: Transformer, quantization: Quantization | None) -> tuple[int, int]:
    """(bytes, weights): what `quantize_` would keep of its linear layers, and of how many weights."""
    if quantization is None:
        return 0, 0
    size = weights = 0
    for name in quantizable(model):
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        n, rows = linear.weight.numel(), linear.out_features
        weights += n
        blocks = -(-n // BLOCK)
        if quantization.kind == "int8":
            size += n + 2 * rows
        elif quantization.double:
            size += -(-n // 2) + blocks + 4 * -(-blocks // SCALES) + 4 * 256 + 4  # levels and an offset
        else:
            size += -(-n // 2) + 4 * blocks
    return size, weights


def quantized_weights(model: nn.Module) -> int:
    """How many weights its layers have that are quantized already."""
    layers = (m for m in model.modules() if isinstance(m, QuantizedLinear))
    return sum(m.out_features * m.in_features for m in layers)


@cache
def load_library() -> None:
    """Make bitsandbytes' operators known to torch; a UserError if it is not installed."""
    if find_spec("bitsandbytes") is None:
        raise UserError("4-bit weights need bitsandbytes: pip install 'tutelage[quant]', or take int8")
    # On some CPUs its import fetches a compiled kernel from the hub, or warns that it cannot. We have no use
    # for that kernel, and run no code that came over the network.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    missing = object()
    kept = sys.modules.get("kernels", missing)
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        import bitsandbytes  # noqa: F401
    finally:
        del sys.modules["kernels"]
        if kept is not missing:
            sys.modules["kernels"] = kept  # type: ignore[assignment]
    if torch.ops.bitsandbytes.gemm_4bit not in flop_registry:
        register_flop_formula(torch.ops.bitsandbytes.gemm_4bit)(_operations)


def _operations(x_shape: Sequence[int], *_: Any, out_shape: Sequence[int]) -> int:
    return 2 * x_shape[-1] * math.prod(out_shape)


class _FrozenLinear(torch.autograd.Function):
    """x weight^T + bias. Keeps what is stored for the backward pass, not the weight made of it."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, bias: Tensor | None, kind: Kind, shape: Sequence[int], *stored: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*stored)
        ctx.kind, ctx.shape = kind, shape
        if kind == "int8" or not x.is_cuda:
            return F.linear(x, _dequantize(kind, shape, stored, x.dtype), bias)
        codes, scales, *second = stored  # for few rows a kernel that makes no weight
        return torch.ops.bitsandbytes.gemm_4bit(
            x, codes, shape, scales.view(torch.float32), BLOCK, kind, bias, *_second(second)
        )

    @staticmethod
    def backward(ctx: Any, upstream: Tensor):  # type: ignore[override]
        stored = ctx.saved_tensors  # once: with recomputation a second look is an error
        weight = _dequantize(ctx.kind, ctx.shape, stored, upstream.dtype)
        bias = upstream.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return upstream @ weight, bias, None, None, *(None for _ in stored)


def _few(x: Tensor) -> bool:
    """Whether x has so few rows that it pays to multiply with codes as they are, as writing a text does."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16 and 0 < x.numel() <= _FEW * x.shape[-1]


def _dequantize(kind: Kind, shape: Sequence[int], stored: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    codes, scales, *second = stored
    if kind == "int8":
        return codes * scales.view(torch.bfloat16).to(dtype).unsqueeze(1)
    library, scales = torch.ops.bitsandbytes, scales.view(torch.float32)
    if second:
        small, levels, offset = _second(second)
        scales = library.dequantize_blockwise(small, scales, levels, SCALES, torch.float32) + offset
    return library.dequantize_4bit(codes, scales, BLOCK, kind, shape, dtype)


def _second(stored: Sequence[Tensor]) -> Sequence[Tensor]:
    """Scales as codes, the levels these stand for, and what is added to them; nothing if there are none."""
    return () if not stored else (stored[0], stored[1].view(torch.float32), stored[2].view(torch.float32))


def _rows(weight: Tensor) -> dict[str, Tensor]:
    """int8. Scales are bfloat16 numbers, so that code times scale is rounded once where that is the dtype."""
    scales = (weight.abs().amax(1).float() / 127).bfloat16()
    smallest = torch.finfo(torch.float32).tiny  # a row of zeros has a scale of 0
    divisors = scales.float().clamp(min=smallest).unsqueeze(1)
    rows = max(1, _piece(weight) // weight.shape[1])
    codes = [
        (part.float() / divisor).round_().clamp_(-127, 127).to(torch.int8)
        for part, divisor in zip(weight.split(rows), divisors.split(rows), strict=True)
    ]
    return {"codes": torch.cat(codes), "scales": scales.view(torch.int16)}


def _blocks(weight: Tensor, kind: Kind, double: bool) -> dict[str, Tensor]:
    """4 bits. Doubly quantized, scales less their mean are codes for 256 levels, in blocks with a scale."""
    quantize = torch.ops.bitsandbytes.quantize_4bit
    parts = [quantize(part, BLOCK, kind, torch.uint8) for part in weight.flatten().split(_piece(weight))]
    codes, scales = (torch.cat(column) for column in zip(*parts, strict=True))
    if not double:
        return {"codes": codes, "scales": scales.view(torch.int32)}
    offset, levels = scales.mean(), torch.tensor(_dynamic_levels(), dtype=torch.float32, device=weight.device)
    small, scales = torch.ops.bitsandbytes.quantize_blockwise(scales - offset, levels, SCALES)
    stored = {"codes": codes, "scales": scales, "scale_codes": small, "levels": levels, "offset": offset}
    return {
        name: tensor.view(torch.int32) if tensor.is_floating_point() else tensor
        for name, tensor in stored.items()
    }


def _piece(weight: Tensor) -> int:
    return (
        weight.numel() if weight.is_meta else _PIECE
    )  # a plan has no data, and thousands of pieces are slow


@cache
def _dynamic_levels() -> tuple[float, ...]:
    """0, 1, and in every decade from 1e-6 to 1 twice as many levels as in the one below, with either sign
    (arxiv 1511.04561).
    """
    levels = [0.0, 1.0]
    for decade in range(7):
        steps = [10.0 ** (decade - 6) * (0.1 + 0.9 * (n + 0.5) / 2**decade) for n in range(2**decade)]
        levels += [*steps, *(-step for step in steps)]
    return tuple(sorted(levels))
