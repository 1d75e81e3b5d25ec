"""Models written as Meta's program and torchllms read them: consolidated.NN.pth and params.json."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.checkpoint.aside import Beside, written_aside
from tutelage.checkpoint.meta.params import (
    LLAMA3_VOCABULARY,
    PARAMS,
    SCALING,
    SCALING_TIED,
    meta_params,
    torchllms_params,
)
from tutelage.checkpoint.meta.tensors import meta_tensors
from tutelage.checkpoint.refusing import refuse_all, scaled_otherwise, unlike_llama
from tutelage.checkpoint.source import Source
from tutelage.checkpoint.streamed import Rows, Streamed
from tutelage.checkpoint.torch_file.write import write_torch
from tutelage.model.config import ModelConfig
from tutelage.model.families import FAMILIES

_COLUMNS = ("attention.wo.weight", "feed_forward.w2.weight")  # of which devices have columns, not rows
_EMBEDDING = "tok_embeddings.weight"
_OLD = ("consolidated.*.pth",)


def write_meta(
    source: Source,
    config: ModelConfig,
    directory: Path,
    *,
    dtype: torch.dtype,
    devices: int = 1,
    beside: Beside | None = None,
) -> None:
    """Write the model cut for so many devices, and params.json; UserError for what Meta's cannot run."""
    refuse_for_meta(config, devices)
    whole = meta_tensors(source, config, dtype)
    parts = [[_cut(tensor, config, device, devices) for tensor in whole] for device in range(devices)]
    _write(parts, {PARAMS: meta_params(config.to_hf())}, directory, beside)


def write_torchllms_model(
    source: Source,
    config: ModelConfig,
    directory: Path,
    *,
    dtype: torch.dtype,
    beside: Beside | None = None,
) -> None:
    """Write consolidated.00.pth and params.json; UserError for a model that torchllms computes otherwise."""
    refuse_for_torchllms(config)
    tensors = meta_tensors(source, config, dtype, with_head=not config.tied)
    values = config.to_hf()
    _write(
        [tensors],
        {PARAMS: torchllms_params(values, biased=config.qkv_bias), "config.json": values},
        directory,
        beside,
    )


def refuse_for_meta(config: ModelConfig, devices: int = 1) -> None:
    """Refuse what Meta's program would compute otherwise, or cannot be cut so, naming everything at once."""
    problems = unlike_llama(config) + scaled_otherwise(config)
    if config.qkv_bias:
        problems.append("attention has biases, it has none")
    scaling = config.rope_scaling
    if scaling and scaling != (SCALING_TIED if config.tied else SCALING):
        problems.append(f"rope_scaling is {scaling}, it has that of Llama 3.1 alone (3.2's in tied models)")
    if config.head_dim * config.n_heads != config.dim:
        problems.append(f"head_dim is {config.head_dim}, it has dim / heads = {config.dim // config.n_heads}")
    for name, count in (
        ("attention heads", config.n_heads),
        ("key-value heads", config.n_kv_heads),
        ("columns of the MLP", config.ffn_dim),
        ("tokens", config.vocab_size),
        ("dimensions", config.dim),
    ):
        if count % devices:
            problems.append(f"{count} {name} cannot be cut for {devices} devices")
    refuse_all("Meta's program", problems)


def refuse_for_torchllms(config: ModelConfig) -> None:
    """Refuse what torchllms would compute otherwise, naming everything at once."""
    known = FAMILIES["olmo2"].traits if config.family == "olmo2" else ()
    refuse_all("torchllms", unlike_llama(config, known=known, roles=True) + scaled_otherwise(config))


def _cut(tensor: Streamed, config: ModelConfig, device: int, devices: int) -> Streamed:
    """One device's part of a tensor."""
    if devices == 1 or len(tensor.shape) == 1:  # norms are whole everywhere
        return tensor
    by_column = tensor.name.endswith(_COLUMNS)
    if tensor.name == _EMBEDDING:
        by_column = config.vocab_size < LLAMA3_VOCABULARY
    axis = int(by_column)
    size = tensor.shape[axis] // devices
    shape = (size, tensor.shape[1]) if axis == 0 else (tensor.shape[0], size)
    begin = device * size
    rows = _below(tensor.rows, begin) if axis == 0 else _beside(tensor.rows, begin, begin + size)
    return Streamed(tensor.name, shape, tensor.dtype, rows)


def _below(rows: Rows, begin: int) -> Rows:
    return lambda start, stop: rows(begin + start, begin + stop)


def _beside(rows: Rows, begin: int, end: int) -> Callable[[int, int], Tensor]:
    return lambda start, stop: rows(start, stop)[:, begin:end]


def _write(
    parts: list[list[Streamed]],
    settings: dict[str, dict[str, Any]],
    directory: Path,
    beside: Beside | None,
) -> None:
    size = sum(tensor.n_bytes for part in parts for tensor in part)
    with written_aside(directory, size, last=PARAMS, old=_OLD, beside=beside) as aside:
        for device, tensors in enumerate(parts):
            write_torch(tensors, aside / f"consolidated.{device:02d}.pth")
        for name, values in settings.items():
            (aside / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
