"""Keep encoded rows on disk under a name made of all that determines them, so that they are encoded once.

A shard is a directory of plain arrays and a `meta.json` written last. It is made beside its place and renamed
into it, so what stands there is whole; one whose bytes do not have the recorded checksums is made anew.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tutelage.data.faults import Faults
from tutelage.disk import write
from tutelage.errors import UserError, no_room

if TYPE_CHECKING:
    from tutelage.data.encode import Chunk

FORMAT = 3
FILE_SHIFT = 44  # bits of a line's number; above them is which of its path's files it is in
DEFAULT_DIR = Path("~/.cache/tutelage")
ARRAYS = {"tokens": "<u4", "weights": "<f4", "roles": "u1"}  # a value a token
ARRAYS |= {"lines": "<i8", "lengths": "<i8", "ranks": "u1", "scores": "<f4"}  # a value a document


@dataclass(slots=True)
class Shard:
    """Encoded rows end to end, in memory or mapped from disk."""

    key: str  # of its content
    kind: str  # jsonl, text or ranked
    tokens: np.ndarray  # uint32
    weights: np.ndarray  # float32
    roles: np.ndarray  # uint8
    lines: np.ndarray  # int64, each row's line in its file; answers to one prompt share theirs
    offsets: np.ndarray  # int64: row i is tokens[offsets[i] : offsets[i + 1]]
    faults: Faults  # the rows that were skipped when it was made
    path: int | None = None  # which of the data set's paths it is of; None: the one of its own number
    ranks: np.ndarray | None = None  # uint8, the place of each answer among those to its prompt
    scores: np.ndarray | None = None  # float32, how good each answer is; NaN: not known


def content_key(path: Path, *options: object) -> str:
    """A name for what encoding this file's bytes with these options gives."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps([FORMAT, *options]).encode())
    return digest.hexdigest()[:32]


def open_shard(directory: Path, kind: str) -> Shard | None:
    """The shard at this place, or None if there is none or it is damaged."""
    try:
        meta = json.loads((directory / "meta.json").read_text())
        arrays = {name: _map(directory / f"{name}.bin", dtype) for name, dtype in ARRAYS.items()}
        if meta["checksums"] != {name: zlib.crc32(array.data) for name, array in arrays.items()}:
            return None
        faults = Faults(**meta["faults"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    offsets = np.concatenate([[0], np.cumsum(arrays.pop("lengths"), dtype=np.int64)])
    names = ("tokens", "weights", "roles", "lines")
    tokens, weights, roles, lines = (arrays[name] for name in names)
    ranks, scores = arrays["ranks"], arrays["scores"]
    return Shard(
        directory.name, kind, tokens, weights, roles, lines, offsets, faults, ranks=ranks, scores=scores
    )


def write_shard(directory: Path, chunks: Iterable[Chunk], faults: Faults, *, skip: bool) -> None:
    """Write what `chunks` yields. Rows the template refuses join `faults`, and end it unless `skip`."""
    aside = directory.with_name(f"{directory.name}.{os.getpid()}.partial")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        checksums = _write_arrays(aside, chunks, faults)
        if not skip:
            faults.refuse()
        write(aside / "meta.json", json.dumps({"checksums": checksums, "faults": asdict(faults)}).encode())
        _publish(aside, directory)
    except OSError as error:
        reason = no_room(error) or error.strerror
        raise UserError(
            f"cannot keep encoded data in {directory.parent}: {reason}; free it or pass another --cache_dir"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_arrays(aside: Path, chunks: Iterable[Chunk], faults: Faults) -> dict[str, int]:
    checksums = dict.fromkeys(ARRAYS, 0)
    files = {name: (aside / f"{name}.bin").open("wb") for name in ARRAYS}
    try:
        for chunk in chunks:
            faults.extend(chunk.faults)
            for name, dtype in ARRAYS.items():
                data = getattr(chunk, name).astype(dtype, copy=False).tobytes()
                checksums[name] = zlib.crc32(data, checksums[name])
                files[name].write(data)
    finally:
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
    return checksums


def _publish(aside: Path, directory: Path) -> None:
    """Rename into place. Another process may have been first with equal content; a damaged shard yields."""
    if directory.exists() and open_shard(directory, "") is None:
        damaged = aside.with_suffix(".damaged")
        directory.rename(damaged)
        shutil.rmtree(damaged)
    try:
        aside.rename(directory)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _map(path: Path, dtype: str) -> np.ndarray:
    if not path.stat().st_size:  # nothing to map
        return np.zeros(0, dtype)
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))  # a plain array: slicing a memmap is slow
