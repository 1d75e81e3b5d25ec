"""Named shapes: what `--model` means when it names no file, and how a shape is changed in single places.

Numbers are those of each model's published config.json; n_parameters with the published vocabulary is the
published count, which a test holds them to. llama2.c's stories models: https://github.com/karpathy/llama2.c.
"""

from dataclasses import replace
from typing import Any

from tutelage.errors import UserError
from tutelage.model.config import ModelConfig
from tutelage.model.families import FAMILIES

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
    traits = {"family": "llama", "head_dim": dim // heads[0]} | (traits or {})
    if "window" in traits:  # in which layers is the family's rule
        sizes = {"num_hidden_layers": n_layers, "sliding_window": traits.pop("window")}
        traits["windows"] = FAMILIES[traits["family"]].windows(sizes)
    return ModelConfig(
        vocab_size=vocab_size,
        dim=dim,
        n_layers=n_layers,
        n_heads=heads[0],
        n_kv_heads=heads[1],
        ffn_dim=ffn_dim,
        max_positions=max_positions,
        **dict(FAMILIES[traits["family"]].traits) | traits,
    )


def _llama3(factor: float, tied: bool) -> dict[str, Any]:
    scaling = {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"rope_type": "llama3", "original_max_position_embeddings": 8192}
    return {"rope_theta": 500000.0, "rope_scaling": scaling, "tied": tied}


def _qwen(tied: bool) -> dict[str, Any]:
    return {"family": "qwen2", "norm_eps": 1e-6, "rope_theta": 1e6, "tied": tied}


def _qwen3(tied: bool) -> dict[str, Any]:
    return {"family": "qwen3", "head_dim": 128, "norm_eps": 1e-6, "rope_theta": 1e6, "tied": tied}


def _gemma(family: str, traits: dict[str, Any]) -> dict[str, Any]:
    return {"family": family, "head_dim": 256, "norm_eps": 1e-6, "tied": True} | traits


_TIED = {"tied": True}
_SMOLLM2 = {"tied": True, "rope_theta": 100000.0}
_THREE_OF_FOUR = (True, True, True, False) * 9  # layers with rotary embeddings
_SMOLLM3 = {"family": "smollm3", "tied": True, "norm_eps": 1e-6, "rope_theta": 5e6}
_MISTRAL = {"family": "mistral", "window": 4096}
_OLMO2 = {"family": "olmo2", "norm_eps": 1e-6, "rope_theta": 5e5}
_GEMMA2 = {"window": 4096, "query_scalar": 256, "attention_cap": 50.0, "logit_cap": 30.0}
_GEMMA3 = {"window": 512, "query_scalar": 256, "rope_theta": 1e6, "local_theta": 1e4}
_PHI3 = {"family": "phi3", "window": 2047}

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
    "smollm2-1.7b": _shape(49152, 2048, 24, (32, 32), 8192, 8192, _SMOLLM2 | {"rope_theta": 130000.0}),
    "smollm3-3b": _shape(128256, 2048, 36, (16, 4), 11008, 65536, _SMOLLM3 | {"rope_layers": _THREE_OF_FOUR}),
    "qwen2.5-0.5b": _shape(151936, 896, 24, (14, 2), 4864, 32768, _qwen(tied=True)),
    "qwen2.5-1.5b": _shape(151936, 1536, 28, (12, 2), 8960, 131072, _qwen(tied=True)),
    "qwen2.5-7b": _shape(152064, 3584, 28, (28, 4), 18944, 131072, _qwen(tied=False)),
    "qwen3-0.6b": _shape(151936, 1024, 28, (16, 8), 3072, 40960, _qwen3(tied=True)),
    "qwen3-1.7b": _shape(151936, 2048, 28, (16, 8), 6144, 40960, _qwen3(tied=True)),
    "qwen3-8b": _shape(151936, 4096, 36, (32, 8), 12288, 40960, _qwen3(tied=False)),
    "llama3.2-1b": _shape(128256, 2048, 16, (32, 8), 8192, 131072, _llama3(32.0, tied=True)),
    "llama3.2-3b": _shape(128256, 3072, 28, (24, 8), 8192, 131072, _llama3(32.0, tied=True)),
    "llama3.1-8b": _shape(128256, 4096, 32, (32, 8), 14336, 131072, _llama3(8.0, tied=False)),
    "mistral-7b": _shape(32000, 4096, 32, (32, 8), 14336, 32768, _MISTRAL),  # v0.1
    "olmo2-1b": _shape(100352, 2048, 16, (16, 16), 8192, 4096, _OLMO2),
    "olmo2-7b": _shape(100352, 4096, 32, (32, 32), 11008, 4096, _OLMO2),
    "gemma-2b": _shape(256000, 2048, 18, (8, 1), 16384, 8192, _gemma("gemma", {})),
    "gemma2-2b": _shape(256000, 2304, 26, (8, 4), 9216, 8192, _gemma("gemma2", _GEMMA2)),
    "gemma3-270m": _shape(262144, 640, 18, (4, 1), 2048, 32768, _gemma("gemma3_text", _GEMMA3)),
    "gemma3-1b": _shape(262144, 1152, 26, (4, 1), 6912, 32768, _gemma("gemma3_text", _GEMMA3)),
    "phi3-mini": _shape(32064, 3072, 32, (32, 32), 8192, 4096, _PHI3),  # of 4k
    "phi3-medium": _shape(32064, 5120, 40, (40, 10), 17920, 4096, _PHI3),  # of 4k
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
    if shape.query_scalar == shape.head_dim:
        changes["query_scalar"] = head_dim
    if n_layers is not None:
        changes["windows"] = _deeper(shape.windows, n_layers, "sliding windows")
        changes["rope_layers"] = _deeper(shape.rope_layers, n_layers, "rotary embeddings")
    return replace(shape, **changes)


def _deeper(layers: tuple[Any, ...] | None, n_layers: int, what: str) -> tuple[Any, ...] | None:
    """What layers have, in another number of them: where a few take turns, as they do."""
    if layers is None or len(layers) == n_layers:
        return layers
    for period in range(1, len(layers) // 2 + 1):
        if layers == (layers[:period] * len(layers))[: len(layers)]:
            return (layers[:period] * n_layers)[:n_layers]
    raise UserError(
        f"n_layers {n_layers}: the model has {len(layers)} layers with {what} in some of them, so it is not "
        "clear which of another number would have them; give a config.json of that depth"
    )
