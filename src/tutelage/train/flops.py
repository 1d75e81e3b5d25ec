"""How much arithmetic a training step needs, and how much the device could do: their ratio is the MFU.

Model FLOPs utilization (https://arxiv.org/abs/2204.02311) = flops_per_token x tokens per second / peak_flops.
Only what the model needs counts: recomputed activations are no use, and so lower it.
"""

import re
import time
from functools import cache

import torch

from tutelage.model.config import ModelConfig

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


def flops_per_token(config: ModelConfig, context: float) -> float:
    """Floating-point operations that training takes a token, forward and backward: 6 a weight, and attention.

    `context` is how many keys a position sees in the mean: half of a row that is one document, far less where
    a row has many (the mean of positions + 1). The head counts, tied or not; the embedding is no product.
    """
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    layer = config.dim * (2 * queries + 2 * keys) + 3 * config.dim * config.ffn_dim
    weights = config.n_layers * layer + config.vocab_size * config.dim
    windows = config.windows or (None,) * config.n_layers
    seen = sum(context if window is None else min(context, window) for window in windows)
    return 6 * weights + 12 * queries * seen


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
