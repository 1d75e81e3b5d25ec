"""The header of a GGUF file: its settings, and where each tensor lies.

The `gguf` package's own reader keeps a memory-mapped array for every token of the vocabulary, which takes
seconds; this reads the same in a tenth of a second. The package says how large a block is and decodes it.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import os
import re
import struct
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from tutelage.errors import UserError

# Value types of fixed size, by their number in the file; 8 is a string, 9 an array.
_FIXED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 8  # ggml knows 4
_MUCH = 1 << 20  # bytes; the file's size is asked for only then


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of the file."""

    shape: tuple[int, ...]  # as torch writes it, slowest dimension first
    kind: GGMLQuantizationType
    offset: int  # in the file
    path: Path  # of the file, one of several where a model is split

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; blocks do not cross rows."""
        elements, size = GGML_QUANT_SIZES[self.kind]
        return self.shape[-1] // elements * size

    @property
    def end(self) -> int:
        """Where in the file the tensor ends."""
        return self.offset + prod(self.shape[:-1]) * self.row_bytes


@dataclass(frozen=True, slots=True)
class Header:
    """Everything in a GGUF file but the weights."""

    path: Path
    settings: dict[str, Any]
    tensors: dict[str, Stored]

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of a tensor as float32 (a vector's elements, where it has no rows)."""
        stored = self.tensors[name]
        vector = len(stored.shape) == 1
        first, last = (0, 1) if vector else (start, stop)
        with stored.path.open("rb") as file:
            file.seek(stored.offset + first * stored.row_bytes)
            raw = np.fromfile(file, dtype=np.uint8, count=(last - first) * stored.row_bytes)
        with np.errstate(all="ignore"):  # that a scale is infinite is told by who looks at the numbers
            rows = dequantize(raw.reshape(last - first, stored.row_bytes), stored.kind)
        return rows[0, start:stop] if vector else rows

    @property
    def problems(self) -> list[str]:
        """Which tensors lie past the end of their file, in words."""
        sizes = {path: path.stat().st_size for path in {stored.path for stored in self.tensors.values()}}
        cut = [name for name, stored in self.tensors.items() if stored.end > sizes[stored.path]]
        if not cut:
            return []
        of_parts = f" {self.tensors[cut[0]].path.name}" if len(sizes) > 1 else ""
        return [f"the file{of_parts} is truncated: {len(cut)} tensors, first {cut[0]}, lie past its end"]


def read_header(path: Path) -> Header:
    """The header of the file at `path`, with the tensors of all its parts where it is the first of several.

    llama.cpp's gguf-split names them NAME-00001-of-00003.gguf; the settings of the model are in the first.
    """
    header = _read_file(path)
    count = header.settings.get("split.count", 1)
    if count <= 1:
        return header
    match = _PART.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        raise UserError(
            f"{path} is one of {count} parts, which are found by their names: "
            f"NAME-00001-of-{count:05d}.gguf and so on; give them these names again"
        )
    names = [f"{match[1]}-{part:05d}-of-{count:05d}.gguf" for part in range(1, count + 1)]
    if path.name != names[0]:
        raise UserError(f"{path} is part {int(match[2])} of {count}; give the first, {names[0]}")
    if missing := [name for name in names if not (path.parent / name).exists()]:
        raise UserError(f"{path} is one of {count} parts, and beside it lies no {', '.join(missing)}")
    parts = [_read_file(path.parent / name) for name in names[1:]]
    tensors = header.tensors | {name: stored for part in parts for name, stored in part.tensors.items()}
    wanted = header.settings.get("split.tensors.count", len(tensors))
    if len(tensors) != wanted:
        raise UserError(f"{path}: its {count} parts hold {len(tensors)} tensors, {wanted} are wanted")
    return Header(path, header.settings, tensors)


_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def _read_file(path: Path) -> Header:
    with path.open("rb") as file:
        try:
            return _read(file, path)
        except (struct.error, UnicodeDecodeError, KeyError, ValueError, OverflowError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} is truncated or not a GGUF file ({error})") from error
        except RecursionError as error:
            raise UserError(f"{path} has arrays of arrays, nested too deep") from error


def _read(file: BinaryIO, path: Path) -> Header:
    if file.read(4) != b"GGUF":
        raise UserError(f"{path} is not a GGUF file: it does not begin with GGUF")
    (version,) = _fixed(file, "I")
    if version not in (2, 3):
        raise UserError(f"{path} is GGUF version {version}; supported are 2 and 3 (little-endian)")
    n_tensors, n_settings = _fixed(file, "QQ")
    settings = {_string(file): _value(file, *_fixed(file, "I")) for _ in range(n_settings)}
    entries = [_entry(file) for _ in range(n_tensors)]
    alignment = settings.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1:
        raise UserError(f"{path}: general.alignment is {alignment!r}, wanted a whole number from 1")
    data = -(-file.tell() // alignment) * alignment
    tensors = {
        name: Stored(shape, GGMLQuantizationType(kind), data + offset, path)
        for name, shape, kind, offset in entries
    }
    return Header(path, settings, tensors)


def _entry(file: BinaryIO) -> tuple[str, tuple[int, ...], int, int]:
    name = _string(file)
    (n_dimensions,) = _fixed(file, "I")
    if not 1 <= n_dimensions <= _MOST_DIMENSIONS:
        raise ValueError(f"{name[:80]} has {n_dimensions:,} dimensions")
    dimensions = _fixed(file, "Q" * n_dimensions)
    kind, offset = _fixed(file, "IQ")
    return name, dimensions[::-1], kind, offset


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        return _fixed(file, _FIXED[kind])[0]
    item, count = _fixed(file, "IQ")
    if item in _FIXED:
        return list(_fixed(file, f"{count}{_FIXED[item]}"))
    return [_value(file, item) for _ in range(count)]


def _string(file: BinaryIO) -> str:
    (length,) = _fixed(file, "Q")
    return _bytes(file, length).decode("utf-8")


def _fixed(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    layout = f"<{layout}"
    return struct.unpack(layout, _bytes(file, struct.calcsize(layout)))


def _bytes(file: BinaryIO, size: int) -> bytes:
    """So many bytes; of a file that says more than it has, none: memory is taken before they are read."""
    if size > _MUCH and size > os.fstat(file.fileno()).st_size - file.tell():
        raise ValueError(f"{size:,} bytes are announced, and it ends before")
    return file.read(size)


@lru_cache(maxsize=2)
def _header_as_of(path: Path, changed: int) -> Header:
    return read_header(path)


def header_of(path: Path) -> Header:
    """The header, read once for config, weights and tokenizer."""
    return _header_as_of(path, path.stat().st_mtime_ns)
