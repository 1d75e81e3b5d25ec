"""Adapters put into the weights of a model in memory, and a head parted from the embedding."""

from dataclasses import replace

import torch
from torch import nn

from tutelage.model.adapters import ADAPTED, DEFAULT, adapter
from tutelage.model.lora import LoRALayer
from tutelage.model.quantize import QuantizedLinear
from tutelage.model.transformer import Transformer


def untie_(model: Transformer) -> None:
    """Give a tied model a head of its own, a copy of the embedding."""
    assert model.config.tied
    weight = model.model.embed_tokens.weight
    model.lm_head = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    model.lm_head.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    model.config = replace(model.config, tied=False)


@torch.no_grad()
def merge_(model: Transformer, name: str | None = DEFAULT) -> Transformer:
    """Put an adapter into the weights and take all adapters away; sums in float32, then rounded once.

    Exact in float32. A quantized layer becomes a plain one, in the dtype of the head.
    """
    with adapter(model, name):
        for path, layer in list(model.named_modules()):
            if not isinstance(layer, LoRALayer):
                continue
            weight = layer.effective_weight(torch.float32)
            strip_(layer)
            if isinstance(layer, QuantizedLinear):
                plain = nn.Linear(*reversed(weight.shape), bias=False, device="meta")
                plain.weight = nn.Parameter(weight.to(model.head_weight.dtype))
                plain.register_parameter("bias", layer.bias)
                model.set_submodule(path, plain.train(layer.training))
            else:
                layer.weight.copy_(weight.to(layer.weight.dtype))
    return model


def strip_(layer: LoRALayer) -> None:
    """Make an adapted layer one without adapters again, its weight as it is."""
    for part in ("lora_A", "lora_B", "lora_magnitude", "initial_A", "initial_B", "kinds", "active"):
        delattr(layer, part)
    layer.__class__ = next(plain for plain, adapted in ADAPTED.items() if type(layer) is adapted)
