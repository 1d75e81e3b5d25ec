"""Turn published data sets into preferences: prompts with a better and a worse answer, or several ranked.

    tutelage data build hh_rlhf --input train.jsonl.gz --output_dir data/hh_rlhf

Reads .jsonl, .jsonl.gz and .parquet files, folders of them, `local:DIR` (from save_to_disk) and hub ids, and
writes train.jsonl and val.jsonl. Prompts are held out by their hash, so that equal ones stay together.
Rows that cannot be used are counted by reason, with the place of the first.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tutelage.errors import UserError

if TYPE_CHECKING:
    from tutelage.data.builders.preference_build import Examples
    from tutelage.data.builders.preference_records import Choice, Ranked

    ReadFile = Callable[[Path], Iterator[tuple[str, Ranked | str]]]


SAY_EVERY = 10  # seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class _Building:
    input: tuple[str, ...]  # files, folders of them, local:DIR or hub ids
    input_splits: tuple[str, ...] = ()  # of each input that is a data set of the hub or local:; - for files
    val_input: tuple[str, ...] = ()  # what to hold out, instead of val_percent
    val_input_splits: tuple[str, ...] = ()  # the same of each val_input
    output_dir: Path
    val_percent: float = 5.0  # of the prompts, held out in val.jsonl
    seed: int = 1
    cache_dir: Path | None = None  # of data sets written out as files; default ~/.cache/tutelage
    overwrite: bool = False  # replace what output_dir holds

    def __post_init__(self) -> None:
        if not self.input:
            raise UserError("input names no path")
        if not 0 <= self.val_percent < 100:
            raise UserError(f"val_percent is {self.val_percent:g}, must be 0 or more and below 100")


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildHhRlhfConfig(_Building):
    kind: Literal["pairs", "chosen", "prompts"] = "pairs"
    """pairs, conversations with the chosen ending to fine-tune on, or prompts alone"""


def run_hh_rlhf(config: BuildHhRlhfConfig) -> None:
    """Write pairs, the conversations that were chosen, or their prompts."""
    from tutelage.data.builders.hh_rlhf import ranked_of
    from tutelage.data.builders.preference_records import Choice

    _build(config, lambda path: _each(path, ranked_of), Choice(kind=config.kind))


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildStackexchangeConfig(_Building):
    kind: Literal["ranked", "best", "prompts"] = "ranked"
    """ranked answers, conversations with the best one to fine-tune on, or prompts alone"""
    min_answers: int = 2  # with different votes; a question with fewer is skipped
    max_answers: int = 8  # the best are kept
    min_words: int = 8  # of a question, and of each answer
    drop_zero_scores: bool = False  # leave out answers that nobody voted for

    def __post_init__(self) -> None:
        _Building.__post_init__(self)
        if not 2 <= self.min_answers <= self.max_answers:
            raise UserError(
                f"min_answers is {self.min_answers} and max_answers {self.max_answers}; "
                "min_answers must be at least 2 and at most max_answers"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildPiqaConfig(_Building):
    """PIQA's own train.jsonl with train-labels.lst beside it, or requests.jsonl.gz of an evaluation."""

    kind: Literal["pairs", "chosen", "prompts"] = "pairs"
    """pairs, conversations with the right answer to fine-tune on, or prompts alone"""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildUltrafeedbackConfig(_Building):
    kind: Literal["ranked", "pairs", "best", "prompts"] = "ranked"
    """ranked answers, pairs of the best and a random worse one, conversations with the best, or prompts"""
    score: Literal["overall", "fine_grained"] = "overall"  # which of the two that raw rows have


def run_stackexchange(config: BuildStackexchangeConfig) -> None:
    """Write ranked answers, the best ones, or the questions."""
    from tutelage.data.builders.preference_records import Choice
    from tutelage.data.builders.stackexchange import ranked_of

    of_row = partial(ranked_of, min_words=config.min_words, drop_zero_scores=config.drop_zero_scores)
    choice = Choice(kind=config.kind, min_answers=config.min_answers, max_answers=config.max_answers)
    _build(config, lambda path: _each(path, of_row), choice)


def run_piqa(config: BuildPiqaConfig) -> None:
    """Write pairs of a right and a wrong answer, the right ones, or the goals."""
    from tutelage.data.builders.piqa import examples_of
    from tutelage.data.builders.preference_records import Choice

    _build(config, examples_of, Choice(kind=config.kind))


def run_ultrafeedback(config: BuildUltrafeedbackConfig) -> None:
    """Write ranked answers, pairs, the best ones, or the instructions."""
    from tutelage.data.builders.preference_records import Choice
    from tutelage.data.builders.ultrafeedback import ranked_of

    of_row = partial(ranked_of, score=config.score)
    _build(config, lambda path: _each(path, of_row), Choice(kind=config.kind, keep_ties=True))


def _each(
    path: Path, ranked_of: Callable[[dict[str, Any]], Ranked | str]
) -> Iterator[tuple[str, Ranked | str]]:
    """Every row of a file, as ranked answers or why not."""
    from tutelage.data.builders.raw_rows import rows_of

    for place, row in rows_of(path):
        yield place, row if isinstance(row, str) else ranked_of(row)


def _build(config: _Building, read: ReadFile, choice: Choice) -> None:
    """Find the files, write the data set, say what became of the rows."""
    from tutelage.data.builders.preference_build import NAMES, build

    files = _files(config.input, config.input_splits, config, "--input_splits")
    held_out = _files(config.val_input, config.val_input_splits, config, "--val_input_splits")
    outputs = [config.output_dir / name for name in NAMES.values()]
    for path in outputs:
        if path.resolve() in {file.resolve() for file in [*files, *held_out]}:
            raise UserError(f"{path} would be written over, and is read; give another --output_dir")
        if path.exists() and not config.overwrite:
            raise UserError(f"{path} exists; give --overwrite to replace it, or another --output_dir")
    counts = build(
        _together(files, read),
        _together(held_out, read),
        config.output_dir,
        choice=choice,
        val_percent=0 if held_out else config.val_percent,
        seed=config.seed,
    )
    for line in counts.lines():
        print(line, file=sys.stderr)
    if config.val_percent and not counts.written["val"]:
        print("no prompt was drawn to be held out: there is no val.jsonl", file=sys.stderr)
    for path in outputs:
        if path.exists():
            print(path)


def _together(files: list[Path], read: ReadFile) -> Examples:
    """The examples of all files; says now and then how far it is."""
    said = time.monotonic()
    for number, file in enumerate(files, start=1):
        for count, example in enumerate(read(file), start=1):
            yield example
            if time.monotonic() - said >= SAY_EVERY:
                said = time.monotonic()
                print(f"file {number} of {len(files)}: {count:,} rows of {file}", file=sys.stderr)


def _files(paths: tuple[str, ...], splits: tuple[str, ...], config: _Building, flag: str) -> list[Path]:
    """The files of what was given: data sets are written out as such, folders are looked through."""
    from tutelage.data.builders.raw_rows import SUFFIXES, data_files
    from tutelage.data.saved import as_files

    if splits or any(not Path(path).exists() and not path.endswith(SUFFIXES) for path in paths):
        paths = tuple(
            as_files(
                paths,
                splits,
                cache_dir=config.cache_dir,
                log=lambda text: print(text, file=sys.stderr),
                flag=flag,
            )
        )
    return data_files(paths)
