"""The rows of published data sets, one at a time: JSON lines, JSON values, parquet, CSV, compressed."""

import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tutelage.data.csv_rows import BAD_ROW
from tutelage.data.opened import open_bytes
from tutelage.data.paths import form_of
from tutelage.data.tables import table_rows
from tutelage.errors import UserError

LARGEST_JSON = 1 << 30  # bytes of a file that is one value, which is held in memory
Row = dict[str, Any]
Placed = tuple[str, Row | str]  # where a row stands, and the row or what is wrong with it


def rows_of(path: Path) -> Iterator[Placed]:
    """(`file:line`, row) of every row of a file, or (`file:line`, what is wrong); blank lines are no rows.

    A file that is one JSON value has the rows that its array has, or its "data", or its values that are
    objects. A file that cannot be read at all is refused."""
    form = form_of(path)
    if form in ("parquet", "csv"):
        yield from ((f"{path}:{number}", row.get(BAD_ROW, row)) for number, row in table_rows(path, form))
    elif form == "json" and (value := _whole(path)) is not None:
        for name, row in _members(value):
            yield f"{path}:{name}", row if isinstance(row, dict) else "not an object"
    else:
        for number, raw in enumerate(_raw_lines(path), start=1):
            if raw.strip():
                yield f"{path}:{number}", _parse(raw)


def questions_of(rows: Iterable[Placed]) -> Iterator[Placed]:
    """The rows; requests of an evaluation, which hold a question many times, give its `doc` once."""
    seen = set[bytes]()  # HellaSwag has questions of one name, PIQA has two that say the same
    for place, row in rows:
        if isinstance(row, str) or "doc" not in row:
            yield place, row
        elif not isinstance(row["doc"], dict):
            yield place, "its doc is not an object"
        else:
            named = json.dumps([row.get("native_id"), row["doc"]], sort_keys=True)
            key = hashlib.sha256(named.encode()).digest()[:16]
            if key not in seen:
                seen.add(key)
                yield place, row["doc"]


def texts(row: Row, *keys: str) -> list[str] | str:
    """What a row has under these keys, or which of them is no string."""
    for key in keys:
        if not isinstance(row.get(key), str):
            return f"it has no {key} that is a string"
    return [row[key] for key in keys]


def number(value: Any) -> float | None:
    """A score, which some rows spell as a string; None where there is none."""
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
    return score if math.isfinite(score) else None


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a text file, compressed or not, without their ends."""
    for number, raw in enumerate(_raw_lines(path), start=1):
        try:
            yield raw.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:{number}: not UTF-8") from error


def _raw_lines(path: Path) -> Iterator[bytes]:
    try:
        with open_bytes(path) as file:
            yield from file
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} cannot be read to its end: {error}") from error


def _whole(path: Path) -> Any:
    """The one value of a JSON file, or None where it is lines of objects, as some that end in .json are."""
    lines = _raw_lines(path)
    first = next((line for line in lines if line.strip()), b"")
    if isinstance(_parse(first), dict) and any(line.strip() for line in lines):
        return None
    raw = bytearray()
    for line in _raw_lines(path):
        raw += line
        if len(raw) > LARGEST_JSON:
            raise UserError(f"{path} is one JSON value of more than 1 GiB; write it as one object per line")
    try:
        return json.loads(raw.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    if isinstance(value, list):
        yield from ((str(at), member) for at, member in enumerate(value, start=1))
    elif isinstance(value, dict) and value and all(isinstance(member, dict) for member in value.values()):
        yield from value.items()
    else:
        yield "1", value


def _parse(raw: bytes) -> Row | str:
    try:
        row = json.loads(raw.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError):  # also what is not UTF-8
        return "not JSON"
    return row if isinstance(row, dict) else "not an object"
