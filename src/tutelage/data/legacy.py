"""Data files of older systems, read record by record: conversations, tokens, answers in order, prompts.

universal-llm-trainer    NAME.pkl: {key: {"train": [...], "validation": [...]}} of input, instruction, output
InstructLLaMA            train.pkl, validation.pkl: tokens of prompts, of prompts and completions, of answers
instruct storyteller     data00.bin, labels00.bin, …: rows of 350 int16, −100 where there is nothing
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tutelage.data.asked import Asked
from tutelage.data.encoded import Answered
from tutelage.data.faults import Faults
from tutelage.data.inert_pickle import GROWTH, SLACK, read_pickle
from tutelage.data.pickled_arrays import elements, numbers, table
from tutelage.errors import UserError
from tutelage.text.messages import message_faults

Kind = Literal["conversations", "tokens", "answers", "prompts"]
STORY_ROW, STORY_NOTHING = 350, -100
_STORY_SHARD = re.compile(r"data(\d+)\.bin")
_BLOCK = 4096  # rows of stories read at a time
_KNOWN = "as universal-llm-trainer's (key -> train, validation) and InstructLLaMA's (a list) do"
_SPLITS = {"train": "train", "validation": "val", "val": "val", "valid": "val", "test": "test"}


@dataclass(slots=True)
class Room:
    """Bytes that what a pickle stands for may take: its lists may stand in it many times at no cost."""

    path: Path
    left: int

    def charge(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise UserError(
                f"{self.path}: its records hold more than {GROWTH} times its size, as a bomb's would"
            )


@dataclass(slots=True)
class Part:
    """The records of one split of a file, and what they are."""

    split: str  # train, val, test
    kind: Kind
    source: Path
    records: list[Any]
    room: Room


def parts_of(path: Path) -> list[Part]:
    """What a pickle, or a directory of them, holds."""
    files = [path] if path.is_file() else sorted(path.glob("*.pkl"))
    if not files:
        raise UserError(f"{path} holds no .pkl file")
    return [part for file in files for part in _parts_of_pickle(file)]


def story_shards(directory: Path) -> list[Path]:
    """The dataNN.bin of a storyteller's directory, in order; each has its labelsNN.bin."""
    found = [path for path in directory.glob("data*.bin") if _STORY_SHARD.fullmatch(path.name)]
    for path in found:
        labels = _labels(path)
        if not labels.is_file():
            raise UserError(f"{path} has no {labels.name} beside it, which says what is learned")
        for each in (path, labels):
            if each.stat().st_size % (2 * STORY_ROW):
                raise UserError(
                    f"{each} has {each.stat().st_size:,} bytes, which are no whole rows of {STORY_ROW} int16"
                )
        if path.stat().st_size != labels.stat().st_size:
            raise UserError(f"{path} and {labels.name} have not the same number of rows")
    return sorted(found, key=lambda path: (len(path.name), path.name))


def stories(path: Path, faults: Faults) -> Iterator[Answered]:
    """The rows of one shard: a prompt whose labels are masked, a story, and nothing to the end."""
    tokens, labels = (
        np.memmap(each, "<i2", mode="r").reshape(-1, STORY_ROW) for each in (path, _labels(path))
    )
    for start in range(0, len(tokens), _BLOCK):
        rows = zip(tokens[start : start + _BLOCK], labels[start : start + _BLOCK], strict=True)
        for line, (row, label) in enumerate(rows, start=start + 1):
            length, learned = _end(row), label != STORY_NOTHING
            first = int(learned.argmax()) if learned.any() else STORY_ROW
            wanted = np.where(
                (np.arange(STORY_ROW) >= first) & (np.arange(STORY_ROW) < length), row, STORY_NOTHING
            )
            if first >= length:
                faults.add(f"{path}:{line}", "none of its tokens is learned")
            elif not np.array_equal(wanted, label):
                faults.add(f"{path}:{line}", "its labels are not its own tokens after a masked prompt")
            else:
                whole = row[:length].astype(np.int64)
                yield Answered(line, whole[:first], [whole[first:]])


def conversations(part: Part, faults: Faults) -> Iterator[list[dict[str, str]]]:
    """universal-llm-trainer's records as messages; its input is what the system says."""
    for line, record in enumerate(part.records, start=1):
        messages = _messages(record)
        fault = messages if isinstance(messages, str) else message_faults(messages)
        if fault is None and isinstance(messages, list):
            part.room.charge(sum(len(message["content"]) for message in messages))
            yield messages
        else:
            faults.add(f"{part.source}:{line}", str(fault))


def token_records(part: Part, faults: Faults, prompt_weight: float) -> Iterator[Answered]:
    """InstructLLaMA's prompts with completions, or answers with the prompt that they share."""
    for line, record in enumerate(part.records, start=1):
        keys = ("tokens",) if part.kind == "answers" else ("prompt_tokens", "completion_tokens")
        values = [record.get(key) for key in keys] if isinstance(record, dict) else [None]
        if part.kind == "answers":
            values = list(elements(values[0]) or [None])
        lists = [numbers(value) for value in values]
        tokens = [each for each in lists if each is not None]
        part.room.charge(sum(each.nbytes for each in tokens))
        if len(tokens) < len(lists):
            faults.add(
                f"{part.source}:{line}", f"not an object with lists of token ids under {' and '.join(keys)}"
            )
        elif part.kind == "tokens":
            yield Answered(line, tokens[0], [tokens[1]], prompt_weight)
        elif len(tokens) < 2:
            faults.add(f"{part.source}:{line}", "it has one answer, and nothing to compare it with")
        else:
            shared = _shared(tokens)
            yield Answered(line, tokens[0][:shared], [each[shared:] for each in tokens])


def prompts(part: Part, faults: Faults) -> Iterator[np.ndarray]:
    """InstructLLaMA's prompts alone."""
    for line, record in enumerate(part.records, start=1):
        tokens = numbers(record.get("prompt_tokens")) if isinstance(record, dict) else None
        if tokens is None or not len(tokens) or tokens.min() < 0:
            faults.add(f"{part.source}:{line}", "not an object with a list of token ids under prompt_tokens")
        else:
            part.room.charge(tokens.nbytes)
            yield tokens


def _parts_of_pickle(path: Path) -> list[Part]:
    value, room = read_pickle(path), Room(path, SLACK + GROWTH * path.stat().st_size)
    if isinstance(value, dict):
        splits: dict[str, list[Any]] = {}
        for key, data in value.items():
            if not isinstance(data, dict):
                raise UserError(f"{path}: {key[:40]!r} is no object of splits, {_KNOWN}")
            for split, rows in data.items():
                if rows is not None:
                    splits.setdefault(_split(str(split)), []).extend(
                        _rows(rows, f"{key[:40]}/{split[:40]}", room)
                    )
        return [Part(split, "conversations", path, rows, room) for split, rows in splits.items()]
    rows = _rows(value, "it", room)
    if not rows:
        raise UserError(f"{path} holds no records, {_KNOWN}")
    return [Part(_split(path.stem), _kind(rows[0], path), path, rows, room)]


def _rows(value: Any, where: str, room: Room) -> list[Any]:
    rows = elements(value)
    found = table(value) if rows is None else iter(rows)
    if found is None:
        kind = value.name if isinstance(value, Asked) else type(value).__name__
        raise UserError(
            f"{room.path}: {where} is a {kind}, not a list of records nor a data set held in memory; "
            "save that with save_to_disk and give local:DIR"
        )
    kept = list(found)
    room.charge(8 * len(kept))
    return kept


def _split(name: str) -> str:
    return _SPLITS.get(name, "train")


def _kind(record: Any, path: Path) -> Kind:
    keys = record.keys() if isinstance(record, dict) else set()
    if {"prompt_tokens", "completion_tokens"} <= keys:
        return "tokens"
    if "tokens" in keys:
        return "answers"
    if "prompt_tokens" in keys:
        return "prompts"
    if {"instruction", "output"} <= keys:
        return "conversations"
    found = ", ".join(repr(key[:40]) for key in list(keys)[:5]) or "no keys"
    raise UserError(
        f"{path}: its first record has {found}; known are "
        "prompt_tokens and completion_tokens, tokens, prompt_tokens alone, and input, instruction and output"
    )


def _messages(record: Any) -> list[dict[str, str]] | str:
    """The messages of a record, or what is wrong with it."""
    if not isinstance(record, dict) or not {"instruction", "output"} <= record.keys():
        return "not an object with instruction and output"
    system, asked, said = (_texts(record.get(key)) for key in ("input", "instruction", "output"))
    if system is None or asked is None or said is None:
        return "its input, instruction and output are not texts or lists of texts"
    if len(asked) != len(said):
        return f"it has {len(asked)} instructions and {len(said)} outputs"
    if len(system) > 1:
        return f"it has {len(system)} inputs, and one is the most"
    messages = [{"role": "system", "content": text} for text in system if text.strip()]
    for question, answer in zip(asked, said, strict=True):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def _texts(value: Any) -> list[str] | None:
    values = [] if value is None else [value] if isinstance(value, str) else value
    plain = isinstance(values, list | tuple) and all(isinstance(each, str) for each in values)
    return list(values) if plain else None


def _shared(answers: list[np.ndarray]) -> int:
    """How many tokens all begin with, so that each has one left: in a ranking they say nothing."""
    count = min(map(len, answers)) - 1
    for other in answers[1:]:
        differ = np.flatnonzero(answers[0][: max(count, 0)] != other[: max(count, 0)])
        count = int(differ[0]) if len(differ) else count
    return max(count, 0)


def _labels(path: Path) -> Path:
    return path.with_name(path.name.replace("data", "labels", 1))


def _end(row: np.ndarray) -> int:
    """Where the padding of a row begins."""
    kept = np.flatnonzero(row != STORY_NOTHING)
    return int(kept[-1]) + 1 if len(kept) else 0
