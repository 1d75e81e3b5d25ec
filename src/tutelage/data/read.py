"""Find and check the rows of data files: where each good row lies, and what is wrong with each bad one.

Rows stay on disk. A scan keeps eight bytes a row, so that sampling is exact and encoding can run in parallel.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from tutelage.data.comparison import comparison_fault, read_comparison
from tutelage.errors import UserError
from tutelage.text.messages import has_half_character, kind_of, message_faults, with_tools

LONGEST_LINE = 64 << 20  # bytes; longer is a file of another kind, and would not fit any row
FAULTS_NAMED = 10
SAMPLING_SEED = 42  # of the systems whose flags these are, so that the same rows are chosen
TEXT_KEYS = ("text", "content", "raw_content", "story")  # under which records have a plain document
_SUFFIXES = {".jsonl": "jsonl", ".txt": "text"}
_KNOWN = "give jsonl:PATH, text:PATH, document:PATH, or a file ending in .jsonl or .txt"
_NO_ROW = ""  # the fault of what is no row at all
_BOM = b"\xef\xbb\xbf"
_OTHER_KINDS = {  # first bytes -> what the file is
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
    b"\x1f\x8b": "gzip-compressed; unpack it first",
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"\x28\xb5\x2f\xfd": "zstd-compressed; unpack it first",
    b"PAR1": "a parquet file; write it out as JSON lines",
}


@dataclass(frozen=True, slots=True)
class Source:
    """One of the paths of a data set, and how it is read."""

    kind: Literal["jsonl", "text", "ranked"]  # what a row is: a conversation, plain text, or a `Comparison`
    path: Path
    unit: Literal["line", "record", "file"] = "line"  # what a row of text is of its file
    key: str = ""  # under which a record has its text

    def __str__(self) -> str:
        """The path as it may be given on a command line."""
        forms = {"line": "text" if self.kind == "text" else "jsonl", "record": "jsonl", "file": "document"}
        return f"{forms[self.unit]}:{self.path}"


@dataclass(slots=True)
class Faults:
    """Bad rows: all are counted, the first ten are described as `file:line: reason`."""

    count: int = 0
    named: list[str] = field(default_factory=list)

    def add(self, path: Path, line: int, reason: str) -> None:
        self.count += 1
        if len(self.named) < FAULTS_NAMED:
            self.named.append(f"{path}:{line}: {reason}")

    def extend(self, other: "Faults") -> None:
        self.count += other.count
        self.named = (self.named + other.named)[:FAULTS_NAMED]

    def refuse(self) -> None:
        """Raise what was found, if anything was."""
        if not self.count:
            return
        more = self.count - len(self.named)
        raise UserError(
            f"{self.count:,} bad row{'s' if self.count > 1 else ''} in the data; mend or remove "
            f"{'them' if self.count > 1 else 'it'}, or count and skip with --skip_bad_rows:\n  "
            + "\n  ".join(self.named)
            + (f"\n  and {more:,} more" if more else "")
        )


@dataclass(slots=True)
class Rows:
    """The good rows of one source: their line numbers, from 1, and where each begins in the file."""

    source: Source
    lines: np.ndarray  # int64
    offsets: np.ndarray  # int64
    faults: Faults

    def __len__(self) -> int:
        return len(self.lines)

    def sample(self, amount: float, flag: str = "--train_num_samples") -> "Rows":
        """Some of the rows, in file order: all for −1, a share for 0 < amount <= 1, so many above 1."""
        count = _count(amount, len(self), self.source.path, flag)
        if count == len(self):
            return self
        chosen = np.sort(np.random.default_rng(SAMPLING_SEED).permutation(len(self))[:count])
        return Rows(self.source, self.lines[chosen], self.offsets[chosen], self.faults)


def parse_sources(paths: Sequence[str | Path], *, ranked: bool = False) -> list[Source]:
    """`jsonl:PATH`, `text:PATH`, `document:PATH`, or a path ending in .jsonl or .txt -> Source.

    Each is looked at on disk: the first record of a jsonl file says whether it has conversations or texts.
    With `ranked` its records compare answers, and no other file will do."""
    sources = [_parse_source(str(path), ranked) for path in paths]
    for source in sources:
        if ranked and source.kind != "ranked":
            raise UserError(f"{source} has no answers to compare; give jsonl: files that have")
    return sources


def scan(source: Source) -> Rows:
    """Read a file once and say where its good rows are and which are bad. Blank texts are no rows."""
    lines, offsets, faults = [], [], Faults()
    with source.path.open("rb") as file:
        for line, offset, raw in _raw_whole(file) if source.unit == "file" else _raw_lines(file):
            reason = _fault(source, raw)
            if reason is None:
                lines.append(line)
                offsets.append(offset)
            elif reason != _NO_ROW:
                if line == 1 and source.kind != "text" and raw.lstrip().startswith(b"["):
                    raise UserError(f"{source.path} is one JSON array; write it as one object per line")
                faults.add(source.path, line, reason)
    if not lines and not faults.count:
        raise UserError(f"{source.path} has no rows: the file is empty or has only blank lines")
    return Rows(source, np.array(lines, np.int64), np.array(offsets, np.int64), faults)


def load_rows(source: Source, offsets: Sequence[int] | np.ndarray) -> Iterator[Any]:
    """The rows that begin at `offsets`: messages, a text or a `Comparison`; a line comes without its end."""
    with source.path.open("rb") as file:
        for offset in offsets:
            file.seek(int(offset))
            yield _parse(source, file.read() if source.unit == "file" else file.readline(LONGEST_LINE + 2))


def rows_between(source: Source, start: int, stop: int) -> Iterator[tuple[int, Any, str | None]]:
    """(offset, row, None) or (offset, None, fault) of the rows that begin at bytes `start` to `stop`.

    A record with a blank text gives an empty string; blank lines are no rows, as in `scan`."""
    with source.path.open("rb") as file:
        if start:
            file.seek(start - 1)
            while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
                pass
        begin = file.tell()
        for _, offset, raw in _raw_whole(file) if source.unit == "file" else _raw_lines(file):
            if begin + offset >= stop:
                return
            fault = _fault(source, raw)
            row = "" if fault == _NO_ROW else None if fault else _parse(source, raw)
            yield begin + offset, row, fault or None


def _parse_source(given: str, ranked: bool) -> Source:
    kind, colon, rest = given.partition(":")
    if not colon or kind not in ("jsonl", "text", "document"):
        kind, rest = _SUFFIXES.get(Path(given).suffix.lower(), ""), given
    path = Path(rest).expanduser()
    if not kind:
        raise UserError(f"cannot tell how to read {given!r}; {_KNOWN}")
    if path.is_dir():
        raise UserError(f"{path} is a directory; give a file in it")
    if not path.exists():
        raise UserError(f"{path} does not exist{_nearest(path)}")
    try:
        with path.open("rb") as file:
            start = file.read(8)
            file.seek(0)
            key = _text_key(file) if kind == "jsonl" and not ranked else None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    for magic, what in _OTHER_KINDS.items():
        if start.startswith(magic):
            raise UserError(f"{path} is {what}")
    if kind == "jsonl":
        chats = Source("ranked" if ranked else "jsonl", path)
        return Source("text", path, "record", key) if key else chats
    return Source("text", path, "file" if kind == "document" else "line")


def _text_key(file: BinaryIO) -> str | None:
    """The key under which the first record of a file has its text; None if it is no plain document."""
    first = next(_raw_lines(file), None)
    try:
        record = json.loads(first[2]) if first else None
    except (ValueError, RecursionError):  # which scanning names with its line
        return None
    if not isinstance(record, dict) or "messages" in record:
        return None
    return next((key for key in TEXT_KEYS if isinstance(record.get(key), str)), None)


def _nearest(path: Path) -> str:
    from difflib import get_close_matches

    if not path.parent.is_dir():
        return f": there is no directory {path.parent}"
    near = get_close_matches(path.name, [other.name for other in path.parent.iterdir()], n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def _raw_lines(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """(line number, offset, bytes without line end) of every line that is not blank."""
    number, offset = 0, 0
    while raw := file.readline(LONGEST_LINE + 2):  # room for a line end
        number, start, offset = number + 1, offset, offset + len(raw)
        if not raw.endswith(b"\n") and len(raw) > LONGEST_LINE:
            while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
                offset += len(rest)
            offset += len(rest)
        if number == 1 and raw.startswith(_BOM):
            start, raw = start + len(_BOM), raw[len(_BOM) :]
        if raw.strip():
            yield number, start, raw.rstrip(b"\r\n")


def _raw_whole(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """What `_raw_lines` yields, of a file that is one row; of one that is too long, only its beginning."""
    raw = file.read(LONGEST_LINE + 1)
    start = len(_BOM) if raw.startswith(_BOM) else 0
    if raw[start:].strip():
        yield 1, start, raw[start:]


def _fault(source: Source, raw: bytes) -> str | None:
    """What is wrong with a row, in a few words, or None; `_NO_ROW` where its text is blank."""
    if len(raw) > LONGEST_LINE:
        remedy = "; split it up, or read it a line at a time with text:" if source.unit == "file" else ""
        return f"longer than {LONGEST_LINE >> 20} MiB{remedy}"
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        place = "byte" if source.unit == "file" else "column"
        return f"not UTF-8: byte 0x{raw[error.start]:02x} at {place} {error.start + 1}"
    if source.kind == "text" and source.unit != "record":
        return None
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} at column {error.colno}"
    except (ValueError, RecursionError):
        return "not JSON we can read: too long a number, or too deeply nested"
    if source.kind == "ranked":
        return comparison_fault(record)
    key = source.key or "messages"
    if not isinstance(record, dict):
        return f"not an object with {key}"
    if key not in record:
        keys = ", ".join(map(repr, list(record)[:5])) or "no keys"
        hint = "; answers to compare are for dpo, simpo and reward" if "chosen" in record else ""
        return f"no {key}; the object has {keys}{hint}"
    if source.kind == "jsonl":
        return message_faults(with_tools(record[key], record.get("tools")))
    return _fault_of_text(key, record[key])


def _fault_of_text(key: str, text: Any) -> str | None:
    if not isinstance(text, str):
        return f"its {key} is {kind_of(text)}, not a string"
    if has_half_character(text):
        return f"its {key} has half a surrogate pair, which is no character"
    return None if text.strip() else _NO_ROW


def _parse(source: Source, raw: bytes) -> Any:
    text = raw.decode()
    if source.unit == "file":
        return text
    if source.kind == "text" and source.unit == "line":
        return text.rstrip("\r\n")
    record = json.loads(text)
    if source.kind == "ranked":
        return read_comparison(record)
    return record[source.key] if source.key else with_tools(record["messages"], record.get("tools"))


def _count(amount: float, rows: int, path: Path, flag: str) -> int:
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
