"""Safetensors files written piece by piece, the same bytes that the safetensors library would write.

Format: https://github.com/huggingface/safetensors#format (a length, a header in JSON, the tensors' bytes).
"""

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import torch

from tutelage.checkpoint.shards import INDEX, SINGLE
from tutelage.checkpoint.streamed import Streamed

_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_ALIGNMENT = 8  # of where the tensors begin


def write_shards(tensors: Sequence[Streamed], directory: Path, limit: int) -> None:
    """One file, or several of at most `limit` bytes (or one tensor) and the index that says what is where."""
    shards = _cut(tensors, limit)
    count = len(shards)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    for name, shard in zip([SINGLE] if count == 1 else names, shards, strict=True):
        write_safetensors(shard, directory / name)
    if count == 1:
        return
    placed = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": sum(tensor.n_bytes for tensor in tensors)}, "weight_map": placed}
    (directory / INDEX).write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_safetensors(tensors: Sequence[Streamed], path: Path) -> None:
    """One file, in the library's order: the widest numbers first, then by name."""
    ordered = sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for tensor in ordered:
        end = place + tensor.n_bytes
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [place, end],
        }
        place = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in ordered:
            for part in tensor.parts():
                file.write(part)


def _cut(tensors: Sequence[Streamed], limit: int) -> list[list[Streamed]]:
    """In order, cut where a shard would exceed `limit` bytes."""
    shards: list[list[Streamed]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.n_bytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.n_bytes
    return shards
