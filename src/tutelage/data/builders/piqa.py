"""PIQA (https://arxiv.org/abs/1911.11641): a goal, the right way to reach it and a wrong one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tutelage.data.builders.raw_rows import Row, questions_of, rows_of, texts
from tutelage.data.builders.records import Ranked
from tutelage.errors import UserError


def examples_of(path: Path) -> Iterator[tuple[str, Ranked | str]]:
    """The questions of one file: PIQA's own, with its labels beside it, or requests of an evaluation.

    `train.jsonl` has its labels in `train-labels.lst`, a 0 or 1 a line. Requests repeat every question, with
    other questions before it for a prompt; taken is the bare question, once."""
    labels = _labels(path)
    for number, (place, row) in enumerate(questions_of(rows_of(path))):
        if labels is not None and number >= len(labels):
            raise UserError(f"{place}: there are only {len(labels):,} labels beside the file")
        if isinstance(row, str):
            yield place, row
        else:
            yield place, ranked_of(row if labels is None else {**row, "label": labels[number]})


def ranked_of(row: Row) -> Ranked | str:
    """The right solution before the wrong one, or why there is none."""
    found = texts(row, "goal", "sol1", "sol2")
    if isinstance(found, str):
        return found
    goal, *solutions = found
    label: Any = row.get("label")
    if label not in (0, 1):
        return "its label is neither 0 nor 1; PIQA's own files want NAME-labels.lst beside NAME.jsonl"
    return Ranked([{"role": "user", "content": goal}], solutions[::-1] if label else solutions)


def _labels(path: Path) -> list[int] | None:
    """The labels that lie beside a file, if there are any."""
    name = path.name.partition(".jsonl")[0]
    beside = path.with_name(f"{name}-labels.lst")
    if not beside.exists():
        return None
    words = beside.read_text(encoding="utf-8").split()
    for number, word in enumerate(words, start=1):
        if word not in ("0", "1"):
            raise UserError(f"{beside}:{number}: {word!r} is neither 0 nor 1")
    return [int(word) for word in words]
