"""Text into pretokenized shards, in parallel, in bounded memory, and to be gone on with after a kill.

Files are cut into parts of a few megabytes at line ends; a part becomes a shard of each split. A shard is
written aside and renamed, its .json last, so one whose .json fits the part is not made again. The same files
and settings give the same bytes, however often it was interrupted and in however many processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.data.aside import SHARD_FILES, refuse_within, remove_files
from tutelage.data.encode import Encoder
from tutelage.data.faults import FAULTS_NAMED, Faults
from tutelage.data.processes import in_processes
from tutelage.data.read import rows_between
from tutelage.data.shards import FORMAT, token_dtype
from tutelage.data.sources import Source
from tutelage.disk import write
from tutelage.errors import UserError

if TYPE_CHECKING:
    from tutelage.text.tokenizer import Tokenizer

MIB = 1 << 20
_PARTS = 64  # of all text, if that makes them neither tiny nor huge
_BATCH = 256  # documents encoded at a time
SPLITS = ("train", "val")


@dataclass(frozen=True, slots=True)
class Part:
    """The lines of a file that begin at bytes `start` up to `stop`."""

    number: int
    source: Source
    start: int
    stop: int
    key: str  # of the file and of all settings


@dataclass(slots=True)
class Work:
    """What every process is given."""

    encoder: Encoder
    directory: Path
    val_share: float
    dtype: str


@dataclass(slots=True)
class Done:
    """What became of a part; its .json files say the same."""

    part: int
    bytes_read: int
    empty: int = 0
    fault_count: int = 0
    faults: list[tuple[int, str]] = field(default_factory=list)  # offset of the line, what is wrong with it


def build(
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    directory: Path,
    *,
    tokenizer_name: str,
    val_percent: float = 0.0,
    skip_bad_rows: bool = False,
    overwrite: bool = False,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, Any]]:
    """Write DIR/train and, of `val_percent` of the documents, DIR/val; returns what each meta.json says.

    `progress` is told the bytes read and the bytes there are. Raises UserError for bad rows, unless skipped,
    and for a directory with shards of other sources or settings, unless they are to be overwritten.
    """
    for split in SPLITS:
        refuse_within(directory / split, [source.path for source in sources])
    encoder = Encoder(None, tokenizer)
    work = Work(encoder, directory, val_percent / 100, token_dtype(tokenizer.size))
    parts = _parts(sources, [tokenizer.fingerprint, encoder.frame, val_percent, work.dtype])
    splits = SPLITS if val_percent else SPLITS[:1]
    origin = {"sources": [str(source) for source in sources], "val_percent": val_percent}
    _claim(directory, {**origin, "tokenizer_fingerprint": tokenizer.fingerprint}, overwrite=overwrite)
    for split in splits:
        (directory / split).mkdir(parents=True, exist_ok=True)
        (directory / split / "meta.json").unlink(missing_ok=True)  # from here on it would be wrong
    total = sum(part.stop - part.start for part in parts)
    kept = {part.number: done for part in parts if (done := _finished(directory, splits, part)) is not None}
    read = sum(done.bytes_read for done in kept.values())
    progress(read, total)
    left = [(part,) for part in parts if part.number not in kept]
    made = in_processes(_build_part, work, left, workers=min(workers, max(len(left), 1)))
    faults = Faults()
    for part in parts:
        done = kept[part.number] if part.number in kept else next(made)
        read += 0 if part.number in kept else done.bytes_read
        progress(read, total)
        _name_faults(faults, part, done)
        if faults.count and not skip_bad_rows:
            made.close()  # type: ignore[attr-defined]
            faults.refuse()
    facts = {
        "tokenizer": tokenizer_name,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.size,
        "dtype": work.dtype,
        "sources": [str(source) for source in sources],
        "bad_rows_skipped": faults.count,
    }
    return {split: _seal(directory / split, len(parts), facts) for split in splits}


def _claim(directory: Path, origin: dict[str, Any], *, overwrite: bool) -> None:
    """Note in DIR/build.json what is built here; refuse a directory of another build."""
    path = directory / "build.json"
    if overwrite:
        for split in SPLITS:
            remove_files(directory / split, SHARD_FILES)
    elif any(place for split in SPLITS for place in (directory / split).glob("shard-[0-9]*")):
        there = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        other = [name for name, value in origin.items() if there.get(name) != value]
        if other:
            raise UserError(
                f"{directory} holds shards of another build ({', '.join(other)} differ); give --overwrite to "
                "replace them, or another --output_dir: each source that is to be mixed has its own"
            )
    directory.mkdir(parents=True, exist_ok=True)
    _write(path, json.dumps(origin, indent=1).encode())


def _parts(sources: Sequence[Source], settings: list[Any]) -> list[Part]:
    """All files, cut. How does not depend on the number of processes: shards could not be gone on with."""
    stats = [source.path.stat() for source in sources]
    size = min(max(sum(stat.st_size for stat in stats) // _PARTS, MIB), 64 * MIB)
    parts: list[Part] = []
    for source, stat in zip(sources, stats, strict=True):
        if source.kind != "text":
            raise UserError(
                f"{source.path} holds conversations; shards are made of text: a document a line, or objects "
                "with a text"
            )
        whole = source.unit == "file"
        for start in range(0, max(stat.st_size, 1), max(stat.st_size, 1) if whole else size):
            stop = stat.st_size if whole else min(start + size, stat.st_size)
            origin = [FORMAT, str(source.path.resolve()), source.unit, source.key, source.fields]
            origin += [stat.st_size, stat.st_mtime_ns]
            key = hashlib.sha256(json.dumps([*origin, start, stop, *settings]).encode()).hexdigest()[:32]
            parts.append(Part(len(parts), source, start, stop, key))
    return parts


def _build_part(work: Work, part: Part) -> Done:
    """Encode a part and write its shards."""
    done = Done(part.number, part.stop - part.start)
    splits = SPLITS if work.val_share else SPLITS[:1]
    tokens: dict[str, list[np.ndarray]] = {split: [] for split in splits}
    text_bytes = dict.fromkeys(splits, 0)
    before, after = work.encoder.frame
    for texts in _batches(_texts(part, done)):
        for text, ids in zip(texts, work.encoder.tokenizer.encode_batch(texts), strict=True):
            if not ids:  # nothing that this tokenizer has a token for
                done.empty += 1
                continue
            raw = text.encode()
            # By content: a text that occurs twice must not stand on both sides.
            split = "val" if zlib.crc32(raw) < work.val_share * 2**32 else "train"
            tokens[split].append(np.array([*before, *ids, *after], work.dtype))
            text_bytes[split] += len(raw)
    for split in reversed(splits):  # train last: its .json says that the part is done
        _write_shard(work, part, done, split, tokens[split], text_bytes[split])
    return done


def _texts(part: Part, done: Done) -> Iterator[str]:
    """The documents of a part; bad rows and empty ones are counted and left out."""
    for offset, text, fault in rows_between(part.source, part.start, part.stop):
        if fault is not None:
            done.fault_count += 1
            if len(done.faults) < FAULTS_NAMED:
                done.faults.append((offset, fault))
        elif text.strip():
            yield text
        else:
            done.empty += 1


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if len(batch) == _BATCH or size > MIB:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write_shard(
    work: Work, part: Part, done: Done, split: str, tokens: list[np.ndarray], text_bytes: int
) -> None:
    place = work.directory / split / f"shard-{part.number:05d}"
    lengths = [len(document) for document in tokens]
    joined = np.concatenate(tokens) if tokens else np.zeros(0, work.dtype)
    contents = {"tokens": joined.tobytes(), "offsets": np.cumsum([0, *lengths], dtype="<i8").tobytes()}
    sidecar = {
        "name": place.name,
        "tokens": len(joined),
        "token_bytes": joined.nbytes,
        "documents": len(lengths),
        "text_bytes": text_bytes,
        "empty": done.empty,
        "checksums": {name: zlib.crc32(content) for name, content in contents.items()},
        "faults": [done.fault_count, done.faults],
        "key": part.key,
    }
    place.with_suffix(".json").unlink(missing_ok=True)  # it must never stand beside another part's tokens
    for name, content in contents.items():
        _write(place.with_name(f"{place.name}.{name}.bin"), content)
    _write(place.with_suffix(".json"), json.dumps(sidecar).encode())


def _write(path: Path, content: bytes) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(aside, content)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _finished(directory: Path, splits: Sequence[str], part: Part) -> Done | None:
    """What became of a part in an earlier run; None if that run did not get to its end."""
    paths = [directory / split / f"shard-{part.number:05d}.json" for split in splits]
    try:
        sidecars = [json.loads(path.read_text()) for path in paths]
        for path, sidecar in zip(paths, sidecars, strict=True):
            if sidecar["key"] != part.key or not _whole(path, sidecar):
                return None
        count, named = sidecars[0]["faults"]  # each split's file has them
        faults = [(offset, reason) for offset, reason in named]
        return Done(part.number, part.stop - part.start, sidecars[0]["empty"], count, faults)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _whole(path: Path, sidecar: dict[str, Any]) -> bool:
    """Whether the two files that a shard's .json stands for have their sizes."""
    sizes = {"tokens": sidecar["token_bytes"], "offsets": 8 * (sidecar["documents"] + 1)}
    return all(
        path.with_name(f"{path.stem}.{name}.bin").stat().st_size == size for name, size in sizes.items()
    )


def _name_faults(faults: Faults, part: Part, done: Done) -> None:
    """Add a part's faults, their places as line numbers, which only now are worth counting."""
    for offset, reason in done.faults[: FAULTS_NAMED - len(faults.named)]:
        with part.source.path.open("rb") as file:
            lines, left = 1, offset
            while left and (block := file.read(min(left, MIB))):
                lines, left = lines + block.count(b"\n"), left - len(block)
        faults.named.append(f"{part.source.place(lines)}: {reason}")
    faults.count += done.fault_count


def _seal(directory: Path, count: int, facts: dict[str, Any]) -> dict[str, Any]:
    """Write meta.json over `count` shards, and remove what an earlier build with other settings left."""
    sidecars = [json.loads((directory / f"shard-{n:05d}.json").read_text()) for n in range(count)]
    known = {f"shard-{number:05d}" for number in range(count)}
    for path in directory.iterdir():
        if SHARD_FILES.fullmatch(path.name) and path.name.split(".")[0] not in known:
            path.unlink()
    keep = ("name", "tokens", "documents", "checksums")
    shards = [{name: sidecar[name] for name in keep} for sidecar in sidecars if sidecar["documents"]]
    digest = hashlib.sha256(json.dumps([facts["tokenizer_fingerprint"], shards]).encode()).hexdigest()[:32]
    totals = {
        name: sum(each[name] for each in sidecars) for name in ("tokens", "documents", "text_bytes", "empty")
    }
    meta = {"format": FORMAT, "fingerprint": digest, **facts, **totals, "shards": shards}
    _write(directory / "meta.json", json.dumps(meta, indent=1).encode())
    if not shards:
        raise UserError(f"{directory}: there is no document in it; give more text, or another --val_percent")
    return meta
