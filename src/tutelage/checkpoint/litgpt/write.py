"""Models written as litgpt reads them: lit_model.pth and model_config.yaml."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from tutelage.checkpoint.aside import Beside, written_aside
from tutelage.checkpoint.generation_config import write_generation_config
from tutelage.checkpoint.litgpt.model import CONFIG, FIXED, FUSED, KINDS, NORMS, SCALING, WEIGHTS, names_in
from tutelage.checkpoint.refusing import refuse_all, scaled_otherwise, unlike_llama
from tutelage.checkpoint.source import EMBEDDING, HEAD, Source, parameter_shapes
from tutelage.checkpoint.streamed import Streamed, below_each_other
from tutelage.checkpoint.torch_file.write import write_torch
from tutelage.model.config import ModelConfig
from tutelage.model.families import FAMILIES


def write_litgpt(
    source: Source,
    config: ModelConfig,
    directory: Path,
    *,
    dtype: torch.dtype,
    beside: Beside | None = None,
) -> None:
    """Write lit_model.pth, and then model_config.yaml beside it; UserError for what has no place there."""
    refuse_for_litgpt(config)
    shapes = parameter_shapes(config)
    theirs = {ours: name for name, ours in names_in(config.family).items()}
    tensors: list[Streamed] = []
    for name, shape in shapes.items():
        layer, _, last = name.rpartition(".")
        prefix = ""
        if layer.startswith("model.layers."):
            _, _, number, layer = layer.split(".", 3)
            prefix = f"transformer.h.{number}."
        if layer.endswith(KINDS[0]):
            parts = [name.replace(KINDS[0], kind) for kind in KINDS]
            heights = [shapes[part][0] for part in parts]
            rows = below_each_other([partial(source.rows, part) for part in parts], heights)
            tensors.append(Streamed(f"{prefix}{FUSED}.{last}", (sum(heights), *shape[1:]), dtype, rows))
        elif not layer.endswith(KINDS[1:]):
            tensors.append(
                Streamed(f"{prefix}{theirs[layer]}.{last}", shape, dtype, partial(source.rows, name))
            )
    if config.tied:  # its head is a matrix of its own
        tensors.append(Streamed(HEAD, shapes[EMBEDDING], dtype, partial(source.rows, EMBEDDING)))
    size = sum(tensor.n_bytes for tensor in tensors)
    with written_aside(directory, size, last=CONFIG, beside=beside) as aside:
        write_torch(tensors, aside / WEIGHTS)
        write_generation_config(config, aside)
        (aside / CONFIG).write_text(yaml.safe_dump(_written(config, directory.name)), encoding="utf-8")


def refuse_for_litgpt(config: ModelConfig) -> None:
    """Refuse what has no place in litgpt's files, naming everything at once."""
    known = FAMILIES[config.family].traits if config.family in NORMS else ()
    refuse_all("litgpt as written here", unlike_llama(config, known=known) + scaled_otherwise(config))


def _written(config: ModelConfig, name: str) -> dict[str, Any]:
    scaling = config.rope_scaling
    theta = int(config.rope_theta) if config.rope_theta == int(config.rope_theta) else config.rope_theta
    settings: dict[str, Any] = {
        "name": name,
        "hf_config": {"org": "", "name": name},
        "block_size": config.max_positions,
        "n_layer": config.n_layers,
        "n_embd": config.dim,
        "vocab_size": config.vocab_size,
        "padded_vocab_size": config.vocab_size,
        "n_head": config.n_heads,
        "head_size": config.head_dim,
        "n_query_groups": config.n_kv_heads,
        "attn_bias": config.qkv_bias,
        "norm_eps": config.norm_eps,
        "rope_base": theta,
        "rope_adjustments": {key: scaling[ours] for key, ours in SCALING.items()} if scaling else None,
        "intermediate_size": config.ffn_dim,
    }
    settings |= NORMS.get(config.family, NORMS["llama"])
    return settings | {key: allowed[0] for key, allowed in FIXED.items()}
