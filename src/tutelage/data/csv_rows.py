"""Records of CSV files, which Excel, pandas and others write each in their way."""

import csv
import io
import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from tutelage.data.opened import LONGEST_LINE, open_bytes
from tutelage.errors import UserError

BAD_ROW = "\0"  # the key under which a row that cannot be used says why
_LONGEST_HEADER, _MOST_LINES = 1 << 20, 100  # characters, and lines that names with line ends take
_NESTED = ("messages", "conversations", "prompt", "completion", "chosen", "rejected", "answers", "history")
_QUOTED, _OPEN = re.compile(r'"(?:[^"]|"")*"'), re.compile(r'(?:^|[\t,;])"')
_CELLS = {"true": True, "false": False}


def csv_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Records under their header's names; a record's number is the line it begins on.

    One that does not fit the header comes as `{BAD_ROW: why}`."""
    csv.field_size_limit(LONGEST_LINE)
    with io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", newline="") as file:
        begun = _first_lines(path, file)
        outside = _QUOTED.sub("", "".join(begun))
        reader = csv.reader(chain(begun, file), delimiter=max("\t,;", key=outside.count), strict=True)
        header, line = None, 1
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise UserError(
                    f'{path}:{line}: {error}; quote texts in " and double each " in them'
                ) from error
            if cells is None:
                return
            if cells and header is None:
                header = _checked(path, line, cells)
            elif cells and header:
                yield line, _record(header, cells)
            line = reader.line_num + 1


def _first_lines(path: Path, file: io.TextIOWrapper) -> list[str]:
    """The lines up to the end of the header, whose names may hold line ends in quotes."""
    lines = [file.readline(_LONGEST_HEADER)]
    while lines[-1] and (not (text := "".join(lines).lstrip()) or _OPEN.search(_QUOTED.sub("", text))):
        if len(text) >= _LONGEST_HEADER or len(lines) > _MOST_LINES:
            raise UserError(f'{path}: its header does not end; quote names in " and double each " in them')
        lines.append(file.readline(_LONGEST_HEADER))
    return lines


def _checked(path: Path, line: int, header: list[str]) -> list[str]:
    if doubled := {name for name in header if name.strip() and header.count(name) > 1}:
        raise UserError(f"{path}:{line}: two columns are called {doubled.pop()!r}; give each its own name")
    if len(header) == 1 and "|" in header[0]:
        raise UserError(
            f"{path}:{line}: its only column is called {header[0][:60]!r}; columns are separated by commas, "
            "semicolons or tabs: write it with one of these"
        )
    return header


def _record(header: list[str], cells: list[str]) -> dict[str, Any]:
    if len(cells) != len(header):
        return {
            BAD_ROW: f"{len(cells)} fields, and the header has {len(header)}; quote texts that hold a "
            "delimiter or a line end"
        }
    nameless = [at for at, name in enumerate(header) if not name.strip()]
    if len(nameless) > 1:  # one alone is what pandas writes its row numbers in
        for at in nameless[header[0].strip() == "" :]:
            if cells[at].strip():
                return {BAD_ROW: f"column {at + 1} holds {cells[at][:20]!r} and has no name; give it one"}
    named = ((name, cell) for name, cell in zip(header, cells, strict=True) if name.strip())
    return {name: _cell(name, cell) for name, cell in named}


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
