"""Parts of a block that keep less for the backward pass than autograd would: what is cheap is formed anew.

Of a block of Llama's they save half of what it keeps. Compiled, the compiler decides that itself.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """(..., D), (D,) -> (..., D): `weight` times x over its root mean square, in float32 (arXiv 1910.07467).

    Keeps x as it is and one number a position, where autograd would keep x in float32 and its normal form.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return _normalised(x, weight, eps)[0]
    return _RMSNorm.apply(x, weight, eps)  # pyright: ignore[reportReturnType]


def silu_gated(gate: Tensor, up: Tensor) -> Tensor:
    """(..., F), (..., F) -> (..., F): silu(gate) up (arXiv 2002.05202). Keeps its inputs only."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.silu(gate) * up
    return _SiluGated.apply(gate, up)  # pyright: ignore[reportReturnType]


@contextmanager
def formed_anew(result: Tensor, form: Callable[[], Tensor]) -> Iterator[None]:
    """Where a layer called in here would keep `result` for its backward pass, `form` makes it again then."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        yield
        return
    place, size = result.untyped_storage()._cdata, result.numel()

    def pack(kept: Tensor) -> Any:
        same = kept.untyped_storage()._cdata == place and kept.numel() == size and kept.is_contiguous()
        return kept.shape if same else kept

    def unpack(kept: Any) -> Tensor:
        return form().view(kept) if isinstance(kept, torch.Size) else kept

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def _normalised(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(..., D), and what each position was multiplied by, (..., 1) float32."""
    wide = x.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype), scale


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normal, scale = _normalised(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return normal

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        (grad,) = grads
        normal = x.float() * scale
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (grad * normal.to(x.dtype)).flatten(0, -2).sum(0)
        if not ctx.needs_input_grad[0]:
            return None, of_weight, None
        inner = (grad * weight).float()
        inner = scale * (inner - normal * (inner * normal).mean(-1, keepdim=True))
        return inner.to(x.dtype), of_weight, None


class _SiluGated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        (grad,) = grads
        of_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return of_gate, grad * F.silu(gate)
