"""Parts of a block that keep less for the backward pass than autograd would: what is cheap is formed anew.

Of a block of Llama's they save half of what it keeps. Compiled, the compiler decides that itself.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.model.config import Activation


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, wide: bool = False) -> Tensor:
    """(..., D), (D,) -> (..., D): x over its root mean square, in float32 (arXiv 1910.07467), times `weight`.

    Multiplied in x's dtype, or with `wide` in float32. Keeps x as it is and one number a position, where
    autograd would keep x in float32 and its normal form.
    """
    if _autograd_is_away():
        return _scaled(_normal(x, eps)[0], weight, x.dtype, wide)
    return _RMSNorm.apply(x, weight, eps, wide)  # pyright: ignore[reportReturnType]


def gated_linear(
    gate: Tensor, up: Tensor, down: nn.Module, activation: Activation = "silu", *, form_anew: bool = True
) -> Tensor:
    """(..., F), (..., F) -> (..., D): down(activation(gate) up), https://arxiv.org/abs/2002.05202.

    Keeps gate and up alone, where `down` is a plain linear layer and may `form_anew` what it read.
    """
    if _autograd_is_away():
        return down(_ACTIVATIONS[activation](gate) * up)
    if form_anew and type(down) is nn.Linear and down.bias is None:
        return _GatedLinear.apply(gate, up, down.weight, activation)  # pyright: ignore[reportReturnType]
    return down(_Gated.apply(gate, up, activation))


def _autograd_is_away() -> bool:
    return not torch.is_grad_enabled() or torch.compiler.is_compiling()


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _by_gate(grad: Tensor, gate: Tensor, activation: Activation) -> Tensor:
    """The gradient by the gate, of one by what the activation gave."""
    if activation == "silu":
        return torch.ops.aten.silu_backward(grad, gate)
    return torch.ops.aten.gelu_backward(grad, gate, approximate="tanh")


_ACTIVATIONS = {"silu": F.silu, "gelu_tanh": _gelu}


def _normal(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(..., D) and what each position was multiplied by, (..., 1), both float32."""
    wide = x.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return wide * scale, scale


def _scaled(normal: Tensor, weight: Tensor, dtype: torch.dtype, wide: bool) -> Tensor:
    return (normal * weight.float()).to(dtype) if wide else weight * normal.to(dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, wide: bool) -> Tensor:
        normal, scale = _normal(x, eps)
        ctx.save_for_backward(x, weight, scale)
        ctx.wide = wide
        return _scaled(normal, weight, x.dtype, wide)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        grad = grads[0].float() if ctx.wide else grads[0]
        normal = x.float() * scale
        of_x = of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (grad * normal.to(grad.dtype)).flatten(0, -2).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            inner = (grad * weight).float()
            of_x = (scale * (inner - normal * (inner * normal).mean(-1, keepdim=True))).to(x.dtype)
        return of_x, of_weight, None, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return _ACTIVATIONS[activation](gate) * up

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        (grad,) = grads
        of_gate = _by_gate(grad * up, gate, ctx.activation)
        return of_gate, grad * _ACTIVATIONS[ctx.activation](gate), None


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        ctx.activation = activation
        return F.linear(_ACTIVATIONS[activation](gate) * up, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight = ctx.saved_tensors
        (grad,) = grads
        active = _ACTIVATIONS[ctx.activation](gate)
        of_gate = of_up = of_weight = None
        if ctx.needs_input_grad[2]:
            inner = (active * up).flatten(0, -2)
            of_weight = (inner.t() @ grad.flatten(0, -2)).t()
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            of_inner = grad @ weight
            of_gate = _by_gate(of_inner * up, gate, ctx.activation)
            of_up = of_inner * active
        return of_gate, of_up, of_weight, None
