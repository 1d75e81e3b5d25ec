"""Adapters as torchllms keeps them: lora_args.json beside a .pth that holds only what was trained.

Names are Meta's, and so is the order of rows in the projections of queries and keys.
"""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from tutelage.checkpoint.adapter import LowRank, StoredAdapter
from tutelage.checkpoint.aside import written_aside
from tutelage.checkpoint.json_file import read_object
from tutelage.checkpoint.meta.names import block_of, from_meta, to_meta
from tutelage.checkpoint.peft_config import is_number
from tutelage.checkpoint.rotary import halves_to_pairs, is_turned, pairs_to_halves
from tutelage.checkpoint.streamed import Held, Streamed
from tutelage.checkpoint.torch_file.read import read_tensors
from tutelage.checkpoint.torch_file.write import write_torch
from tutelage.errors import UserError
from tutelage.model.config import ModelConfig
from tutelage.model.score import PARAMETER as SCORE

ARGS = "lora_args.json"
_ROLES = "role_embeddings"
_FINAL, _STEP = "model_final.pth", re.compile(r"model_(\d+)\.pth")


def read_torchllms(path: Path, config: ModelConfig) -> StoredAdapter:
    """The adapter in a .pth beside which lora_args.json lies, or the part of a model in one without it.

    `config` is the base model's.
    """
    state = read_tensors(path)
    values = {"lora_rank": 1, "lora_alpha": 1.0} if is_part(path) else _args(path.parent / ARGS)
    rank, scale = values["lora_rank"], values["lora_alpha"] / values["lora_rank"]
    if is_part(path) and any(".lora_" in name for name in state):
        raise UserError(f"{path} holds LoRA weights, and no {ARGS} beside it says how to merge them")
    parts: dict[str, dict[str, Tensor]] = {}
    full: dict[str, Tensor] = {}
    for key, tensor in state.items():
        layer, _, last = key.rpartition(".")
        if not layer:
            raise UserError(f"{path} holds {key}, which is no part of a Llama")
        ours = _from_meta(layer, config, path)
        if last in ("lora_A", "lora_B"):
            parts.setdefault(ours, {})[last] = tensor
        else:
            full[f"{ours}.{last}"] = _halves(ours, tensor, config, path)
    layers = {}
    for layer, found in parts.items():
        if set(found) != {"lora_A", "lora_B"}:
            raise UserError(f"{path}: {layer} has only {', '.join(found)} of lora_A and lora_B")
        a, b = found["lora_A"], found["lora_B"]
        if _is_embedding(layer):  # there A is (vocabulary, rank) and B (rank, dim)
            a, b = b, a
        if a.ndim != 2 or b.ndim != 2 or (len(a), b.shape[1]) != (rank, rank):
            shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
            raise UserError(f"{path}: the matrices of {layer} are {shapes}, {ARGS} says rank {rank}")
        layers[layer] = LowRank(a, _halves(layer, b, config, path), scale)
    if not state:
        raise UserError(f"{path} holds no weights")
    return StoredAdapter(str(path), layers, full, dropout=values.get("lora_dropout") or 0.0)


def find_torchllms(path: Path) -> Path | None:
    """The .pth of torchllms' adapter at `path`, file or directory: there model_final.pth, else the newest."""
    directory = path.parent if path.is_file() else path
    if not (directory / ARGS).is_file():
        return None
    if path.is_file():
        return path if path.suffix == ".pth" else None
    return newest(directory)


def is_part(path: Path) -> bool:
    """Whether `path` may be what torchllms trained of a model in full: a .pth without lora_args.json."""
    return path.is_file() and path.suffix == ".pth" and not (path.parent / ARGS).is_file()


def newest(directory: Path) -> Path | None:
    """What a run of torchllms ended with, or the last that it saved on the way."""
    if (directory / _FINAL).is_file():
        return directory / _FINAL
    steps = {int(match[1]): p for p in directory.iterdir() if (match := _STEP.fullmatch(p.name))}
    return steps[max(steps)] if steps else None


def _args(where: Path) -> dict[str, Any]:
    values = read_object(where)
    missing = [key for key in ("lora_rank", "lora_alpha") if key not in values]
    if missing:
        raise UserError(f"{where} has no {', '.join(missing)}")
    rank, alpha, dropout = values["lora_rank"], values["lora_alpha"], values.get("lora_dropout") or 0.0
    if not is_number(rank) or rank < 1 or rank != int(rank):
        raise UserError(f"{where}: lora_rank = {rank!r}, wanted a whole number from 1")
    if not is_number(alpha) or alpha <= 0:
        raise UserError(f"{where}: lora_alpha = {alpha!r}, wanted a number above 0")
    if not is_number(dropout) or not 0 <= dropout <= 1:
        raise UserError(f"{where}: lora_dropout = {dropout!r}, wanted a number from 0 to 1")
    return values


def write_torchllms(stored: StoredAdapter, path: Path, config: ModelConfig) -> None:
    """Write the adapter to `path`, a .pth, with lora_args.json beside it; one rank and scale, and no DoRA."""
    if SCORE in stored.full:
        raise UserError(f"{stored.where} has a score head, and torchllms knows none; PEFT does")
    ranks = {len(low.a) for low in stored.layers.values()}
    scales = {low.scale for low in stored.layers.values()}
    if (
        len(ranks) != 1
        or len(scales) != 1
        or any(low.magnitude is not None for low in stored.layers.values())
    ):
        raise UserError(f"{stored.where}: torchllms knows one rank and one alpha for all layers, and no DoRA")
    (rank,), (scale,) = ranks, scales
    state = {}
    for layer, low in stored.layers.items():
        a, b = low.a, _turned(layer, low.b, config, halves_to_pairs)
        if _is_embedding(layer):
            a, b = b, a
        theirs = _to_meta(layer, config)
        state |= {f"{theirs}.lora_A": a.contiguous(), f"{theirs}.lora_B": b.contiguous()}
        if config.tied and layer == "model.embed_tokens":  # the head is the same matrix, and nothing says so
            state |= {"output.lora_A": low.a.contiguous(), "output.lora_B": low.b.contiguous()}
    for name, value in stored.full.items():
        layer, _, last = name.rpartition(".")
        state[f"{_to_meta(layer, config)}.{last}"] = _turned(
            layer, value, config, halves_to_pairs
        ).contiguous()
    held = Held(state)
    tensors = [
        Streamed(name, held.shapes[name], tensor.dtype, partial(held.rows, name))
        for name, tensor in state.items()
    ]
    values = {
        "lora_rank": rank,
        "lora_alpha": scale * rank,
        "lora_dropout": stored.dropout,
        "lora_embedding": "model.embed_tokens" in stored.layers,
    }
    with written_aside(path.parent, sum(tensor.n_bytes for tensor in tensors), last=path.name) as aside:
        write_torch(tensors, aside / path.name)
        (aside / ARGS).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _halves(layer: str, tensor: Tensor, config: ModelConfig, path: Path) -> Tensor:
    if is_turned(layer) and (not tensor.ndim or len(tensor) % config.head_dim):
        shape = tuple(tensor.shape)
        raise UserError(f"{path} was made for another model: {layer} is {shape}, a head {config.head_dim}")
    return _turned(layer, tensor, config, pairs_to_halves)


def _turned(layer: str, tensor: Tensor, config: ModelConfig, order) -> Tensor:
    """Rows of query and key projections, and values of their biases and norms, in the other order."""
    return order(tensor, config.head_dim) if is_turned(layer) else tensor


def _is_embedding(layer: str) -> bool:
    return layer.endswith(("embed_tokens", _ROLES))


def _from_meta(layer: str, config: ModelConfig, path: Path) -> str:
    ours = from_meta(f"{layer}.weight", block=block_of(config))
    if ours is None:
        raise UserError(f"{path} holds {layer}, which is no part of a Llama")
    return ours.removesuffix(".weight")


def _to_meta(layer: str, config: ModelConfig) -> str:
    theirs = to_meta(f"{layer}.weight", block=block_of(config))
    assert theirs is not None, f"{layer} has no name of Meta's"
    return theirs.removesuffix(".weight")
