"""InstructLLaMA's models (https://github.com/michaelnny/InstructLLaMA): a .pth of tensors beside params.json.

Names are its own, the order of rows in query and key projections is Meta's. Its program has one arithmetic,
that of Llama 2 without grouped queries, with a head for language (lm_head) or for scores (scalar_head).
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.checkpoint.aside import Beside, written_aside
from tutelage.checkpoint.json_file import read_object
from tutelage.checkpoint.meta.names import from_meta
from tutelage.checkpoint.meta.params import PARAMS
from tutelage.checkpoint.meta.tensors import meta_tensors
from tutelage.checkpoint.peft_config import is_number
from tutelage.checkpoint.refusing import fixed_otherwise, refuse_all, unlike_llama
from tutelage.checkpoint.rotary import is_turned, rows_as_halves
from tutelage.checkpoint.source import EMBEDDING, Source
from tutelage.checkpoint.torch_file.read import HeldTensor, StoredTensor, read_state
from tutelage.checkpoint.torch_file.write import write_torch
from tutelage.errors import UserError
from tutelage.model.config import ModelConfig
from tutelage.model.score import PARAMETER as SCORE

_THETA, _EPS, _POSITIONS, _MULTIPLE = 10000.0, 1e-5, 2048, 256  # its own, where params.json is silent
_BOS, _EOS = 1, 2  # of Llama 2's vocabulary
_OUTSIDE = {  # of blocks: its names -> here
    "token_embeddings": "model.embed_tokens",
    "post_norm": "model.norm",
    "lm_head": "lm_head",
    "scalar_head": "score",
}


class InstructLlamaSource:
    """The tensors of such a model under Hugging Face names and in its order of rows."""

    def __init__(self, path: Path) -> None:
        self.where, self.problems = str(path), []
        self._tensors = _tensors(path)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        self.config = _config(self.shapes, read_object(path.parent / PARAMS), path)

    @property
    def dtype(self) -> torch.dtype:
        """That of the embedding; norms may be wider."""
        return self._tensors[EMBEDDING].dtype

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start..stop of a tensor, in Hugging Face's order."""
        if is_turned(name):
            return rows_as_halves(partial(self._rows, name), start, stop, self.config.head_dim)
        return self._rows(name, start, stop)

    def _rows(self, name: str, start: int, stop: int) -> Tensor:
        return self._tensors[name].rows(start, stop)


def _tensors(path: Path) -> dict[str, StoredTensor | HeldTensor]:
    """By our names; what is no part of a model with one head is refused."""
    state = read_state(path)
    if any("lora_" in name for name in state):
        raise UserError(f"{path} holds LoRA weights apart from the model's; merge them into it first")
    if {"lm_head.weight", "scalar_head.weight"} <= state.keys():
        raise UserError(f"{path} has two heads (head_type dual_head); a model has one here")
    bias = state.pop("scalar_head.bias", None)
    if bias is not None and (value := bias.whole()).any():
        raise UserError(f"{path}: scalar_head.bias is {float(value):.3g}; a score head has none here")
    named = {}
    for name, tensor in state.items():
        ours = from_meta(name, _OUTSIDE)
        if ours is None:
            raise UserError(f"{path} holds {name}, which is no part of a model of InstructLLaMA")
        named[ours] = tensor
    return named


def _config(shapes: Mapping[str, tuple[int, ...]], values: dict[str, Any], path: Path) -> ModelConfig:
    where = path.parent / PARAMS
    numbers = {"norm_eps": _EPS, "max_seq_len": _POSITIONS} | values
    for key in ("dim", "n_layers", "n_heads", "norm_eps", "max_seq_len"):
        if not is_number(numbers.get(key)) or numbers[key] <= 0:
            raise UserError(f"{where}: {key} = {numbers.get(key)!r}, wanted a number above 0")
    for key, wanted in (("n_kv_heads", numbers["n_heads"]), ("rope_theta", _THETA)):
        if values.get(key) not in (None, wanted):
            raise UserError(f"{where}: {key} = {values[key]!r}, InstructLLaMA computes with {wanted!r}")
    vocab_size, ffn_dim = (
        shapes.get(name, (0,))[0] for name in (EMBEDDING, "model.layers.0.mlp.gate_proj.weight")
    )
    return ModelConfig(
        vocab_size=vocab_size,
        dim=numbers["dim"],
        n_layers=numbers["n_layers"],
        n_heads=numbers["n_heads"],
        n_kv_heads=numbers["n_heads"],
        head_dim=numbers["dim"] // numbers["n_heads"],
        ffn_dim=ffn_dim,
        max_positions=numbers["max_seq_len"],
        norm_eps=numbers["norm_eps"],
        rope_theta=_THETA,
        head="score" if SCORE in shapes else "lm",
        bos=_BOS,
        eos=(_EOS,),
    )


def write_instructllama(
    source: Source, config: ModelConfig, path: Path, *, dtype: torch.dtype, beside: Beside | None = None
) -> None:
    """Write `path`, a .pth, and then params.json beside it; UserError for what its program cannot run."""
    refuse_what_it_cannot(config)
    tensors = meta_tensors(source, config, dtype, outside=_OUTSIDE)
    values = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "vocab_size": config.vocab_size,
        "multiple_of": _multiple(config),
        "norm_eps": config.norm_eps,
        "max_seq_len": config.max_positions,
        "head_type": "lm_head" if config.head == "lm" else "scalar_head",
    }
    size = sum(tensor.n_bytes for tensor in tensors)
    with written_aside(path.parent, size, last=PARAMS, beside=beside) as aside:
        write_torch(tensors, aside / path.name)
        (aside / PARAMS).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def refuse_what_it_cannot(config: ModelConfig) -> None:
    """Refuse a model that InstructLLaMA's program does not know, naming everything at once."""
    problems = fixed_otherwise(
        (
            ("num_key_value_heads", config.n_kv_heads, config.n_heads),
            ("rope_theta", config.rope_theta, _THETA),
            ("rope_scaling", config.rope_scaling, None),
            ("attention bias", config.qkv_bias, False),
            ("head_dim", config.head_dim, config.dim // config.n_heads),
        )
    )
    if config.ffn_dim < _least_ffn(config):
        problems.append(f"intermediate_size is {config.ffn_dim}, it has at least {_least_ffn(config)}")
    refuse_all("InstructLLaMA's program", problems + unlike_llama(config, scores=True))


def _least_ffn(config: ModelConfig) -> int:
    return int(2 * 4 * config.dim / 3)


def _multiple(config: ModelConfig) -> int:
    """What it rounds two thirds of 4 dim up to a multiple of, which must give this model's width."""
    rounded = -(-_least_ffn(config) // _MULTIPLE) * _MULTIPLE
    return _MULTIPLE if rounded == config.ffn_dim else config.ffn_dim
