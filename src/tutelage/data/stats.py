"""What a data set says, counted before any model reads it: rows, lengths, who speaks, what comes twice.

Kept of every row are two hashes and three numbers, so that files of millions of rows can be counted."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tutelage.data.comparison import Comparison
from tutelage.data.read import Rows, load_rows
from tutelage.text.messages import plain_messages

PERCENTILES = (50, 90, 95, 99)
NAMED = 5  # rows of each finding that are named
Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Twin:
    """A row that is the same as another, both as `file:line`."""

    place: str
    first: str


@dataclass(slots=True)
class Copies:
    """Rows that were there before."""

    count: int = 0
    named: list[Twin] = field(default_factory=list)

    def add(self, place: str, first: str) -> None:
        self.count += 1
        if len(self.named) < NAMED:
            self.named.append(Twin(place, first))


@dataclass(slots=True)
class Tally:
    """The rows of a data set, counted. A prompt is all before the last answer; plain texts have none."""

    words: array[int] = field(default_factory=lambda: array("Q"))  # of each row
    characters: array[int] = field(default_factory=lambda: array("Q"))
    messages: array[int] = field(default_factory=lambda: array("Q"))  # 0 of a text
    role_messages: Counter[str] = field(default_factory=Counter)
    role_words: Counter[str] = field(default_factory=Counter)
    prompts: int = 0
    same_rows: Copies = field(default_factory=Copies)
    same_prompts: Copies = field(default_factory=Copies)
    places: list[Rows] = field(default_factory=list)
    _rows_seen: dict[bytes, int] = field(default_factory=dict)  # hash of a row -> its number
    _prompts_seen: dict[bytes, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.words)

    def add(self, rows: Rows) -> None:
        """Count all rows of a file."""
        self.places.append(rows)
        for row in load_rows(rows.source, rows.offsets):
            number = len(self)
            spoken = list(said(row))
            self.words.append(sum(len(text.split()) for _, text in spoken))
            self.characters.append(sum(len(text) for _, text in spoken))
            self.messages.append(0 if isinstance(row, str) else len(spoken))
            for role, text in spoken:
                self.role_messages[role] += 1
                self.role_words[role] += len(text.split())
            self._look_for_copy(self._rows_seen, _key(spoken), number, self.same_rows)
            if (prompt := _prompt(row)) is not None:
                self.prompts += 1
                self._look_for_copy(self._prompts_seen, _key(prompt), number, self.same_prompts)

    def place(self, number: int) -> str:
        """`file:line` of a row."""
        for rows in self.places:
            if number < len(rows):
                return rows.source.place(int(rows.lines[number]))
            number -= len(rows)
        raise AssertionError("a row that was counted")

    def leaked_from(self, train: Tally) -> tuple[Copies, Copies]:
        """Rows of this data set that `train` has, and rows whose prompts it has."""
        found = []
        for mine, theirs in (
            (self._rows_seen, train._rows_seen),
            (self._prompts_seen, train._prompts_seen),
        ):
            copies = Copies()
            for key, number in mine.items():
                if key in theirs:
                    copies.add(self.place(number), train.place(theirs[key]))
            found.append(copies)
        return found[0], found[1]

    def _look_for_copy(self, seen: dict[bytes, int], key: bytes, number: int, copies: Copies) -> None:
        first = seen.setdefault(key, number)
        if first != number:
            copies.add(self.place(number), self.place(first))


def said(row: str | Messages | Comparison) -> Iterator[tuple[str, str]]:
    """(role, text) of all that a row says; a call of a tool is said too."""
    if isinstance(row, str):
        yield "text", row
        return
    messages = row if isinstance(row, list) else [*row.prompt, *(m for answer in row.answers for m in answer)]
    for message in plain_messages(messages):
        calls = message.get("tool_calls")
        yield message["role"], message["content"] + (json.dumps(calls) if calls else "")


def spread(lengths: Sequence[int] | np.ndarray) -> dict[str, float]:
    """Mean, percentiles (each a length that occurs) and the longest; of no rows nothing."""
    values = np.asarray(lengths)
    if not len(values):
        return {}
    shares = np.percentile(values, PERCENTILES, method="lower")
    return {
        "total": int(values.sum()),
        "mean": float(values.mean()),
        "median": int(shares[0]),
        **{f"p{share}": int(value) for share, value in zip(PERCENTILES[1:], shares[1:], strict=True)},
        "longest": int(values.max()),
    }


def _prompt(row: str | Messages | Comparison) -> list[tuple[str, str]] | None:
    """What the last answer answers; None where there is no answer."""
    if isinstance(row, str):
        return None
    spoken = list(said(row if isinstance(row, list) else row.prompt))
    if isinstance(row, Comparison):
        return spoken
    answers = [at for at, (role, _) in enumerate(spoken) if role == "assistant"]
    return spoken[: answers[-1]] if answers else None


def _key(spoken: Sequence[tuple[str, str]]) -> bytes:
    """A hash that rows share which say the same, but for white space around it."""
    text: Any = json.dumps([(role, text.strip()) for role, text in spoken])
    return hashlib.sha256(text.encode()).digest()[:16]
