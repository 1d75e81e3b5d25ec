"""Files of lines, and what their lines are: conversations, prompts, plain texts, or answers to compare."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from tutelage.data.compared_shapes import says_which_is_better
from tutelage.data.comparison import MARKS
from tutelage.data.csv_rows import BAD_ROW
from tutelage.data.opened import LONGEST_LINE, open_bytes
from tutelage.data.paths import DataPath, File, find_data
from tutelage.data.shapes import CHAT_SHAPES, keys_of, renamed, shapes_of, text_key
from tutelage.data.tables import TABLES, table_rows
from tutelage.errors import UserError

BOM = b"\xef\xbb\xbf"
_LOOKED_AT = 100  # rows of a file, for one that says what its rows are


@dataclass(frozen=True, slots=True)
class Source:
    """A file of a data set, and how it is read."""

    kind: Literal["jsonl", "prompt", "text", "ranked"]
    """what a row is: a conversation, one without its answer, plain text, or a `Comparison`"""
    path: Path
    unit: Literal["line", "record", "file"] = "line"  # what a row of text is of its file
    key: str = ""  # under which a record has its text
    shape: str = "messages"  # in which a record has its conversation
    fields: tuple[tuple[str, str], ...] = ()  # other names for keys of its records
    name: str = ""  # of where its lines come from, if they were written out; "": its path
    form: str = ""  # parquet, csv or json, where its rows are no lines
    by_rows: bool = False  # whether line n is row n there, and no line
    number: int = 0  # of the path that it belongs to
    first: int = 0  # line of the record that its shape was recognised by; 0: it was by none
    unused: tuple[str, ...] = ()  # what its records have besides, that is of another shape

    def __str__(self) -> str:
        """The path as it may be given on a command line."""
        forms = {"line": "text" if self.kind == "text" else "jsonl", "record": "jsonl", "file": "document"}
        return f"{forms[self.unit]}:{self.path}"

    def place(self, line: int) -> str:
        """Where a row is, for people."""
        name = self.name or str(self.path)
        return f"{name} row {line}" if self.by_rows else f"{name}:{line}"


def parse_sources(
    paths: Sequence[str | Path | DataPath], *, ranked: bool = False, prompts: bool = False
) -> list[Source]:
    """The files of each path, in order, with what their records are; the first of a known shape says it.

    With `ranked` records compare answers, with `prompts` they end where the assistant would speak; no other
    files will do."""
    sources = []
    for number, path in enumerate(paths):
        found = path if isinstance(path, DataPath) else _found(str(path))
        sources += [_source(file, found, number, ranked, prompts) for file in found.files]
    for source in sources:
        if ranked and source.kind != "ranked":
            raise UserError(f"{source} has no answers to compare; give jsonl: files that have")
        if prompts and source.kind != "prompt":
            raise UserError(f"{source} has no prompts; give jsonl: files with prompt or messages")
    return sources


def compares(paths: Sequence[DataPath]) -> bool:
    """Whether the first records of every file say which answers are better."""
    files = [(file, path.fields) for path in paths for file in path.files]
    records = [renamed(_first_record(file, names)[1], names) for file, names in files if file.form == "jsonl"]
    return len(records) == len(files) and all(
        isinstance(record, dict) and says_which_is_better(record) for record in records
    )


def recognised(paths: Sequence[DataPath]) -> list[Source]:
    """The files, read as what their first records are: comparisons, conversations, prompts or plain texts."""
    if compares(paths):
        return parse_sources(paths, ranked=True)
    sources = parse_sources(paths)
    if all(source.kind == "jsonl" and not source.first for source in sources):
        prompts = parse_sources(paths, prompts=True)
        return prompts if all(source.first for source in prompts) else sources
    return sources


def _found(path: str) -> DataPath:
    return find_data([path], [], log=lambda _: None, flag="--train_data_splits")[0]


def _source(file: File, given: DataPath, number: int, ranked: bool, prompts: bool) -> Source:
    name = "" if str(file.path) == file.name else file.name
    place = Source("text", file.path, name=name, by_rows=file.by_rows, fields=given.fields, number=number)
    if file.form in TABLES:
        place = replace(place, form=file.form, by_rows=file.form != "csv")
    elif file.form != "jsonl":
        if given.shape or given.fields:
            raise UserError(f"{given} is plain text, and shapes and fields are those of records")
        return replace(place, unit="file" if file.form == "document" else "line")
    line, found = _first_record(file, given.fields, prompts=prompts)
    first = found or {}
    if first and (absent := [old for old, _ in given.fields if old not in first]):
        raise UserError(
            f"data_fields: the first record of {file.name} has no {absent[0]}; it has {keys_of(first)}"
        )
    record = renamed(first, given.fields)
    if ranked:
        return replace(place, kind="ranked")
    shapes = [given.shape] if given.shape else shapes_of(record)
    text = text_key(record)
    if len(shapes) > 1:
        raise UserError(
            f"the first record of {file.name} has the shapes {' and '.join(shapes)}; say which is meant with "
            f"{given.shapes_flag}"
        )
    if not shapes and prompts and record.get("prompt") is not None:
        shapes = ["prompt"]
    if prompts:
        shape = shapes[0] if shapes else "messages"
        return replace(place, kind="prompt", shape=shape, first=line if shapes else 0)
    if shapes == ["prompt"]:
        raise UserError(f"{file.name}: prompts alone have no answers to learn from")
    if shapes == ["text"] or (not shapes and text and "messages" not in record):
        return replace(place, unit="record", key=text or "text", first=line if text else 0)
    shape = shapes[0] if shapes else "messages"
    unused = [key for key in ("text", "prompt", *sorted(MARKS)) if key in record]
    unused = tuple(key for key in unused if key not in CHAT_SHAPES[shape])
    return replace(place, kind="jsonl", shape=shape, first=line if shapes else 0, unused=unused)


def _first_record(file: File, fields: Sequence[tuple[str, str]], *, prompts: bool = False) -> tuple[int, Any]:
    """The first line, from 1, whose record is of a known shape, and that record, else the first of any shape.

    Only the first lines are looked at; (0, None) if none of them is an object."""
    other = 0, None
    for line, record in islice(_records(file), _LOOKED_AT):
        if isinstance(record, dict) and BAD_ROW not in record:
            if _has_shape(renamed(record, fields), prompts) and all(old in record for old, _ in fields):
                return line, record
            other = other if other[0] else (line, record)
    return other


def _has_shape(record: dict[str, Any], prompts: bool) -> bool:
    alone = record.get("prompt") is not None and (prompts or "completion" not in record)
    return alone or bool(says_which_is_better(record) or shapes_of(record) or text_key(record))


def _records(file: File) -> Iterator[tuple[int, Any]]:
    """What the lines that are not blank say as JSON, with their numbers; None of one that says nothing."""
    if file.form in TABLES:
        yield from table_rows(file.path, file.form)
        return
    line, size = 0, 0
    with suppress(OSError, EOFError, ValueError), open_bytes(file.path) as lines:  # named by scanning
        while size <= LONGEST_LINE and (raw := lines.readline(LONGEST_LINE + 2)):
            line, size, raw = line + 1, size + len(raw), raw.removeprefix(BOM).strip()
            if line == 1 and raw.startswith(b"["):  # an array, of which a line says little
                return
            if raw:
                yield line, _said(raw)


def _said(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None
