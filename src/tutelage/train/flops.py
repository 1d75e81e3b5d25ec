"""How much arithmetic a training step needs, and how much the device could do: their ratio is the MFU.

Model FLOPs utilization (https://arxiv.org/abs/2204.02311) = flops_per_token x tokens per second / peak_flops.
Only what the model needs counts: recomputed activations are no use, and so lower it.
"""

import re
import time
from functools import cache

import torch
from torch import nn

from tutelage.model.block import Block
from tutelage.model.lora import LoRALayer
from tutelage.model.transformer import Transformer

# Dense bfloat16 in 10^12 operations a second, from the vendors' data sheets; where these give the rate with
# sparsity, half of it. A name has all the words of its line; the first line that fits holds.
_BF16_PEAKS: dict[tuple[str, ...], float] = {
    ("B200",): 2250,
    ("GB200",): 2250,
    ("H200",): 989.4,
    ("GH200",): 989.4,
    ("H100", "NVL"): 835.5,
    ("H100", "PCIe"): 756.5,
    ("H100",): 989.4,
    ("H800", "PCIe"): 756.5,
    ("H800",): 989.4,
    ("H20",): 148,
    ("A100",): 312,
    ("A800",): 312,
    ("A30",): 165,
    ("A40",): 149.7,
    ("A10",): 125,
    ("A6000",): 154.8,
    ("L40S",): 362.05,
    ("L40",): 181.05,
    ("L4",): 121,
    ("RTX", "5090"): 209.5,
    ("RTX", "4090"): 165.2,
    ("RTX", "3090"): 71,
    ("MI300X",): 1307.4,
    ("MI325X",): 1307.4,
    ("MI250X",): 191.5,  # of one of its two dies, which is a device
}
_SMALLER = {"Laptop", "MIG", "Max", "D"}  # words of names that stand for less than the whole card
_SECONDS = 0.5  # of measuring


def flops_per_token(model: Transformer, context: float) -> float:
    """Floating-point operations that training takes a token, forward and backward, and attention's.

    A trained weight takes 6: its product, and the gradients by its input and by itself. A frozen one takes 4,
    and 2 where nothing before it is trained. The head counts, tied or not; the embedding is no product.
    `context` is how many keys a position sees in the mean: half of a row that is one document, far less where
    a row has many (the mean of positions + 1).
    """
    config, decoder = model.config, model.model
    windows = config.windows or (None,) * config.n_layers
    operations: float = _low_rank(decoder.embed_tokens, False)
    follows = _trained(decoder.embed_tokens, decoder.role_embeddings)
    for block, window in zip(decoder.layers, windows, strict=True):
        assert isinstance(block, Block)
        own, follows = _of_block(block, context if window is None else min(context, window), follows)
        operations += own
    follows = follows or _trained(decoder.norm)
    return operations + config.n_outputs * config.dim * (2 + 2 * follows + 2 * _trained(model.head))


def _of_block(block: Block, context: float, follows: bool) -> tuple[float, bool]:
    """Its operations a token, and whether what it gives depends on a trained weight; `follows`: its input."""
    attention, mlp = block.self_attn, block.mlp
    reads = follows or _trained(block.norm(0))
    read = [_linear(layer, reads) for layer in attention.readers]  # of a fused layer one for all three
    operations: float = sum(ops for ops, _ in read)
    q, k, v = (trained for _, trained in (read if len(read) == 3 else read * 3))
    q, k = q or _trained(attention.q_norm), k or _trained(attention.k_norm)
    products = 2 + (q or k) + q + k + v  # scores and mixture; gradients by scores, queries, keys, values
    operations += 2.0 * attention.sizes[0] * context * products
    o_ops, mixed = _linear(attention.o_proj, q or k or v)
    follows = follows or mixed or _trained(block.norm(1))
    reads = follows or _trained(block.norm(2))
    read = [_linear(layer, reads) for layer in mlp.readers]
    down_ops, down = _linear(mlp.down_proj, any(trained for _, trained in read))
    operations += o_ops + sum(ops for ops, _ in read) + down_ops
    return operations, follows or down or _trained(block.norm(3))


def _linear(layer: nn.Linear, follows: bool) -> tuple[int, bool]:
    """A linear layer's operations, its weight as it is or in fewer bits, its adapter's among them."""
    weight = getattr(layer, "weight", None)  # codes have none, and are never trained
    trained = isinstance(weight, nn.Parameter) and weight.requires_grad
    base = layer.out_features * layer.in_features * (2 + 2 * follows + 2 * trained)
    return base + _low_rank(layer, follows), follows or _trained(layer)


def _low_rank(layer: nn.Module, follows: bool) -> int:
    """Operations of the active adapter: A, then B; of an embedding B is looked up, and only A a product."""
    name = layer.active if isinstance(layer, LoRALayer) else None
    if not isinstance(layer, LoRALayer) or name is None or name not in layer.kinds:
        return 0
    a, b = layer.lora_A[name], layer.lora_B[name]
    looked_up = isinstance(layer, nn.Embedding)
    operations, follows = 0, follows or (looked_up and b.requires_grad)
    for weight in (a,) if looked_up else (a, b):
        operations += weight.numel() * (2 + 2 * follows + 2 * weight.requires_grad)
        follows = follows or weight.requires_grad
    return operations


def _trained(*modules: nn.Module | None) -> bool:
    return any(p.requires_grad for module in modules if module is not None for p in module.parameters())


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second that the device could do at best: by its data sheet where that is known, else as
    fast as it multiplies large matrices of this dtype, measured once, in half a second.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        known = data_sheet_flops(torch.cuda.get_device_name(device))
        if known is not None:
            return known
    return _measured(device, dtype)


def data_sheet_flops(name: str) -> float | None:
    """Of a device by its name; None where no data sheet is known or it stands for less than the card."""
    words = set(re.split(r"[\s-]+", name))
    if words & _SMALLER:
        return None
    return next((peak * 1e12 for wanted, peak in _BF16_PEAKS.items() if words.issuperset(wanted)), None)


@cache
def _measured(device: torch.device, dtype: torch.dtype) -> float:
    n = 8192 if device.type == "cuda" else 1024
    draw = torch.Generator(device).manual_seed(0)  # the run's own chance is left alone
    a, b = (torch.randn(n, n, dtype=dtype, device=device, generator=draw) for _ in range(2))
    out, best = torch.mm(a, b), float("inf")
    until = time.perf_counter() + _SECONDS
    while time.perf_counter() < until:
        _wait(device)
        started = time.perf_counter()
        torch.mm(a, b, out=out)
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
