"""What torch.save writes, opened without running anything and without reading the numbers: a tensor is a
place in the file until its rows are asked for.

The file is a zip of uncompressed records: data.pkl, a pickle of everything but numbers, and data/0, data/1,
... Of the pickle only what tensors are made of is called. An object of any other class (llama2.c's ModelArgs)
becomes an inert record of its attributes. Files from before torch 1.6 are no zips: torch reads them, as
weights_only, and they are held in memory.
"""

import collections
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.errors import UserError

_STORAGES = {
    f"{name}Storage": dtype
    for name, dtype in {
        "Float": torch.float32,
        "BFloat16": torch.bfloat16,
        "Half": torch.float16,
        "Double": torch.float64,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
        "ComplexFloat": torch.complex64,
    }.items()
}
_HEADER = 30  # bytes of a record's header in a zip, before its name and its extra field
_LONGEST = 2**40  # elements of an axis
_LARGEST_PICKLE = 2**28  # bytes; of real models it is a few hundred thousand


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file of torch.save."""

    path: Path
    place: int  # in the file, of its storage
    dtype: torch.dtype
    offset: int  # in the storage, in elements
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start..stop, read from the file."""
        if self._contiguous:
            width = prod(self.shape[1:])
            flat = self._read(self.offset + start * width, (stop - start) * width)
            return flat.view(stop - start, *self.shape[1:])
        span = 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return self._read(self.offset, span).as_strided(self.shape, self.stride)[start:stop]

    def whole(self) -> Tensor:
        """All of it."""
        return self.rows(0, self.shape[0]) if self.shape else self._read(self.offset, 1).view(())

    @cached_property
    def _contiguous(self) -> bool:
        steps = [prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        return all(size == 1 or a == b for size, a, b in zip(self.shape, self.stride, steps, strict=True))

    def _read(self, first: int, count: int) -> Tensor:
        if not count:
            return torch.empty(0, dtype=self.dtype)
        size = self.dtype.itemsize
        raw = np.fromfile(self.path, np.uint8, count * size, offset=self.place + first * size)
        return torch.from_numpy(raw).view(self.dtype)


@dataclass(frozen=True)
class HeldTensor:
    """A tensor of an older file, in memory."""

    tensor: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Of its numbers."""
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its axes."""
        return tuple(self.tensor.shape)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start..stop."""
        return self.tensor[start:stop]

    def whole(self) -> Tensor:
        """All of it."""
        return self.tensor


class Inert:
    """Stands for an object of a class that is not loaded; whatever the pickle gave it are its attributes."""

    def __init__(self, *arguments: Any) -> None:
        pass


def read_torch(path: Path) -> Any:
    """What the file holds, every tensor a StoredTensor or a HeldTensor."""
    try:
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        return _held(torch.load(path, map_location="cpu", weights_only=True))
    except UserError:
        raise
    except Exception as error:  # of pickle, zip and torch, of many kinds
        raise UserError(f"{path} is damaged, or holds more than tensors, which is never loaded") from error


def read_state(path: Path) -> dict[str, StoredTensor | HeldTensor]:
    """The tensors by name that the file holds, and nothing else."""
    found = read_torch(path)
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {_kind(found)}, not tensors by name")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, StoredTensor | HeldTensor):
            raise UserError(f"{path} holds a {_kind(value)} as {name!r}, not tensors by name")
    return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The same in memory, of files that are small."""
    return {name: tensor.whole() for name, tensor in read_state(path).items()}


def _kind(value: object) -> str:
    return "tensor" if isinstance(value, StoredTensor | HeldTensor) else type(value).__name__


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: record for record in archive.infolist()}
        top = next(name for name in records if name.endswith("data.pkl")).removesuffix("data.pkl")
        if f"{top}byteorder" in records and archive.read(f"{top}byteorder") != b"little":
            raise UserError(f"{path} was written on a machine of another byte order, which is not supported")
        if any(record.compress_type != zipfile.ZIP_STORED for record in records.values()):
            raise UserError(f"{path} is compressed, as torch.save never writes it")
        if records[f"{top}data.pkl"].file_size > _LARGEST_PICKLE:
            raise UserError(f"{path} holds a pickle of more than {_LARGEST_PICKLE >> 20} MiB beside numbers")
        with archive.open(f"{top}data.pkl") as file:
            return _Unpickler(
                file, path, {n.removeprefix(f"{top}data/"): r for n, r in records.items()}
            ).load()


@dataclass(frozen=True)
class _Storage:
    place: int
    dtype: torch.dtype
    count: int


class _Unpickler(pickle._Unpickler):
    """The unpickler that is written in Python, whose instructions can be narrowed; it keeps what it remembers
    by number in a dict, of which the other's list is as long as the largest number that a file names."""

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    dispatch: Any = {
        code: step
        for code, step in pickle._Unpickler.dispatch.items()
        if bytes([code]) not in (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET)
    }

    def __init__(self, file: Any, path: Path, records: dict[str, zipfile.ZipInfo]) -> None:
        super().__init__(file, encoding="utf-8")
        self._path, self._records = path, records

    def find_class(self, module: str, name: str) -> Any:
        """Only what makes tensors, here without their numbers; all other classes are inert."""
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _parameter
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        return Inert

    def persistent_load(self, pid: Any) -> _Storage:
        """Where in the file the numbers of a storage begin."""
        _, dtype, key, _, count = pid
        if not isinstance(dtype, torch.dtype) or type(count) is not int:
            raise pickle.UnpicklingError("no storage of numbers")
        record = self._records[key]
        if record.file_size < count * dtype.itemsize:
            raise UserError(f"{self._path} is damaged: a tensor is larger than the numbers there are for it")
        with self._path.open("rb") as file:
            file.seek(record.header_offset)
            header = file.read(_HEADER)
            named, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
            name = file.read(named)
        place = record.header_offset + _HEADER + named + extra
        ends = place + record.file_size  # another record or the list of records comes after it
        if name != record.orig_filename.encode() or ends > self._path.stat().st_size:
            raise UserError(f"{self._path} is damaged: the header of {key} is not that of its record")
        return _Storage(place, dtype, count)

    def _tensor(self, storage: _Storage, offset: int, shape: Any, stride: Any, *_: Any) -> StoredTensor:
        shape, stride = tuple(shape), tuple(stride)
        if type(storage) is not _Storage or any(type(size) is not int for size in (offset, *shape, *stride)):
            raise pickle.UnpicklingError("no tensor")
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        # An empty one may have other axes of any length; none is longer for being counted twice.
        outside = (
            last >= storage.count or prod(shape) > storage.count if prod(shape) else max(shape) > _LONGEST
        )
        if outside or min((offset, *shape, *stride)) < 0:
            raise UserError(f"{self._path} is damaged: a tensor reaches past the numbers there are for it")
        return StoredTensor(self._path, storage.place, storage.dtype, offset, shape, stride)

    def load_build(self) -> None:
        """Attributes of an inert record; those of other objects (a dict's _metadata) are not needed."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Inert) and isinstance(state, dict):
            target.__dict__.update(state)
        elif not isinstance(target, Inert | collections.OrderedDict):
            raise pickle.UnpicklingError("attributes of what has none")

    def load_setitem(self) -> None:
        """One key of a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        self._put([key, value])

    def load_setitems(self) -> None:
        """Keys of a dict, one after the other with their values."""
        self._put(self.pop_mark())

    def load_dict(self) -> None:
        """A dict of keys and values."""
        values = self.pop_mark()
        self.append({})
        self._put(values)

    def _put(self, values: list[Any]) -> None:
        if any(type(key) not in (str, int) for key in values[::2]):  # a tuple of tuples is hashed for years
            raise pickle.UnpicklingError("a key that is no word and no number")
        self.stack[-1].update(zip(values[::2], values[1::2], strict=True))

    dispatch |= {
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
    }


def _parameter(tensor: StoredTensor, *_: Any) -> StoredTensor:
    return tensor


def _held(found: Any) -> Any:
    if isinstance(found, Tensor):
        return HeldTensor(found)
    if isinstance(found, dict):
        return {key: _held(value) for key, value in found.items()}
    return found
