"""llama2.c's models (https://github.com/karpathy/llama2.c), read: .bin files, and ckpt.pt of its train.py.

Version 0, which run.c reads, and version 1 hold float32; version 2, of runq.c, int8 in groups with a scale.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.checkpoint.meta.names import from_meta
from tutelage.checkpoint.rotary import is_turned, rows_as_halves
from tutelage.checkpoint.source import EMBEDDING, HEAD, parameter_shapes, same_rows
from tutelage.checkpoint.torch_file.read import Inert, read_torch
from tutelage.errors import UserError
from tutelage.model.config import ModelConfig

MAGIC, HEADER_BYTES = 0x616B3432, 256  # of versions 1 and 2
THETA, EPS, _BOS, _EOS = 10000.0, 1e-5, 1, 2  # what run.c takes for granted
_ATTENTION_NORM, _FFN_NORM = "input_layernorm", "post_attention_layernorm"
_ATTENTION = tuple(f"self_attn.{kind}_proj" for kind in "qkvo")
_FFN = ("mlp.gate_proj", "mlp.down_proj", "mlp.up_proj")  # w1, w2, w3
_NORM = "model.norm.weight"


def find_llama2c(path: Path) -> Path | None:
    """The .bin or .pt file that `path` is, or the model.bin or ckpt.pt of a directory with no other model."""
    if path.is_file():
        return path if path.suffix in (".bin", ".pt") else None
    others = ("config.json", "*.safetensors", "*.gguf")
    if any(True for pattern in others for _ in path.glob(pattern)):
        return None
    return next((path / name for name in ("model.bin", "ckpt.pt") if (path / name).is_file()), None)


class Llama2cSource:
    """The tensors of a llama2.c model under Hugging Face names and in its order of rows."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self.problems: list[str] = []
        self._model = _Checkpoint(path) if path.suffix == ".pt" else _Binary(path)
        self.config: ModelConfig = self._model.config
        self.shapes: dict[str, tuple[int, ...]] = self._model.shapes

    @property
    def dtype(self) -> torch.dtype:
        """float32, to which int8 is decoded, or what ckpt.pt stores."""
        return self._model.dtype

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start..stop of a tensor, in Hugging Face's order."""
        if is_turned(name):
            read = partial(self._model.rows, name)
            return rows_as_halves(read, start, stop, self.config.head_dim)
        return self._model.rows(name, start, stop)


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where a tensor's numbers begin, and in int8 how many share a scale; the scales follow the numbers."""

    offset: int
    shape: tuple[int, ...]
    group: int | None


class _Binary:
    """A .bin file of version 0, 1 or 2."""

    dtype = torch.float32

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            version, tied, group, start, numbers = _header(path)
            dim, ffn_dim, n_layers, n_heads, n_kv_heads, vocab_size, max_positions = numbers
            self.config = ModelConfig(
                vocab_size=vocab_size,
                dim=dim,
                n_layers=n_layers,
                n_heads=n_heads,
                n_kv_heads=n_kv_heads,
                head_dim=dim // n_heads,
                ffn_dim=ffn_dim,
                max_positions=max_positions,
                norm_eps=EPS,
                rope_theta=THETA,
                tied=tied,
                bos=_BOS,
                eos=(_EOS, _BOS),  # stories follow each other after BOS, at which run.c stops too
            )
            wanted = start + _size(version, group, self.config)
        except (struct.error, ArithmeticError, UserError) as error:
            raise UserError(f"{path} is not a .bin file of llama2.c ({error})") from error
        if (size := path.stat().st_size) != wanted:
            raise UserError(
                f"{path} has {size:,} bytes, and its header makes it {wanted:,}; "
                "it is truncated or not a .bin file of llama2.c"
            )
        shapes = parameter_shapes(self.config)
        self.stored: dict[str, _Stored] = {}
        for name in in_order(version, self.config):
            if name is None:  # rotary tables, which are computed anew
                start += 4 * max_positions * (dim // n_heads)
                continue
            in_groups = group if version == 2 and "norm" not in name else None
            self.stored[name] = _Stored(start, shapes[name], in_groups)
            count = prod(shapes[name])
            start += 4 * count if in_groups is None else count + 4 * (count // in_groups)
        assert start == wanted
        self.shapes = {name: stored.shape for name, stored in self.stored.items()}

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        stored = self.stored[name]
        width = prod(stored.shape[1:])
        first, count = start * width, (stop - start) * width
        shape = (stop - start, *stored.shape[1:])
        if stored.group is None:
            return torch.from_numpy(self._read(np.float32, stored.offset + 4 * first, count)).view(shape)
        whole = slice(first // stored.group, -(-(first + count) // stored.group))
        scales = self._read(
            np.float32, stored.offset + prod(stored.shape) + 4 * whole.start, whole.stop - whole.start
        )
        scales = scales.repeat(stored.group)[first - whole.start * stored.group :][:count]
        return torch.from_numpy(self._read(np.int8, stored.offset + first, count) * scales).view(shape)

    def _read(self, dtype: Any, offset: int, count: int) -> np.ndarray:
        return np.fromfile(self.path, dtype=np.dtype(dtype).newbyteorder("<"), count=count, offset=offset)


class _Checkpoint:
    """A ckpt.pt, as llama2.c's train.py writes it; nothing in it is ever run."""

    def __init__(self, path: Path) -> None:
        content = read_torch(path)
        state, args = (
            content.get(key) if isinstance(content, dict) else None for key in ("model", "model_args")
        )
        args = vars(args) if isinstance(args, Inert) else args
        if not isinstance(state, dict) or not isinstance(args, dict):
            raise UserError(f"{path} is not a ckpt.pt of llama2.c, with model and model_args")
        if any("parametrizations" in name for name in state):
            raise UserError(f"{path} holds LoRA weights apart from the model's; merge them into it first")
        self.tensors = {_here(name, path): value for name, value in state.items() if "freqs_" not in name}
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        for key in ("dim", "n_layers", "n_heads", "vocab_size", "max_seq_len"):
            if not isinstance(args.get(key), int) or args[key] < 1:
                raise UserError(
                    f"{path}: model_args has {key} = {args.get(key)!r}, wanted a whole number from 1"
                )
        n_heads = args["n_heads"]
        tied = HEAD not in self.shapes or same_rows(self, HEAD, EMBEDDING)
        if tied:
            self.shapes.pop(HEAD, None)
        self.config = ModelConfig(
            vocab_size=args["vocab_size"],
            dim=args["dim"],
            n_layers=args["n_layers"],
            n_heads=n_heads,
            n_kv_heads=args.get("n_kv_heads") or n_heads,
            head_dim=args["dim"] // n_heads,
            ffn_dim=self.shapes.get("model.layers.0.mlp.gate_proj.weight", (1,))[0],
            max_positions=args["max_seq_len"],
            norm_eps=args.get("norm_eps", EPS),
            rope_theta=THETA,
            tied=tied,
            bos=_BOS,
            eos=(_EOS, _BOS),
        )
        self.dtype = self.tensors[EMBEDDING].dtype if EMBEDDING in self.tensors else torch.float32

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        return self.tensors[name].rows(start, stop)


def _here(name: str, path: Path) -> str:
    ours = from_meta(name.removeprefix("_orig_mod."))
    if ours is None:
        raise UserError(f"{path} holds {name}, which is no part of a Llama")
    return ours


def _header(path: Path) -> tuple[int, bool, int, int, tuple[int, ...]]:
    """Version, whether the head is tied, numbers a scale, where weights begin, and the seven dimensions."""
    with path.open("rb") as file:
        raw = file.read(HEADER_BYTES)
    if struct.unpack("<I", raw[:4])[0] != MAGIC:
        numbers = struct.unpack("<7i", raw[:28])
        return 0, numbers[5] > 0, 1, 28, (*numbers[:5], abs(numbers[5]), numbers[6])
    version, *numbers = struct.unpack("<8i", raw[4:36])
    tied, group = struct.unpack("<Bi", raw[36:41])
    if version not in (1, 2):
        raise UserError(f"version {version}; supported are 0, 1 and 2")
    return version, bool(tied), group if version == 2 else 1, HEADER_BYTES, tuple(numbers)


def _size(version: int, group: int, config: ModelConfig) -> int:
    """Bytes after the header."""
    if version == 0:
        return 4 * (config.n_parameters + config.max_positions * config.head_dim)  # with the rotary tables
    norms = (2 * config.n_layers + 1) * config.dim
    if version == 1:
        return 4 * config.n_parameters
    matrices = config.n_parameters - norms
    return 4 * norms + matrices + 4 * (matrices // group)


def in_order(version: int, config: ModelConfig) -> Iterator[str | None]:
    """The tensors in the order of the file; None stands for the rotary tables."""

    def every(kind: str) -> list[str]:
        return [f"model.layers.{layer}.{kind}.weight" for layer in range(config.n_layers)]

    norms = (_ATTENTION_NORM, _FFN_NORM)
    if version == 0:
        yield EMBEDDING
        for kind in (_ATTENTION_NORM, *_ATTENTION, _FFN_NORM, *_FFN):
            yield from every(kind)
        yield from (_NORM, None)
    else:
        for kind in norms:
            yield from every(kind)
        yield from (_NORM, EMBEDDING)
        for kind in (*_ATTENTION, *_FFN):
            yield from every(kind)
    if not config.tied:
        yield HEAD
