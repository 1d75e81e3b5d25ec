"""Examples written out as train.jsonl and val.jsonl, each only with its own; equal prompts never in both."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, TextIO

from tutelage.data.builders.records import (
    Choice,
    Conversation,
    Example,
    Messages,
    checked,
    record_of,
    texts_of,
)
from tutelage.errors import UserError

Examples = Iterable[tuple[str, Example | str]]  # where it stands, and what it is or why it is left out
TooLong = Callable[[list[str]], str | None]  # given all that is said, why it is left out
NAMES = {"train": "train.jsonl", "val": "val.jsonl"}


@dataclass(slots=True)
class Counts:
    """What became of the examples."""

    read: int = 0
    written: Counter[str] = field(default_factory=Counter)  # of each split
    skipped: Counter[str] = field(default_factory=Counter)  # for each reason
    first: dict[str, str] = field(default_factory=dict)  # where the first of each reason stands

    def skip(self, place: str, reason: str) -> None:
        self.skipped[reason] += 1
        self.first.setdefault(reason, place)

    def lines(self) -> list[str]:
        """The counts in words."""
        split = ", ".join(f"{self.written[name]:,} to {name}" for name in NAMES if self.written[name])
        kept = f"{self.read:,} read, {self.written.total():,} kept"
        reasons = [
            f"{count:,} skipped: {reason}; the first is {self.first[reason]}"
            for reason, count in self.skipped.most_common()
        ]
        return [f"{kept}: {split}" if split else kept, *reasons]


def write(
    examples: Examples,
    held_out: Examples,
    directory: Path,
    *,
    choice: Choice,
    val_percent: float,
    seed: int,
    too_long: TooLong = lambda said: None,
) -> Counts:
    """Write `directory`/train.jsonl and val.jsonl.

    Held out are the examples of `held_out`, and of the others `val_percent` of the prompts, by their hash.
    An example that is not held out and has the prompt of one in `held_out` is left out."""
    directory.mkdir(parents=True, exist_ok=True)
    counts, seen, apart = Counts(), set[bytes](), set[bytes]()
    with ExitStack() as stack:
        for name in NAMES.values():  # whatever happens, nothing unfinished is left
            stack.callback(_aside(directory, name).unlink, missing_ok=True)
        with ExitStack() as opened:
            files = {
                split: opened.enter_context(_aside(directory, name).open("w", encoding="utf-8"))
                for split, name in NAMES.items()
            }
            for place, example, held in _marked(held_out, examples):
                counts.read += 1
                record, key = _record(example, choice, seed, too_long)
                split = "val" if held or _drawn(key, val_percent) else "train"
                if isinstance(record, str):
                    counts.skip(place, record)
                elif not held and key in apart:
                    counts.skip(place, "its prompt is held out")
                elif key in seen:
                    counts.skip(place, "its prompt was there before")
                else:
                    _write(files[split], record)
                    counts.written[split] += 1
                    seen.update([key] if choice.kind == "prompts" else [])
                    apart.update([key] if held else [])
        _hand_over(directory, counts)
    return counts


def prompt_key(prompt: Messages, seed: int) -> bytes:
    """A hash that equal prompts share."""
    said = [[message["role"], message["content"].strip()] for message in prompt]
    return hashlib.sha256(json.dumps([seed, said]).encode()).digest()[:16]


def _marked(held_out: Examples, examples: Examples) -> Iterator[tuple[str, Example | str, bool]]:
    """All examples, those of `held_out` first, and whether they are that."""
    for given, held in ((held_out, True), (examples, False)):
        for place, example in given:
            yield place, example, held


def _record(
    example: Example | str, choice: Choice, seed: int, too_long: TooLong
) -> tuple[dict[str, Any] | str, bytes]:
    """A line to be written, or why there is none; and the key of its prompt, from which all chance comes."""
    good = example if isinstance(example, str) else checked(example)
    if isinstance(good, str):
        return good, b""
    for said in texts_of(good):
        if reason := too_long(said):
            return reason, b""
    if isinstance(good, Conversation):
        return record_of(good, choice, Random(seed)), prompt_key(good.opening, seed)
    key = prompt_key(good.prompt, seed)
    answers = "\0".join(good.answers)  # so that questions asked twice do not draw alike
    return record_of(good, choice, Random(f"{key.hex()}{answers}")), key


def _drawn(key: bytes, val_percent: float) -> bool:
    return int.from_bytes(key[:8]) < val_percent / 100 * 2**64


def _write(file: TextIO, record: dict[str, Any]) -> None:
    file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _hand_over(directory: Path, counts: Counts) -> None:
    """Name the files what they are called, if there is anything in them; of the others none is left."""
    for split, name in NAMES.items():
        if counts.written["train"] and counts.written[split]:
            os.replace(_aside(directory, name), directory / name)
        elif counts.written["train"]:
            (directory / name).unlink(missing_ok=True)  # of an earlier build
    if not counts.written["train"]:
        raise UserError("\n  ".join(["nothing is left to train on:", *counts.lines()]))


def _aside(directory: Path, name: str) -> Path:
    return (directory / name).with_suffix(".partial")
