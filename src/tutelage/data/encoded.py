"""Documents that are tokens already, in a directory, as `tutelage data import` makes them.

DIR/encoded.json   of what and how much it is, the vocabulary it needs, and its checksum; written last
DIR/*.bin          tokens, weights, roles and places, as `data/cache.py` keeps encoded rows
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.data.cache import ARRAYS, Shard, open_shard, write_shard
from tutelage.data.comparison import MOST_ANSWERS, UNKNOWN
from tutelage.data.encode import Chunk
from tutelage.data.faults import Faults
from tutelage.errors import UserError
from tutelage.text.roles import ROLE_IDS

if TYPE_CHECKING:
    from tutelage.text.tokenizer import Tokenizer

FORMAT = 1
META = "encoded.json"
FILES = re.compile(rf"{META}|rows/(meta\.json|({'|'.join(ARRAYS)})\.bin)")
_CHUNK = 1024  # records written at a time


@dataclass(slots=True)
class Answered:
    """A prompt and the answers to it, best first, as tokens; with one answer, a document to learn from."""

    line: int  # where it stands in its file, from 1
    prompt: np.ndarray  # int64
    answers: list[np.ndarray]
    prompt_weight: float = 0.0


@dataclass(slots=True)
class Counts:
    """What was written."""

    records: int = 0
    documents: int = 0
    tokens: int = 0
    largest: int = -1  # token
    faults: Faults = field(default_factory=Faults)


def fault_of(record: Answered) -> str | None:
    """What is wrong with a record, in a few words, or None."""
    if not 1 <= len(record.answers) <= MOST_ANSWERS:
        return f"it has {len(record.answers)} answers; 1 to {MOST_ANSWERS} can be kept"
    for tokens in (record.prompt, *record.answers):
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < 1 << 31:
            wrong = tokens.min() if tokens.min() < 0 else tokens.max()
            return f"{wrong} is no token id"
    if not all(len(answer) for answer in record.answers):
        return "its answer has no token"
    if len({answer.tobytes() for answer in record.answers}) < len(record.answers):
        return "two answers are the same, so neither is better"
    return None


def write_encoded(
    directory: Path, records: Iterable[Answered], faults: Faults, *, ranked: bool, source: str, skip: bool
) -> Counts:
    """Fill a new directory with such records. Those with a fault join `faults` and, unless `skip`, end it."""
    counts = Counts(faults=faults)
    arrays = directory / "rows"
    write_shard(arrays, _chunks(records, counts, Path(source)), faults, skip=skip)
    if not counts.documents:
        raise UserError(f"{source} has no record that can be learned from")
    facts = {
        "format": FORMAT,
        "kind": "ranked" if ranked else "jsonl",
        "source": source,
        "documents": counts.documents,
        "tokens": counts.tokens,
        "least_vocabulary": counts.largest + 1,
        "fingerprint": hashlib.sha256((arrays / "meta.json").read_bytes()).hexdigest()[:32],
    }
    (directory / META).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return counts


def encoded_directories(paths: Sequence[str | Path]) -> list[Path]:
    """The directories, if the paths are all `encoded:DIR` or such directories; none if none is."""
    found = [place for path in map(str, paths) if (place := _directory(path)) is not None]
    if found and len(found) < len(paths):
        raise UserError(
            f"{', '.join(map(str, found))} holds tokens and the other paths hold text; train on them one "
            "after the other, or turn all into one of the two"
        )
    return found


def holds_answers(directory: Path) -> bool:
    """Whether its documents are answers to compare."""
    return _facts(directory)["kind"] == "ranked"


def open_encoded(directory: Path, tokenizer: Tokenizer, *, ranked: bool) -> Shard:
    """The documents of a directory; refuses those of another kind, or that need a larger vocabulary."""
    facts = _facts(directory)
    if (facts["kind"] == "ranked") != ranked:
        has, wanted = ("answers to compare", "documents") if facts["kind"] == "ranked" else (
            "documents", "answers to compare"
        )  # fmt: skip
        raise UserError(f"{directory} holds {has}, and this stage learns from {wanted}")
    if facts["least_vocabulary"] > tokenizer.size:
        raise UserError(
            f"{directory} has the token {facts['least_vocabulary'] - 1:,}, and the model's vocabulary ends "
            f"at {tokenizer.size - 1:,}: it was made with another tokenizer"
        )
    rows = directory / "rows"
    whole = (rows / "meta.json").is_file() and facts["fingerprint"] == hashlib.sha256(
        (rows / "meta.json").read_bytes()
    ).hexdigest()[:32]
    shard = open_shard(rows, facts["kind"]) if whole else None
    if shard is None or (len(shard.tokens) and int(shard.tokens.max()) >= facts["least_vocabulary"]):
        raise UserError(f"{directory} is damaged; run the same `tutelage data import` again")
    return replace(shard, key=facts["fingerprint"])


def _directory(path: str) -> Path | None:
    place = Path(path.removeprefix("encoded:")).expanduser()
    try:
        there = (place / META).is_file()
    except OSError:
        there = False
    return place if there or path.startswith("encoded:") else None


def _facts(directory: Path) -> dict[str, Any]:
    path = directory / META
    if not path.is_file():
        below = [str(each.parent) for each in sorted(directory.glob(f"*/{META}"))]
        hint = f"; give encoded:{below[0]}" if below else "; `tutelage data import` makes such directories"
        raise UserError(f"{directory} has no {META}{hint}")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        known = facts["format"] == FORMAT and facts["kind"] in ("jsonl", "ranked")
        if not known or type(facts["least_vocabulary"]) is not int or type(facts["fingerprint"]) is not str:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged; run the same `tutelage data import` again") from error
    return facts


def _chunks(records: Iterable[Answered], counts: Counts, source: Path) -> Iterator[Chunk]:
    batch: list[Answered] = []
    for record in records:
        if fault := fault_of(record):
            counts.faults.add(f"{source}:{record.line}", fault)
            continue
        batch.append(record)
        if len(batch) == _CHUNK:
            yield _chunk(batch, counts)
            batch = []
    if batch:
        yield _chunk(batch, counts)


def _chunk(records: list[Answered], counts: Counts) -> Chunk:
    pairs = [(record, rank) for record in records for rank in range(len(record.answers))]
    tokens = [np.concatenate([record.prompt, record.answers[rank]]) for record, rank in pairs]
    weights, roles = [], []
    for record, rank in pairs:
        lengths = [len(record.prompt), len(record.answers[rank])]
        weights.append(np.repeat(np.array([record.prompt_weight, 1.0], np.float32), lengths))
        roles.append(np.repeat(np.array([ROLE_IDS["user"], ROLE_IDS["assistant"]], np.uint8), lengths))
    joined = np.concatenate(tokens)
    counts.records += len(records)
    counts.documents += len(pairs)
    counts.tokens += len(joined)
    counts.largest = max(counts.largest, int(joined.max()))
    return Chunk(
        lines=np.array([record.line for record, _ in pairs], np.int64),
        lengths=np.array([len(each) for each in tokens], np.int64),
        tokens=joined.astype(np.uint32),
        weights=np.concatenate(weights),
        roles=np.concatenate(roles),
        ranks=np.array([rank for _, rank in pairs], np.uint8),
        scores=np.full(len(pairs), UNKNOWN, np.float32),
        faults=Faults(),
        read=len(records),
    )
