"""Rows of files that are no lines of JSON: parquet, CSV, JSON arrays, saved data sets, compressed ones.

They are read from the start on, in bounded memory, and for training written out once as JSON lines: those can
be read from any place. Line n of what is written is row n, so faults name rows; of CSV it is line n.
"""

from __future__ import annotations

import errno
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

from tutelage.data.csv_rows import csv_rows
from tutelage.data.opened import LONGEST_LINE, open_bytes
from tutelage.errors import UserError, no_room
from tutelage.text.messages import NO_TEXT

FORMAT = 2  # of what is written out
TABLES = ("parquet", "csv", "json")
_BATCH = 1000  # rows of parquet and of saved data sets held at a time
_BLOCK = 1 << 20
_SPOKEN = {"content", "value", "text"}  # keys of messages whose null is a fault and not an absence
_LEAN = (list, dict, bytes)
Row = tuple[int, Any]  # its number, from 1, and the record


def table_rows(path: Path, form: str) -> Iterator[Row]:
    """The rows of a parquet, csv or json file in order; a file that cannot be read to its end is refused."""
    readers = {"parquet": _parquet, "csv": csv_rows, "json": _json}
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
        if no_room(error) is None and error.errno not in (errno.EACCES, errno.EROFS):
            raise UserError(f"{place} cannot be written: {error}") from error
        reason = no_room(error) or error.strerror
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
                while not (rest := text[1:].lstrip()) and (text := file.read(_BLOCK)):
                    text = f"]{text}"
                if rest:
                    raise UserError(
                        f"{path} goes on after the ] of its array, with {rest[:20]!r}; give it one array, or "
                        "write one object a line in a .jsonl"
                    )
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
