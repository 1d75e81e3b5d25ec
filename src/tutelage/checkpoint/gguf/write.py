"""Models written as GGUF, for llama.cpp and the programs built on it, one piece of a tensor at a time."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from torch import Tensor

from tutelage.checkpoint.aside import room_for
from tutelage.checkpoint.gguf.file import Header, Stored
from tutelage.checkpoint.gguf.model import config_of
from tutelage.checkpoint.gguf.names import Architecture, architecture_for
from tutelage.checkpoint.gguf.rope import FACTORS, llama3_factors, rope_settings
from tutelage.checkpoint.gguf.vocabulary import vocabulary_settings
from tutelage.checkpoint.rotary import rows_as_pairs
from tutelage.checkpoint.source import Source, parameter_shapes, pieces
from tutelage.errors import UserError
from tutelage.model.config import ModelConfig
from tutelage.text.tokenizer import Tokenizer

Kind = GGMLQuantizationType
KINDS = {"fp32": Kind.F32, "fp16": Kind.F16, "bf16": Kind.BF16, "q8_0": Kind.Q8_0}
_FILE_TYPES = {
    Kind.F32: LlamaFileType.ALL_F32,
    Kind.F16: LlamaFileType.MOSTLY_F16,
    Kind.BF16: LlamaFileType.MOSTLY_BF16,
    Kind.Q8_0: LlamaFileType.MOSTLY_Q8_0,
}
_FP16 = float(np.finfo(np.float16).max)
_LARGEST = {Kind.F16: _FP16, Kind.Q8_0: 127 * _FP16}  # an int8 times its block's scale, an fp16
_ALIGNMENT = 32  # bytes; a file that says nothing else has this


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One that will be written."""

    name: str
    source: str  # its name in the source; empty: it is computed
    shape: tuple[int, ...]
    kind: GGMLQuantizationType

    @property
    def n_bytes(self) -> int:
        """What it takes in the file."""
        return int(np.prod(gguf.quant_shape_to_byte_shape(self.shape, self.kind)))


def write_gguf(
    config: ModelConfig,
    source: Source,
    tokenizer: Tokenizer,
    path: Path,
    kind: GGMLQuantizationType,
    *,
    name: str,
) -> list[str]:
    """Write the model; what is returned are remarks about it, in words.

    It is written aside, then moved in: where the file is, it is whole. Peak memory is some tens of megabytes.
    """
    architecture = architecture_for(config.family)
    _refuse_what_it_cannot(config)
    tensors = list(_planned(config, architecture, kind))
    settings = {f"{architecture.name}.{key}": v for key, v in _model_settings(config, architecture).items()}
    _refuse_what_is_read_otherwise(config, architecture, settings, tensors, path)
    aside = path.with_name(f".{path.name}.partial")
    described = [_general(config, name, kind), settings, vocabulary_settings(tokenizer, config)]
    with room_for(sum(tensor.n_bytes for tensor in tensors), path.parent):
        try:
            _write_header(aside, architecture.name, described, tensors)
            with aside.open("ab") as file:
                _write_weights(file, tensors, config, source, architecture)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    return list(_remarks(config, architecture, tensors, kind))


def _refuse_what_it_cannot(config: ModelConfig) -> None:
    if config.head == "score":
        raise UserError("a model with a score head cannot be written as GGUF: llama.cpp's model writes text")
    if config.role_embeddings:
        raise UserError(
            "a model with role embeddings cannot be written as GGUF: llama.cpp does not know whose a token is"
        )


def _refuse_what_is_read_otherwise(
    config: ModelConfig,
    architecture: Architecture,
    settings: dict[str, Any],
    tensors: list[_Tensor],
    path: Path,
) -> None:
    """GGUF leaves some things to the architecture: refuse a model that has them otherwise."""
    stored = {t.name: Stored(t.shape, t.kind, 0, path) for t in tensors if t.name != FACTORS}
    header = Header(path, {"general.architecture": architecture.name, **settings}, stored)
    windows = config.windows
    if windows and all(window and window >= config.max_positions for window in windows):
        windows = None
    scaling = None if _factors(config) is not None else config.rope_scaling
    wanted = replace(config, windows=windows, rope_scaling=scaling)
    found = {field.name: getattr(config_of(header), field.name) for field in fields(config)}
    ignored = ("family", "bos", "eos", "pad", "dtype", "role_embeddings_init")
    unlike = [name for name, value in found.items() if getattr(wanted, name) != value]
    unlike = [name for name in unlike if name not in ignored]
    if unlike:
        named = ", ".join(f"{name} = {getattr(wanted, name)!r} would be {found[name]!r}" for name in unlike)
        raise UserError(
            f"this model cannot be written as GGUF: of architecture {architecture.name} llama.cpp takes some "
            f"settings for granted, and {named}"
        )


def _factors(config: ModelConfig) -> Tensor | None:
    """What rotary frequencies are divided by, where a tensor says it."""
    if not config.rope_scaling or config.rope_scaling["rope_type"] != "llama3":
        return None
    return llama3_factors(config.head_dim, config.rope_theta, config.rope_scaling)


def _planned(
    config: ModelConfig, architecture: Architecture, kind: GGMLQuantizationType
) -> Iterator[_Tensor]:
    """The tensors in their order: vectors in float32, matrices in `kind` or, where its blocks do not fit,
    in float16."""
    if _factors(config) is not None:
        yield _Tensor(FACTORS, "", (config.head_dim // 2,), Kind.F32)
    for name, shape in parameter_shapes(config).items():
        own = kind if len(shape) > 1 else Kind.F32
        fits = list(shape)[-1] % gguf.GGML_QUANT_SIZES[own][0] == 0
        yield _Tensor(architecture.gguf_name(name), name, shape, own if fits else Kind.F16)


def _general(config: ModelConfig, name: str, kind: GGMLQuantizationType) -> dict[str, Any]:
    size = gguf.size_label(config.n_parameters, 0, 0, 0)
    return {
        "general.type": "model",
        "general.name": name,
        "general.size_label": size,
        "general.file_type": int(_FILE_TYPES[kind]),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
    }


def _model_settings(config: ModelConfig, architecture: Architecture) -> dict[str, Any]:
    values = config.to_hf()
    settings = {ours: values.get(theirs) for ours, theirs in architecture.keys.items()}
    window = next((window for window in config.windows or () if window), None)
    return {
        **{key: value for key, value in settings.items() if value is not None},
        **rope_settings(config.rope_theta, values["rope_scaling"]),
        "vocab_size": config.vocab_size,
        "rope.dimension_count": config.head_dim,
        "attention.value_length": config.head_dim,
        **({"attention.sliding_window": window} if window else {}),
    }


def _write_header(
    path: Path, architecture: str, described: list[dict[str, Any]], tensors: list[_Tensor]
) -> None:
    writer = GGUFWriter(path, architecture)
    for settings in described:
        _add(writer, settings)
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.n_bytes, tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _add(writer: GGUFWriter, settings: dict[str, Any]) -> None:
    for key, value in settings.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value:  # the writer knows no type of nothing
            writer.add_array(key, value)


def _write_weights(
    file: BinaryIO, tensors: list[_Tensor], config: ModelConfig, source: Source, architecture: Architecture
) -> None:
    """The data of the tensors, each from a multiple of the alignment on."""
    _pad(file)
    for tensor in tensors:
        if not tensor.source:
            factors = _factors(config)
            assert factors is not None
            file.write(factors.numpy().tobytes())
        for start, stop in pieces(tensor.shape) if tensor.source else ():
            rows = _rows(source, tensor.source, start, stop, config, architecture)
            file.write(_encoded(rows, tensor).tobytes())
        _pad(file)


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % _ALIGNMENT))


def _rows(
    source: Source, name: str, start: int, stop: int, config: ModelConfig, architecture: Architecture
) -> Tensor:
    if not architecture.is_paired(name):
        rows, shift = source.rows(name, start, stop), architecture.shift(name)
        return rows.float() + shift if shift else rows
    return rows_as_pairs(lambda first, last: source.rows(name, first, last), start, stop, config.head_dim)


def _encoded(rows: Tensor, tensor: _Tensor) -> np.ndarray:
    values = np.ascontiguousarray(rows.to(torch.float32).numpy())
    largest = _LARGEST.get(tensor.kind)
    if largest is not None and (found := np.abs(values).max(initial=0)) > largest:
        name = {kind: name for name, kind in KINDS.items()}[tensor.kind]
        raise UserError(
            f"{tensor.source} has values of {found:.3g}, and {name} ends at {largest:.6g}; "
            "give --precision bf16 or fp32"
        )
    return gguf.quantize(values, tensor.kind)


def _remarks(
    config: ModelConfig, architecture: Architecture, tensors: list[_Tensor], kind: GGMLQuantizationType
) -> Iterator[str]:
    """What the user should know of the file."""
    other = [tensor.name for tensor in tensors if len(tensor.shape) > 1 and tensor.kind != kind]
    if other:
        yield (
            f"{len(other)} matrices, first {other[0]}, are in {Kind.F16.name}: their rows do not divide into "
            f"blocks of {gguf.GGML_QUANT_SIZES[kind][0]}"
        )
    window = next((window for window in config.windows or () if window), None)
    of_its_own = "attention.sliding_window" in architecture.keys and architecture.name != "phi3"
    if window and window < config.max_positions and not of_its_own:
        yield (
            f"llama.cpp has no sliding window in this architecture: from {window} tokens on its answers "
            "differ from this model's"
        )
