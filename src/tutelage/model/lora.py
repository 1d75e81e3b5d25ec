"""Layers with low-rank adapters: y = W x + b + scale · B A x, https://arxiv.org/abs/2106.09685.

A layer may carry several adapters by name; one of them is active, or none, which is the base layer. B, A are
(out, r) and (r, in): scale · B A is what any layer's weight changes by, an embedding's too.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.model.quantize import QuantizedLinear


@dataclass(frozen=True, slots=True)
class Kind:
    """What a layer must know of one of its adapters beside the matrices."""

    scale: float
    dropout: float


class LoRALayer(nn.Module):
    """What adapted layers of any base class have in common."""

    weight: Tensor
    lora_A: nn.ParameterDict  # by adapter: (r, in)
    lora_B: nn.ParameterDict  # (out, r)
    lora_magnitude: nn.ParameterDict  # (out,), of DoRA's adapters
    initial_A: nn.ParameterDict  # what PiSSA took out of the weight, frozen
    initial_B: nn.ParameterDict
    kinds: dict[str, Kind]
    active: str | None

    def low_rank(self) -> tuple[nn.ParameterDict, ...]:
        """What is trained of the adapters, each by adapter."""
        return self.lora_A, self.lora_B, self.lora_magnitude

    @property
    def size(self) -> tuple[int, int]:
        """(out, in)"""
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.weight.device

    def base_weight(self) -> Tensor:
        """(out, in): what lies under the adapters."""
        return self.weight

    def change(self, name: str) -> Tensor:
        """(out, in): what an adapter adds to the weight; of DoRA, before magnitudes."""
        return self.kinds[name].scale * (self.lora_B[name] @ self.lora_A[name])

    def effective_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """(out, in): the weight as the active adapter makes it, in `dtype` or the base weight's."""
        weight, name = self.base_weight().to(dtype or self.base_weight().dtype), self.active
        weight = self._restored(weight, name)
        if name is None or name not in self.kinds:
            return weight
        weight = weight + self.change(name).to(weight.dtype)
        return weight * self.stretch(name, weight)[:, None] if name in self.lora_magnitude else weight

    def _restored(self, weight: Tensor, active: str | None) -> Tensor:
        """The weight with what PiSSA took out of it for other adapters put back."""
        for name in self.initial_A.keys() - {active}:
            taken = self.kinds[name].scale * (self.initial_B[name] @ self.initial_A[name])
            weight = weight + taken.to(weight.dtype)
        return weight

    def stretch(self, name: str, weight: Tensor) -> Tensor:
        """(out,): DoRA's magnitude over the norm of the weight's rows, the norm taken as a constant."""
        norm = torch.linalg.vector_norm(weight.detach(), dim=1)
        return self.lora_magnitude[name] / norm


class _LoRALinear(LoRALayer):
    """The forward pass of an adapted linear layer, over whatever computes the base layer's."""

    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        x, out, name = input, super().forward(input), self.active
        for taken in self.initial_A.keys() - {name}:  # what PiSSA took out of the weight for another adapter
            out = self._add_low(out, x, self.initial_A[taken], self.initial_B[taken], taken)
        if name is None or name not in self.kinds:
            return out
        kind = self.kinds[name]
        drops = bool(kind.dropout) and self.training
        read = F.dropout(x, kind.dropout) if drops else x
        if name not in self.lora_magnitude:
            return self._add_low(out, read, self.lora_A[name], self.lora_B[name], name)
        low = self._low(read, self.lora_A[name], self.lora_B[name], name)
        weight = self.base_weight().to(x.dtype)
        stretch = self.stretch(name, weight.detach() + self.change(name).detach().to(x.dtype))
        unbiased = out if self.bias is None else out - self.bias
        straight = F.linear(read, weight) if drops else unbiased
        stretch = stretch.to(x.dtype)
        return out + (stretch - 1) * straight + stretch * low

    def _add_low(self, out: Tensor, x: Tensor, a: Tensor, b: Tensor, name: str) -> Tensor:
        """out + scale · B A x, scaled where it is narrow, added by the matmul: a sixth faster in bfloat16."""
        low = F.linear(x, a.to(x.dtype)) * self.kinds[name].scale  # (..., r)
        return torch.addmm(out.flatten(0, -2), low.flatten(0, -2), b.to(x.dtype).t()).view_as(out)

    def _low(self, x: Tensor, a: Tensor, b: Tensor, name: str) -> Tensor:
        return F.linear(F.linear(x, a.to(x.dtype)), b.to(x.dtype)) * self.kinds[name].scale


class LoRALinear(_LoRALinear, nn.Linear):
    """A linear layer with adapters."""


class LoRAQuantizedLinear(_LoRALinear, QuantizedLinear):
    """A frozen layer in 4 or 8 bits with adapters, which is QLoRA, https://arxiv.org/abs/2305.14314."""

    @property
    def size(self) -> tuple[int, int]:
        """(out, in)"""
        return self.out_features, self.in_features

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.codes.device

    def base_weight(self) -> Tensor:
        """(out, in): what the codes stand for, float32."""
        return self.dequantized()


class LoRAEmbedding(LoRALayer, nn.Embedding):
    """An embedding with adapters. A tied head reads `effective_weight`, and so has them too."""

    def forward(self, input: Tensor) -> Tensor:
        """(...) -> (..., D)"""
        out, name = super().forward(input), self.active
        if name is None or name not in self.kinds:
            return out
        low = F.embedding(input, self.lora_B[name]) @ self.lora_A[name]  # (..., r) @ (r, D)
        return out + (low * self.kinds[name].scale).to(out.dtype)
