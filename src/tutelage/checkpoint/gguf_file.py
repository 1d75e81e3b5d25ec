"""The header of a GGUF file: its settings, and where each tensor lies.

The `gguf` package's own reader keeps a memory-mapped array for every token of the vocabulary, which takes
seconds; this reads the same in a tenth of a second. The package says how large a block is and decodes it.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import os
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
        with self.path.open("rb") as file:
            file.seek(stored.offset + first * stored.row_bytes)
            raw = np.fromfile(file, dtype=np.uint8, count=(last - first) * stored.row_bytes)
        rows = dequantize(raw.reshape(last - first, stored.row_bytes), stored.kind)
        return rows[0, start:stop] if vector else rows


def read_header(path: Path) -> Header:
    """The header of the file at `path`."""
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
        name: Stored(shape, GGMLQuantizationType(kind), data + offset)
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
