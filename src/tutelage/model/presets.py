"""Named shapes: what `--model` means when it names no file, and how a shape is changed in single places.

Numbers are those of each model's published config.json; n_parameters with the published vocabulary is the
published count, which a test holds them to. llama2.c's stories models: https://github.com/karpathy/llama2.c.
"""

from dataclasses import replace
from typing import Any

from tutelage.errors import UserError
from tutelage.model.config import ModelConfig

FFN_MULTIPLE = 32  # a feed-forward width that follows a changed dim is rounded up to it


def _shape(
    vocab_size: int,
    dim: int,
    n_layers: int,
    heads: tuple[int, int],
    ffn_dim: int,
    max_positions: int,
    traits: dict[str, Any] | None = None,
) -> ModelConfig:
    """`heads` of queries and of keys and values; `traits` are other fields of ModelConfig."""
    return ModelConfig(
        vocab_size=vocab_size,
        dim=dim,
        n_layers=n_layers,
        n_heads=heads[0],
        n_kv_heads=heads[1],
        head_dim=dim // heads[0],
        ffn_dim=ffn_dim,
        max_positions=max_positions,
        **(traits or {}),
    )


def _llama3(factor: float, tied: bool) -> dict[str, Any]:
    scaling = {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"rope_type": "llama3", "original_max_position_embeddings": 8192}
    return {"rope_theta": 500000.0, "rope_scaling": scaling, "tied": tied}


def _qwen(tied: bool) -> dict[str, Any]:
    return {"family": "qwen2", "qkv_bias": True, "norm_eps": 1e-6, "rope_theta": 1e6, "tied": tied}


_TIED = {"tied": True}
_SMOLLM2 = {"tied": True, "rope_theta": 100000.0}
_MISTRAL = {"family": "mistral", "windows": (4096,) * 32}

PRESETS = {  # vocabulary, dim, layers, (heads, kv heads), feed-forward, positions
    "stories260K": _shape(512, 64, 5, (8, 4), 172, 512, _TIED),
    "stories840K": _shape(768, 128, 4, (4, 2), 352, 256, _TIED),  # of our own: the quickstart's
    "stories15M": _shape(32000, 288, 6, (6, 6), 768, 256, _TIED),
    "stories42M": _shape(32000, 512, 8, (8, 8), 1376, 1024, _TIED),
    "stories110M": _shape(32000, 768, 12, (12, 12), 2048, 1024, _TIED),
    # InstructLLaMA has 12 heads of 170 here, 2048 / 12 cut off, which transformers refuses to load.
    "instruct_llama-1b": _shape(32000, 2048, 12, (16, 16), 5632, 512),
    "instruct_llama-3b": _shape(32000, 4096, 16, (32, 32), 11008, 512),
    "instruct_llama-7b": _shape(32000, 4096, 32, (32, 32), 11008, 512),
    "smollm2-135m": _shape(49152, 576, 30, (9, 3), 1536, 8192, _SMOLLM2),
    "smollm2-360m": _shape(49152, 960, 32, (15, 5), 2560, 8192, _SMOLLM2),
    "qwen2.5-0.5b": _shape(151936, 896, 24, (14, 2), 4864, 32768, _qwen(tied=True)),
    "qwen2.5-1.5b": _shape(151936, 1536, 28, (12, 2), 8960, 131072, _qwen(tied=True)),
    "qwen2.5-7b": _shape(152064, 3584, 28, (28, 4), 18944, 131072, _qwen(tied=False)),
    "llama3.2-1b": _shape(128256, 2048, 16, (32, 8), 8192, 131072, _llama3(32.0, tied=True)),
    "llama3.2-3b": _shape(128256, 3072, 28, (24, 8), 8192, 131072, _llama3(32.0, tied=True)),
    "llama3.1-8b": _shape(128256, 4096, 32, (32, 8), 14336, 131072, _llama3(8.0, tied=False)),
    "mistral-7b": _shape(32000, 4096, 32, (32, 8), 14336, 32768, _MISTRAL),  # v0.1
}


def reshaped(
    shape: ModelConfig,
    *,
    dim: int | None = None,
    n_layers: int | None = None,
    n_heads: int | None = None,
    n_kv_heads: int | None = None,
    ffn_dim: int | None = None,
    tied: bool | None = None,
    rope_theta: float | None = None,
) -> ModelConfig:
    """The shape with what is given changed; what is not, stays, or follows dim and n_heads.

    Heads stay dim / n_heads wide, kv heads as many as heads where they were, and the feed-forward layers keep
    their proportion to dim, up to a multiple of FFN_MULTIPLE.
    """
    head_dim = shape.head_dim
    if dim is not None or n_heads is not None:
        width, heads = dim or shape.dim, n_heads or shape.n_heads
        if width % heads:
            raise UserError(f"dim {width} does not divide into n_heads {heads}")
        head_dim = width // heads
    if ffn_dim is None and dim is not None and dim != shape.dim:
        ffn_dim = -(-dim * shape.ffn_dim // (shape.dim * FFN_MULTIPLE)) * FFN_MULTIPLE
    if n_kv_heads is None and shape.n_kv_heads == shape.n_heads:
        n_kv_heads = n_heads
    given = {"dim": dim, "n_layers": n_layers, "n_heads": n_heads, "n_kv_heads": n_kv_heads}
    given |= {"ffn_dim": ffn_dim, "tied": tied, "rope_theta": rope_theta, "head_dim": head_dim}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if shape.windows is not None and n_layers is not None:
        changes["windows"] = _windows(shape.windows, n_layers)
    return replace(shape, **changes)


def _windows(windows: tuple[int | None, ...], n_layers: int) -> tuple[int | None, ...]:
    if len(windows) == n_layers:
        return windows
    if len(set(windows)) > 1:
        raise UserError(
            f"n_layers {n_layers}: the model has {len(windows)} layers with sliding windows in some of them, "
            "so it is not clear which of another number would have one; give a config.json of that depth"
        )
    return windows[:1] * n_layers
