"""llama2.c's models, written: .bin files of version 0 (run.c), 1 and 2 (int8, runq.c), and ckpt.pt.

Every one is written tensor after tensor, a few megabytes at a time.
"""

import math
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from tutelage.checkpoint.aside import Beside, written_aside
from tutelage.checkpoint.llama2c.model import EPS, HEADER_BYTES, MAGIC, THETA, in_order
from tutelage.checkpoint.meta.tensors import in_pairs, meta_tensors
from tutelage.checkpoint.refusing import fixed_otherwise, refuse_all, unlike_llama
from tutelage.checkpoint.source import Source, parameter_shapes
from tutelage.checkpoint.streamed import Streamed
from tutelage.checkpoint.torch_file.write import write_torch
from tutelage.model.config import ModelConfig
from tutelage.model.rope import frequencies

GROUP = 64  # numbers of int8 that share a scale, or fewer, which divide rows
_LARGEST = 127  # of int8, on both sides


def write_llama2c(
    source: Source, config: ModelConfig, path: Path, *, version: int = 0, beside: Beside | None = None
) -> None:
    """Write a .bin file of version 0, 1 or 2; UserError for a model that llama2.c's programs cannot run."""
    refuse_other_arithmetic(config)
    shapes = parameter_shapes(config)
    tensors = [
        None if name is None else Streamed(name, shapes[name], torch.float32, in_pairs(source, config, name))
        for name in in_order(version, config)
    ]
    size = sum(tensor.n_bytes for tensor in tensors if tensor)
    with (
        written_aside(path.parent, size, last=path.name, beside=beside) as aside,
        (aside / path.name).open("wb") as file,
    ):
        _write_header(file, config, version)
        for tensor in tensors:
            if tensor is None:
                _write_rotary_tables(file, config)
            elif version == 2 and len(tensor.shape) > 1:
                _write_in_groups(file, tensor, group_of(config))
            else:
                for part in tensor.parts():
                    file.write(part)


def write_checkpoint(
    source: Source,
    config: ModelConfig,
    directory: Path,
    *,
    dtype: torch.dtype,
    beside: Beside | None = None,
) -> None:
    """Write ckpt.pt, which llama2.c's train.py, sample.py and export.py read, its arguments plain numbers."""
    refuse_other_arithmetic(config)
    tensors = meta_tensors(source, config, dtype)
    arguments = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "vocab_size": config.vocab_size,
        "hidden_dim": config.ffn_dim,
        "multiple_of": math.gcd(config.ffn_dim, 256),
        "norm_eps": config.norm_eps,
        "max_seq_len": config.max_positions,
        "dropout": 0.0,
    }
    size = sum(tensor.n_bytes for tensor in tensors)
    with written_aside(directory, size, last="ckpt.pt", beside=beside) as aside:
        write_torch(tensors, aside / "ckpt.pt", {"model_args": arguments, "iter_num": 0})


def refuse_other_arithmetic(config: ModelConfig) -> None:
    """Refuse a model that llama2.c's program would run, but compute otherwise."""
    problems = fixed_otherwise(
        (
            ("rope_theta", config.rope_theta, THETA),
            ("rope_scaling", config.rope_scaling, None),
            ("rms_norm_eps", config.norm_eps, EPS),
            ("attention bias", config.qkv_bias, False),
            ("head_dim", config.head_dim, config.dim // config.n_heads),
        )
    )
    refuse_all("llama2.c's program", problems + unlike_llama(config))


def group_of(config: ModelConfig) -> int:
    """How many numbers share a scale: at most 64, so many that they divide every row."""
    return math.gcd(config.dim, config.ffn_dim, GROUP)


def in_groups(rows: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """(n, D) -> int8 (n · D / group, group) and their scales (n · D / group,), as llama2.c's export.py."""
    numbers = rows.float().reshape(-1, group)
    scales = numbers.abs().amax(dim=1) / _LARGEST
    return (numbers / scales[:, None]).round().nan_to_num().to(torch.int8), scales  # 0 / 0 of empty groups


def _write_header(file: BinaryIO, config: ModelConfig, version: int) -> None:
    numbers = (config.dim, config.ffn_dim, config.n_layers, config.n_heads, config.n_kv_heads)
    if version == 0:
        vocabulary = config.vocab_size if config.tied else -config.vocab_size  # the sign says if it is tied
        file.write(struct.pack("<7i", *numbers, vocabulary, config.max_positions))
        return
    header = struct.pack("<Ii7i", MAGIC, version, *numbers, config.vocab_size, config.max_positions)
    header += struct.pack("<B", config.tied)
    header += struct.pack("<i", group_of(config)) if version == 2 else b""
    file.write(header.ljust(HEADER_BYTES, b"\0"))


def _write_rotary_tables(file: BinaryIO, config: ModelConfig) -> None:
    angles = torch.outer(
        torch.arange(config.max_positions), frequencies(config.head_dim, THETA)
    )  # (T, C / 2)
    for table in (angles.cos(), angles.sin()):
        file.write(table.contiguous().numpy().astype("<f4").tobytes())


def _write_in_groups(file: BinaryIO, tensor: Streamed, group: int) -> None:
    """All the numbers, then all the scales, which are kept meanwhile: a sixteenth of the numbers' bytes."""
    scales: list[np.ndarray] = []
    for rows in tensor.pieces():
        numbers, found = in_groups(rows, group)
        file.write(numbers.numpy().tobytes())
        scales.append(found.numpy())
    file.write(np.concatenate(scales).astype("<f4").tobytes())
