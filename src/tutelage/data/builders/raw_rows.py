"""The rows of published data sets, one at a time: JSON lines (gzipped or not), parquet, folders of them."""

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tutelage.errors import UserError

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
Row = dict[str, Any]


def data_files(paths: Sequence[str]) -> list[Path]:
    """Every file that `paths` name: files as they are, of folders all below that end in one of `SUFFIXES`."""
    found = []
    for given in paths:
        path = Path(given.removeprefix("jsonl:")).expanduser()
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES))
            if not inside:
                raise UserError(f"{path} holds no file that ends in {', '.join(SUFFIXES)}")
            found += inside
        elif not path.exists():
            raise UserError(f"{path} does not exist")
        elif not path.name.endswith(SUFFIXES):
            raise UserError(f"{path} cannot be read: give a file that ends in {', '.join(SUFFIXES)}")
        else:
            found.append(path)
    return found


def rows_of(path: Path) -> Iterator[tuple[str, Row | str]]:
    """(`file:line`, row) of every row of a file, or (`file:line`, what is wrong); blank lines are no rows.

    A file that cannot be read at all is refused."""
    if path.name.endswith(".parquet"):
        yield from _parquet(path)
        return
    for number, raw in enumerate(_raw_lines(path), start=1):
        if raw.strip():
            yield f"{path}:{number}", _parse(raw)


def number(value: Any) -> float | None:
    """A score, which some rows spell as a string; None where there is none."""
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
    return score if math.isfinite(score) else None


def _raw_lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
            yield from file
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read to its end: {error}") from error


def _parse(raw: bytes) -> Row | str:
    try:
        row = json.loads(raw.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError):  # also what is not UTF-8
        return "not JSON"
    return row if isinstance(row, dict) else "not an object"


def _parquet(path: Path) -> Iterator[tuple[str, Row | str]]:
    from datasets import load_dataset

    try:
        rows = load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        for number, row in enumerate(rows, start=1):
            yield f"{path}:{number}", dict(row)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
