"""Find and check the rows of data files: where each good row lies, and what is wrong with each bad one.

Rows stay on disk. A scan keeps sixteen bytes a row: sampling is exact, and encoding can run in parallel.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from tutelage.data.comparison import comparison_fault, read_comparison
from tutelage.data.csv_rows import BAD_ROW
from tutelage.data.faults import Faults
from tutelage.data.opened import BUFFER, COMPRESSED, LONGEST_LINE, open_bytes
from tutelage.data.shapes import Unfit, fault_of_text, keys_of, messages_of, prompt_of, renamed, shapes_of
from tutelage.data.sources import BOM, Source
from tutelage.data.tables import TABLES, as_json, table_rows
from tutelage.errors import UserError
from tutelage.text.messages import message_faults, with_tools

SAMPLING_SEED = 42  # of the systems whose flags these are, so that the same rows are chosen
NO_ROW = ""  # the fault of what is no row at all


@dataclass(slots=True)
class Rows:
    """The good rows of one source: their line numbers, from 1, and where each begins in the file."""

    source: Source
    lines: np.ndarray  # int64
    offsets: np.ndarray  # int64
    faults: Faults
    silent: int = 0  # conversations whose last reply is blank: no fault, as a model may learn to say nothing

    def __len__(self) -> int:
        return len(self.lines)

    def sample(self, amount: float, flag: str = "--train_num_samples") -> Rows:
        """Some of the rows, in file order: all for −1, a share for 0 < amount <= 1, so many above 1."""
        return sample_together([self], amount, str(self.source.path), flag)[0]


def sample_together(
    parts: Sequence[Rows], amount: float, name: str, flag: str = "--train_num_samples"
) -> list[Rows]:
    """`Rows.sample` of several files, as if they were one; `name` is what they are called together."""
    total = sum(map(len, parts))
    count = _count(amount, total, name, flag)
    if count == total:
        return list(parts)
    chosen = np.sort(np.random.default_rng(SAMPLING_SEED).permutation(total)[:count])
    taken, before = [], 0
    for rows in parts:
        mine = chosen[(chosen >= before) & (chosen < before + len(rows))] - before
        taken.append(Rows(rows.source, rows.lines[mine], rows.offsets[mine], rows.faults))
        before += len(rows)
    return taken


def scan(source: Source) -> Rows:
    """Read a file once and say where its good rows are and which are bad. Blank texts are no rows."""
    lines, offsets, faults, silent = [], [], Faults(), 0

    def hear(messages: Any) -> None:
        nonlocal silent
        silent += _ends_blank(messages[-1])

    fault_of = checker(source, hear)
    with source.path.open("rb", buffering=BUFFER) as file:
        for line, offset, raw in _raw_whole(file) if source.unit == "file" else _raw_lines(file):
            reason = fault_of(raw)
            if reason is None:
                lines.append(line)
                offsets.append(offset)
            elif reason != NO_ROW:
                if line == 1 and source.kind != "text" and raw.lstrip().startswith(b"["):
                    raise UserError(f"{source.path} is one JSON array; give json:{source.path}")
                faults.add(source.place(line), reason)
    if not lines and not faults.count:
        name = source.name or source.path
        raise UserError(f"{name} has no rows: the file is empty or has only blank lines")
    return Rows(source, np.array(lines, np.int64), np.array(offsets, np.int64), faults, silent)


def _ends_blank(message: dict[str, Any]) -> bool:
    """Whether a message without a fault is the assistant's and says nothing."""
    content = message.get("content") or ""
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    said = text.strip() or message.get("tool_calls") or message.get("reasoning_content")
    return message["role"] == "assistant" and not said


def load_rows(source: Source, offsets: Sequence[int] | np.ndarray) -> Iterator[Any]:
    """The rows that begin at `offsets`: messages, a text or a `Comparison`; a line comes without its end."""
    with source.path.open("rb") as file:
        for offset in offsets:
            file.seek(int(offset))
            yield parse(source, file.read() if source.unit == "file" else file.readline(LONGEST_LINE + 2))


def rows_between(source: Source, start: int, stop: int) -> Iterator[tuple[int, Any, str | None]]:
    """(offset, row, None) or (offset, None, fault) of the rows that begin at bytes `start` to `stop`.

    A record with a blank text gives an empty string; blank lines are no rows, as in `scan`."""
    fault_of = checker(source)
    with source.path.open("rb", buffering=BUFFER) as file:
        if start:
            file.seek(start - 1)
            while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
                pass
        begin = file.tell()
        for _, offset, raw in _raw_whole(file) if source.unit == "file" else _raw_lines(file):
            if begin + offset >= stop:
                return
            fault = fault_of(raw)
            row = "" if fault == NO_ROW else None if fault else parse(source, raw)
            yield begin + offset, row, fault or None


def raw_rows(source: Source, *, line: int = 1, offset: int = 0) -> Iterator[tuple[int, int, bytes]]:
    """(line number, offset, bytes) of every row from a line on that begins at `offset`.

    What is compressed, or a table, is read from its start and has no offsets: 0."""
    if source.form in TABLES:
        for number, row in table_rows(source.path, source.form):
            if number >= line:
                yield number, 0, as_json(row)
        return
    with open_bytes(source.path) as file:
        if source.path.name.lower().endswith(COMPRESSED):
            offset, begin = 0, 1
        else:
            file.seek(offset)
            begin = line
        for number, start, raw in _raw_whole(file) if source.unit == "file" else _raw_lines(file, begin):
            if number >= line:
                yield number, offset + start, raw


def _raw_lines(file: BinaryIO, first: int = 1) -> Iterator[tuple[int, int, bytes]]:
    """(line number, offset, bytes without line end) of every line that is not blank; the first is `first`."""
    number, offset = first - 1, 0
    while raw := file.readline(LONGEST_LINE + 2):  # room for a line end
        number, start, offset = number + 1, offset, offset + len(raw)
        if not raw.endswith(b"\n") and len(raw) > LONGEST_LINE:
            while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
                offset += len(rest)
            offset += len(rest)
        if number == 1 and raw.startswith(BOM):
            start, raw = start + len(BOM), raw[len(BOM) :]
        if raw.strip():
            yield number, start, raw.rstrip(b"\r\n")


def _raw_whole(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """What `_raw_lines` yields, of a file that is one row; of one that is too long, only its beginning."""
    raw = file.read(LONGEST_LINE + 1)
    start = len(BOM) if raw.startswith(BOM) else 0
    if raw[start:].strip():
        yield 1, start, raw[start:]


def checker(
    source: Source, hear: Callable[[Any], None] = lambda messages: None
) -> Callable[[bytes], str | None]:
    """What says what is wrong with a row, in a few words, or None; `NO_ROW` where its text is blank.

    `hear` is given the messages of conversations that have no fault."""
    place = "byte" if source.unit == "file" else "column"
    remedy = "; split it up, or read it a line at a time with text:" if source.unit == "file" else ""
    plain = source.kind == "text" and source.unit != "record"
    fault_of = _checker_of_records(source, hear)

    def fault(raw: bytes) -> str | None:
        if len(raw) > LONGEST_LINE:
            return f"longer than {LONGEST_LINE >> 20} MiB{remedy}"
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            return f"not UTF-8: byte 0x{raw[error.start]:02x} at {place} {error.start + 1}"
        if plain:
            return None
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            return f"not JSON: {error.msg} at column {error.colno}"
        except (ValueError, RecursionError):
            return "not JSON we can read: too long a number, or too deeply nested"
        return str(record[BAD_ROW]) if isinstance(record, dict) and BAD_ROW in record else fault_of(record)

    return fault


def _checker_of_records(source: Source, hear: Callable[[Any], None]) -> Callable[[Any], str | None]:
    """`_checker` of what is JSON."""

    def ranked(record: Any) -> str | None:
        return comparison_fault(renamed(record, source.fields))

    def heard(messages: Any) -> str | None:
        fault = message_faults(messages, answered=source.kind != "prompt")
        if fault is None and source.kind == "jsonl":
            hear(messages)
        return fault

    def spoken(record: Any) -> str | None:
        if not isinstance(record, dict):
            return f"not an object with {source.key or 'messages'}"
        try:
            messages = _spoken(source, record)
        except Unfit as unfit:
            return f"{unfit}{_other_shape(source, record)}"
        return heard(messages)

    def text(record: Any) -> str | None:
        if not isinstance(record, dict):
            return f"not an object with {source.key}"
        record = renamed(record, source.fields)
        if source.key not in record:
            return f"no {source.key}; the object has {keys_of(record)}{_other_shape(source, record)}"
        return fault_of_text(source.key, record[source.key])

    def messages(record: Any) -> str | None:  # what most data is, so without a detour
        if isinstance(record, dict) and "messages" in record:
            return heard(with_tools(record["messages"], record.get("tools")))
        return spoken(record)

    if source.kind == "jsonl" and source.shape == "messages" and not source.fields:
        return messages
    return {"ranked": ranked, "text": text}.get(source.kind, spoken)


def _spoken(source: Source, record: dict[str, Any]) -> Any:
    """The messages in a record; raises `Unfit`."""
    record = renamed(record, source.fields)
    read = prompt_of if source.kind == "prompt" else messages_of
    return with_tools(read(record, source.shape), record.get("tools"))


def _other_shape(source: Source, record: dict[str, Any]) -> str:
    """What may be meant by a record that has not the shape of its file."""
    if "chosen" in record:
        return "; answers to compare are for dpo, simpo and reward"
    had = source.shape if source.kind != "text" else "text"
    found = [shape for shape in shapes_of(renamed(record, source.fields)) if shape != had]
    if found and source.first:
        first = source.place(source.first)
        return f"; its shape is {found[0]}, that of {first} is {had}: keep them in two files"
    if source.first:
        return ""
    if source.kind == "jsonl" and record.get("prompt") is not None:
        return "; a prompt that nothing answers has nothing to learn from"
    return "; other names for its keys are given by --data_fields, like question=instruction"


def parse(source: Source, raw: bytes) -> Any:
    """A row that has no fault: messages, a text or a `Comparison`."""
    text = raw.decode()
    if source.unit == "file":
        return text
    if source.kind == "text" and source.unit == "line":
        return text.rstrip("\r\n")
    record = json.loads(text)
    if source.kind == "ranked":
        return read_comparison(renamed(record, source.fields))
    return renamed(record, source.fields)[source.key] if source.kind == "text" else _spoken(source, record)


def _count(amount: float, rows: int, path: str, flag: str) -> int:
    if amount == -1:
        return rows
    if not math.isfinite(amount) or amount <= 0 or (amount > 1 and amount != int(amount)):
        raise UserError(
            f"{flag} {amount:g} is neither a count (a whole number above 1), "
            "a ratio (above 0, up to 1) nor -1 for all"
        )
    count = int(amount) if amount > 1 else int(rows * amount + 1e-9)  # 0.29 of 100 is 29
    if count > rows:
        raise UserError(
            f"{flag} asks for {count:,} rows of {path}, which has {rows:,} good ones; -1 takes all"
        )
    if not count:
        raise UserError(f"{flag} {amount:g} of the {rows:,} good rows of {path} is not one row")
    return count
