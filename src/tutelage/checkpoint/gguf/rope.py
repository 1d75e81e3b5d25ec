"""Rotary settings as GGUF files state them: keys for linear and yarn scaling, a tensor for Llama 3's.

C head dim
"""

import math
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import UserError

FACTORS = "rope_freqs.weight"
# Of llama3 scaling only the outcome is stored, so all but its factor is taken to be as Llama 3.1 has it.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_YARN = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
_UNUSUAL = ("attention_factor", "mscale", "mscale_all_dim", "truncate", "extrapolation_factor")


def llama3_factors(head_dim: int, theta: float, scaling: dict[str, Any]) -> Tensor:
    """What the frequency of each pair is divided by, (C/2,) float32, as llama.cpp's converter finds it."""
    plain = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    factor, old = scaling["factor"], scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = old * plain / (2 * math.pi)  # that a pair makes in the original context
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return 1 / ((1 - smooth) / factor + smooth)


def rope_parameters(setting: Any, factors: Tensor | None, head_dim: int, where: str) -> dict[str, Any]:
    """Hugging Face's `rope_parameters`; `setting(key, default)` gives the file's, `factors` is its tensor.

    A file states llama3 scaling only by what it divides every frequency by: its settings are found from that.
    """
    theta = setting("rope.freq_base", 10000.0)
    kind = setting("rope.scaling.type", "none")
    plain = {"rope_type": "default", "rope_theta": theta}
    if factors is not None and not torch.equal(factors, torch.ones_like(factors)):
        scaling = {"rope_type": "llama3", "factor": round(float(factors.max()), 4), **_LLAMA3}
        if not torch.allclose(llama3_factors(head_dim, theta, scaling), factors, rtol=1e-4):
            raise UserError(
                f"{where}: its rotary frequencies are divided by up to {factors.max():.4g}, and not as Llama "
                "3.1's are; use the safetensors of this model, whose config.json states how"
            )
        return {"rope_theta": theta, **scaling}
    factor = setting("rope.scaling.factor", 1.0)
    if kind == "none" or factor == 1.0:
        return plain
    scaling = {"rope_theta": theta, "rope_type": kind, "factor": factor}
    if (old := setting("rope.scaling.original_context_length", 0)) and kind == "yarn":
        scaling["original_max_position_embeddings"] = old
    for key in ("yarn_attn_factor", "yarn_ext_factor", "yarn_log_multiplier", "attn_factor"):
        if setting(f"rope.scaling.{key}", None) is not None:
            raise UserError(f"{where}: rope.scaling.{key} is not supported")
    found = {theirs: setting(f"rope.scaling.{ours}", 0) for ours, theirs in _YARN.items()}
    return scaling | {key: value for key, value in found.items() if value}


def rope_settings(theta: float, scaling: dict[str, Any] | None) -> dict[str, Any]:
    """The keys, without the architecture before them, that state Hugging Face's `rope_scaling`.

    What a config.json need not say, since it is usual, must not be in there.
    """
    settings: dict[str, Any] = {"rope.freq_base": float(theta)}
    kind = scaling["rope_type"] if scaling else "default"
    if scaling is None or kind in ("default", "llama3"):
        return settings
    if kind not in ("linear", "yarn"):
        raise UserError(f"rotary scaling {kind!r} cannot be written as GGUF; linear, yarn and llama3 can")
    settings |= {"rope.scaling.type": kind, "rope.scaling.factor": float(scaling["factor"])}
    if kind == "yarn":
        if unusual := [key for key in _UNUSUAL if scaling.get(key) is not None]:
            raise UserError(
                f"yarn scaling with {unusual[0]} = {scaling[unusual[0]]!r} cannot be written as GGUF: "
                "llama.cpp finds that by a rule of its own"
            )
        old = scaling["original_max_position_embeddings"]
        settings["rope.scaling.original_context_length"] = old
        stated = {ours: scaling.get(theirs) for ours, theirs in _YARN.items()}
        settings |= {
            f"rope.scaling.{key}": float(value) for key, value in stated.items() if value is not None
        }
    return settings
