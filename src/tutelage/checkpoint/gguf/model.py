"""llama.cpp's GGUF files, read as the Hugging Face model they came from."""

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from torch import Tensor

from tutelage.checkpoint.config_values import check_values
from tutelage.checkpoint.gguf.file import Header, Stored, header_of
from tutelage.checkpoint.gguf.names import Architecture, architecture_of
from tutelage.checkpoint.gguf.rope import FACTORS, rope_parameters
from tutelage.checkpoint.rotary import rows_as_halves
from tutelage.errors import UserError
from tutelage.model.config import ModelConfig

_PLAIN = {GGMLQuantizationType.F16: torch.float16, GGMLQuantizationType.BF16: torch.bfloat16}


class GGUFSource:
    """The tensors of a GGUF file under Hugging Face names, decoded when asked."""

    def __init__(self, path: Path):
        self.where = str(path)
        self.problems: list[str] = []
        self._header = header_of(path)
        self._architecture = architecture_of(self._header.settings, str(path))
        names = [name for name in self._header.tensors if name != FACTORS]
        self._stored = {self._architecture.hf_name(name): name for name in names}
        self.shapes = {name: self._header.tensors[stored].shape for name, stored in self._stored.items()}
        self._head_dim = gguf_config(path).head_dim
        self._find_problems()

    @property
    def dtype(self) -> torch.dtype:
        """float16 or bfloat16 where every matrix is stored so, else float32, to which blocks are decoded."""
        kinds = {stored.kind for stored in self._header.tensors.values() if len(stored.shape) > 1}
        return _PLAIN.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32

    @property
    def kinds(self) -> list[str]:
        """The types that matrices have in the file, Q4_1 say, first that of most weights."""
        counts: Counter[str] = Counter()
        for stored in self._header.tensors.values():
            counts[stored.kind.name] += prod(stored.shape) if len(stored.shape) > 1 else 0
        return [name for name, count in counts.most_common() if count]

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start..stop of a tensor, in Hugging Face's order, float32."""

        def read(first: int, last: int) -> Tensor:
            return torch.from_numpy(self._header.read(self._stored[name], first, last))

        if self._architecture.is_paired(name):
            return rows_as_halves(read, start, stop, self._head_dim)
        return read(start, stop) - self._architecture.shift(name)

    def _find_problems(self) -> None:
        self.problems += self._header.problems
        for kind in sorted({stored.kind for stored in self._header.tensors.values()}):
            if not _can_decode(kind):
                self.problems.append(f"weights of type {kind.name} cannot be decoded")


def gguf_config(path: Path) -> ModelConfig:
    """The shape of the model in a GGUF file."""
    return config_of(header_of(path))


def config_of(header: Header) -> ModelConfig:
    """The shape in a header: its settings in the words of Hugging Face, read as a config.json is."""
    path = header.path
    architecture = architecture_of(header.settings, str(path))
    _refuse_unknown_arithmetic(header, architecture)
    values = {theirs: _setting(header, key) for key, theirs in architecture.keys.items()}
    values = {key: value for key, value in values.items() if value is not None}
    if missing := [key for key in _REQUIRED if architecture.keys[key] not in values]:
        raise UserError(f"{path}: the key {architecture.name}.{missing[0]} is missing")
    head_dim = values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]
    factors = None
    if FACTORS in header.tensors:
        factors = torch.from_numpy(header.read(FACTORS, 0, header.tensors[FACTORS].shape[0]))
    if architecture.wide_scores:
        wide = values["num_hidden_layers"] == architecture.wide_scores
        by_heads = values["hidden_size"] // values["num_attention_heads"]
        values["query_pre_attn_scalar"] = by_heads if wide else head_dim
    tokens = {name: header.settings.get(f"tokenizer.ggml.{key}_token_id") for name, key in _TOKENS.items()}
    values |= {
        "model_type": architecture.family,
        "vocab_size": _embedding(header).shape[0],
        "rope_parameters": rope_parameters(
            lambda key, default: _setting(header, key, default), factors, head_dim, str(path)
        ),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "bos_token_id": tokens["bos"],
        "eos_token_id": list(dict.fromkeys(t for t in (tokens["eos"], tokens["eot"]) if t is not None)),
        "pad_token_id": tokens["pad"],
    }
    values |= _window(values, header, architecture)
    check_values(values, path)
    return ModelConfig.from_hf(values, where=str(path))


_REQUIRED = (
    "embedding_length",
    "attention.head_count",
    "block_count",
    "feed_forward_length",
    "context_length",
    "attention.layer_norm_rms_epsilon",
)
_TOKENS = {"bos": "bos", "eos": "eos", "eot": "eot", "pad": "padding"}


def _setting(header: Header, key: str, default: Any = None) -> Any:
    """The value of a key of the architecture; `default` where there is none."""
    key = f"{header.settings['general.architecture']}.{key}"
    value = header.settings.get(key, default)
    if isinstance(value, list):
        raise UserError(f"{header.path}: {key} differs from layer to layer, which is not supported")
    return _shortest(value) if isinstance(value, float) else value


def _shortest(value: float) -> float:
    """The shortest decimal that is this float32: 9.999999747378752e-06 was meant as 1e-05."""
    return float(str(np.float32(value)))


def _embedding(header: Header) -> Stored:
    if "token_embd.weight" not in header.tensors:
        raise UserError(f"{header.path} holds no token_embd.weight: it is not a whole model")
    return header.tensors["token_embd.weight"]


def _refuse_unknown_arithmetic(header: Header, architecture: Architecture) -> None:
    path, settings, name = header.path, header.settings, architecture.name
    experts = settings.get(f"{name}.expert_count", 0)
    if experts:
        raise UserError(f"{path}: a mixture of {experts} experts is not supported")
    dims = [settings.get(f"{name}.{key}") for key in ("attention.key_length", "attention.value_length")]
    if dims[0] != dims[1]:
        raise UserError(f"{path}: keys of length {dims[0]} and values of length {dims[1]} are not supported")
    width = dims[0] or settings.get(f"{name}.embedding_length", 0) // settings.get(
        f"{name}.attention.head_count", 1
    )
    if (turned := settings.get(f"{name}.rope.dimension_count", width)) != width:
        raise UserError(f"{path}: rotary embeddings of {turned} of {width} numbers are not supported")
    pattern = f"{name}.attention.sliding_window_pattern"
    if settings.get(pattern, architecture.pattern) != architecture.pattern:
        raise UserError(f"{path}: {pattern} = {settings[pattern]} is not supported")


def _window(values: dict[str, Any], header: Header, architecture: Architecture) -> dict[str, Any]:
    """What a config.json says of a window in every layer, where the architecture has no rule of its own."""
    window = _setting(header, "attention.sliding_window", 0)
    if "attention.sliding_window" in architecture.keys:
        return {} if window else {"sliding_window": None}
    if not window or window >= values["max_position_embeddings"]:
        return {}
    if architecture.windowed is None:
        raise UserError(
            f"{header.path}: a sliding window of {window} is not supported for {architecture.name}"
        )
    return {
        "model_type": architecture.windowed,
        "sliding_window": window,
        "use_sliding_window": True,
        "max_window_layers": 0,
    }


def _can_decode(kind: GGMLQuantizationType) -> bool:
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
    except (NotImplementedError, KeyError):
        return False
    return True
