"""Rows of files that are no lines of JSON: parquet, CSV, JSON arrays, saved data sets, compressed ones.

They are read from the start on, in bounded memory, and for training written out once as JSON lines: those can
be read from any place. Line n of what is written is row n, so faults name rows; of CSV it is line n.
"""

from __future__ import annotations

import csv
import errno
import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

from tutelage.errors import UserError
from tutelage.text.messages import NO_TEXT

FORMAT = 2  # of what is written out
LONGEST_LINE = 64 << 20  # bytes; longer is a file of another kind, and would not fit any row
BUFFER = 1 << 17  # bytes read at a time; lines come five times as fast as from Python's own 8 KiB
COMPRESSED = (".gz", ".zst")
TABLES = ("parquet", "csv", "json")
_BATCH = 1000  # rows of parquet and of saved data sets held at a time
_BLOCK = 1 << 20
_SPOKEN = {"content", "value", "text"}  # keys of messages whose null is a fault and not an absence
_NESTED = ("messages", "conversations", "prompt", "completion", "chosen", "rejected", "answers", "history")
BAD_ROW = "\0"  # the key under which a row that cannot be read says why
_LEAN = (list, dict, bytes)
_CELLS = {"true": True, "false": False}
Row = tuple[int, Any]  # its number, from 1, and the record


def open_bytes(path: Path) -> BinaryIO:
    """The file's bytes; of a compressed one (.gz, .zst), what was compressed."""
    if path.name.lower().endswith(".gz"):
        return gzip.open(path)  # type: ignore[return-value]
    if path.name.lower().endswith(".zst"):
        import pyarrow as pa

        return io.BufferedReader(_Raw(pa.input_stream(str(path), compression="zstd")), _BLOCK)  # type: ignore
    return path.open("rb", buffering=BUFFER)


def table_rows(path: Path, form: str) -> Iterator[Row]:
    """The rows of a parquet, csv or json file in order; a file that cannot be read to its end is refused."""
    readers = {"parquet": _parquet, "csv": _csv, "json": _json}
    try:
        yield from readers[form](path)
    except UserError:  # a ValueError too
        raise
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x}; save it as UTF-8"
        ) from error
    except (OSError, EOFError, ValueError, ArithmeticError, zlib.error) as error:  # as pyarrow's are
        raise UserError(f"{path} cannot be read to its end: {error}") from error


def arrow_rows(data: Any, name: str) -> Iterator[Row]:
    """The rows of a data set of the `datasets` library; one that is damaged is refused by its name."""
    import pyarrow as pa

    plain = data.with_format("arrow")
    try:
        for at in range(0, len(data), _BATCH):
            batch = plain[at : at + _BATCH]
            batch.validate(full=True)  # a broken offset would be read from wherever it points
            for number, row in enumerate(batch.to_pylist(), start=at + 1):
                yield number, lean(row)
    except UserError:
        raise
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, pa.ArrowException) as error:
        raise UserError(f"{name} is damaged and cannot be read to its end: {error}") from error


def written_out(path: Path, form: str, *, cache_dir: Path, log: Callable[[str], None]) -> Path:
    """The rows of a file as lines that stand in `cache_dir`, written there unless they are."""
    stat = path.stat()
    origin = [FORMAT, str(path.resolve()), form, stat.st_size, stat.st_mtime_ns]
    key = hashlib.sha256(json.dumps(origin).encode()).hexdigest()[:16]
    place = cache_dir / "datasets" / f"{path.name.split('.')[0]}-{key}.{'jsonl' if form in TABLES else 'txt'}"

    def write(file: BinaryIO) -> None:
        if form in TABLES:
            write_rows(table_rows(path, form), file)
        else:
            file.writelines(_unpacked(path))

    return write_once(place, write, lambda: log(f"{path}: writing its rows to {place}"))


def _unpacked(path: Path) -> Iterator[bytes]:
    try:
        with open_bytes(path) as file:
            while block := file.read(_BLOCK):
                yield block
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} cannot be unpacked: {error}") from error


def write_once(place: Path, write: Callable[[BinaryIO], None], announce: Callable[[], None]) -> Path:
    """A file that `write` fills, unless it is there; it appears whole or not at all."""
    if place.exists():
        return place
    announce()
    aside = place.with_name(f"{place.name}.{os.getpid()}.partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            write(file)
        aside.replace(place)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise UserError(f"{place} cannot be written: {error}") from error
        reason = "no space left" if error.errno == errno.ENOSPC else error.strerror
        raise UserError(f"cannot write {place}: {reason}; free it or pass another --cache_dir") from error
    finally:
        aside.unlink(missing_ok=True)
    return place


def write_rows(rows: Iterator[Row], file: BinaryIO) -> None:
    """Each row as JSON on the line of its number; lines of no row are left empty."""
    line = 1
    for number, row in rows:
        file.write(b"\n" * (number - line))
        file.write(as_json(row) + b"\n")
        line = number + 1


def as_json(row: Any) -> bytes:
    """A row as a line of JSON."""
    return json.dumps(row, ensure_ascii=False, default=_spelled).encode("utf-8", "surrogatepass")


def lean(row: dict[str, Any]) -> dict[str, Any]:
    """The row with bytes as texts, without the nulls of columns of structs where a struct has no such key."""
    return {key: _lean(value) if isinstance(value, _LEAN) else value for key, value in row.items()}


def _lean(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lean(each) for key, each in value.items() if each is not None or key in _SPOKEN}
    if isinstance(value, list):
        return [_lean(each) for each in value]
    return _text(value) if isinstance(value, bytes) else value


def _text(value: bytes) -> str | dict[str, int]:
    """The text that bytes are; of others, such as an image, what whoever wants a text there will refuse."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {NO_TEXT: len(value)}


def _spelled(value: Any) -> Any:
    """What JSON has no form for, as something it has."""
    if isinstance(value, (date, datetime, time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    return str(value)


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as pq

    number = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_BATCH):
            batch.validate(full=True)
            for row in batch.to_pylist():
                number += 1
                yield number, lean(row)


def _csv(path: Path) -> Iterator[Row]:
    """Records under their header's names; a record's number is the line it begins on."""
    csv.field_size_limit(LONGEST_LINE)
    with io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", newline="") as file:
        first = file.readline(_BLOCK)
        delimiter = max("\t,;", key=first.count)
        header = next(csv.reader([first], delimiter=delimiter), [])
        if doubled := {name for name in header if header.count(name) > 1}:
            raise UserError(f"{path}:1: two columns are called {doubled.pop()!r}; give each its own name")
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        line = 2
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise UserError(
                    f'{path}:{line}: {error}; quote texts in " and double each " in them'
                ) from error
            if cells is None:
                return
            if cells and len(cells) != len(header):
                raise UserError(
                    f"{path}:{line}: {len(cells)} fields, and the header has {len(header)}; quote texts "
                    "that hold a delimiter or a line end"
                )
            if cells:
                yield line, {name: _cell(name, cell) for name, cell in zip(header, cells, strict=True)}
            line = reader.line_num + 2


def _cell(name: str, cell: str) -> Any:
    """A cell of CSV, which knows texts only: lists and labels are what they spell."""
    if name in _NESTED and cell.startswith("["):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    if name == "margin":
        try:
            return float(cell) if cell else None
        except ValueError:
            return cell
    return _CELLS.get(cell.lower(), cell) if name == "label" else cell


def _json(path: Path) -> Iterator[Row]:
    """The items of an array, however long it is."""
    decoder, number = json.JSONDecoder(), 0
    with io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig") as file:
        text, more = file.read(_BLOCK).lstrip(), True
        if not text.startswith("["):
            raise UserError(f"{path} is neither a JSON array nor one object a line; write it as one of these")
        text = text[1:]
        while True:
            text = text.lstrip() if not number else text.lstrip(" \t\r\n,")
            if text.startswith("]"):
                return
            try:
                item, end = decoder.raw_decode(text)
                if more and not text[end:].strip():  # it may go on in the next block
                    raise ValueError
            except (ValueError, RecursionError) as error:
                if more and len(text) <= LONGEST_LINE:
                    block = file.read(max(_BLOCK, len(text)))  # doubling: long items are not parsed often
                    text, more = text + block, bool(block)
                    continue
                what = "too deeply nested" if isinstance(error, RecursionError) else "not JSON, or cut off"
                raise UserError(f"{path}: item {number + 1} is {what}") from error
            number, text = number + 1, text[end:]
            yield number, item


class _Raw(io.RawIOBase):
    """A stream of pyarrow as Python's own buffered reader wants it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()
