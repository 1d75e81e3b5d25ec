"""Files that torch.load reads, as tensors only and memory-mapped if asked to, written piece by piece.

torch.save wants every tensor in memory. The file is a zip of uncompressed records
(https://docs.pytorch.org/docs/stable/notes/serialization.html): this writes the same ones, one at a time.
"""

import collections
import io
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch._utils import _rebuild_tensor_v2

from tutelage.checkpoint.streamed import Streamed

_ALIGNMENT = 64  # of where a tensor's numbers begin
_HEADER = 30  # bytes of a record's header, before its name and its extra field
_PADDING = b"FB"  # the kind of extra field that torch pads records with
_ZIP64 = 20  # bytes of the extra field with which a record may exceed 4 GB
_STORAGES = {
    torch.float32: torch.FloatStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.float16: torch.HalfStorage,
    torch.float64: torch.DoubleStorage,
}


def write_torch(tensors: Sequence[Streamed], path: Path, around: Mapping[str, Any] | None = None) -> None:
    """Write a file of torch.save: tensors by name, or with `around` a dict where they are under `model`."""
    state = collections.OrderedDict(
        (tensor.name, _Tensor(str(number), tensor)) for number, tensor in enumerate(tensors)
    )
    content = state if around is None else {"model": state, **around}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        _record(archive, "data.pkl", [_pickled(content)])
        _record(archive, "byteorder", [b"little"])
        for number, tensor in enumerate(tensors):
            _record(archive, f"data/{number}", tensor.parts())
        _record(archive, "version", [b"3\n"])


def _record(archive: zipfile.ZipFile, name: str, parts: Any) -> None:
    assert archive.fp is not None
    info = zipfile.ZipInfo(f"archive/{name}")
    begins = archive.fp.tell() + _HEADER + len(info.filename) + _ZIP64
    padding = -(begins + 4) % _ALIGNMENT
    info.extra = _PADDING + padding.to_bytes(2, "little") + b"Z" * padding
    with archive.open(info, "w", force_zip64=True) as record:
        for part in parts:
            record.write(part)


@dataclass(frozen=True)
class _Storage:
    key: str
    tensor: Streamed


@dataclass(frozen=True)
class _Tensor:
    """Pickled as a tensor is, its storage by name alone."""

    key: str
    tensor: Streamed

    def __reduce__(self) -> tuple[Any, ...]:
        shape = self.tensor.shape
        stride = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
        storage = _Storage(self.key, self.tensor)
        return _rebuild_tensor_v2, (storage, 0, shape, stride, False, collections.OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Storage):
            return None
        return "storage", _STORAGES[obj.tensor.dtype], obj.key, "cpu", prod(obj.tensor.shape)


def _pickled(content: Any) -> bytes:
    made = io.BytesIO()
    _Pickler(made, protocol=2).dump(content)
    return made.getvalue()
