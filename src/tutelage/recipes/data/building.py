"""What the builders of data sets share: their flags, where rows come from, and what is said of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.errors import UserError
from tutelage.recipes.saying import say

if TYPE_CHECKING:
    from tutelage.data.builders.raw_rows import Row
    from tutelage.data.builders.records import Choice, Example
    from tutelage.data.builders.writing import Examples, TooLong

    ReadFile = Callable[[Path], Iterator[tuple[str, Example | str]]]


SAY_EVERY = 10  # seconds
FORMS = ("jsonl", "json", "parquet", "csv")  # of files, by their names, that rows are read from


@dataclass(frozen=True, kw_only=True, slots=True)
class Building:
    input: tuple[str, ...]  # files, folders of them, local:DIR or hub ids
    input_splits: tuple[str, ...] = ()  # of each input that is a data set of the hub or local:; - for files
    val_input: tuple[str, ...] = ()  # what to hold out, instead of val_percent
    val_input_splits: tuple[str, ...] = ()  # the same of each val_input
    output_dir: Path
    val_percent: float = 5.0  # of the prompts, held out in val.jsonl
    seed: int = 1
    cache_dir: Path | None = None  # of data sets written out as files; default ~/.cache/tutelage
    max_words: int | None = None  # of all that is said; a longer example is left out
    tokenizer: str | None = None  # of the model that will learn it, to count tokens with
    max_seq_len: int | None = None  # tokens of all that is said, without the template's; a longer is left out
    overwrite: bool = False  # replace what output_dir holds

    def __post_init__(self) -> None:
        if not self.input:
            raise UserError("input names no path")
        if not 0 <= self.val_percent < 100:
            raise UserError(f"val_percent is {self.val_percent:g}, must be 0 or more and below 100")
        for name in ("max_words", "max_seq_len"):
            if (most := getattr(self, name)) is not None and most < 1:
                raise UserError(f"{name} is {most}, must be at least 1")
        if (self.tokenizer is None) != (self.max_seq_len is None):
            raise UserError("max_seq_len and tokenizer go together: tokens are counted with a tokenizer")


def each(of_row: Callable[[Row], Example | str]) -> ReadFile:
    """What reads a file a row at a time, each an example or why there is none."""

    def read(path: Path) -> Iterator[tuple[str, Example | str]]:
        from tutelage.data.builders.raw_rows import questions_of, rows_of

        for place, row in questions_of(rows_of(path)):
            yield place, row if isinstance(row, str) else of_row(row)

    return read


def build(
    config: Building,
    read: ReadFile,
    choice: Choice,
    forms: tuple[str, ...] = FORMS,
    chosen: Callable[[Path], bool] = lambda path: True,
) -> None:
    """Find the files, write the data set, say what became of the rows.

    `forms` are those of the files that can be read; of them only the `chosen` ones are."""
    from tutelage.data.builders.writing import NAMES, write

    files = _files(config.input, config.input_splits, config, "--input_splits", forms, chosen)
    held_out = _files(config.val_input, config.val_input_splits, config, "--val_input_splits", forms, chosen)
    outputs = [config.output_dir / name for name in NAMES.values()]
    for path in outputs:
        if path.resolve() in {file.resolve() for file in [*files, *held_out]}:
            raise UserError(f"{path} would be written over, and is read; give another --output_dir")
        if path.exists() and not config.overwrite:
            raise UserError(f"{path} exists; give --overwrite to replace it, or another --output_dir")
    counts = write(
        _together(files, read),
        _together(held_out, read),
        config.output_dir,
        choice=choice,
        val_percent=0 if held_out else config.val_percent,
        seed=config.seed,
        too_long=_too_long(config),
    )
    for line in counts.lines():
        say(line)
    if config.val_percent and not counts.written["val"]:
        say("no prompt was drawn to be held out: there is no val.jsonl")
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
                say(f"file {number} of {len(files)}: {count:,} rows of {file}")


def _too_long(config: Building) -> TooLong:
    """What says of an example whether it is left out for its length."""
    words, tokens = config.max_words, config.max_seq_len
    tokenizer = None
    if config.tokenizer is not None:
        from tutelage.checkpoint.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(config.tokenizer)

    def too_long(said: list[str]) -> str | None:
        if words is not None and sum(len(text.split()) for text in said) > words:
            return f"more than {words:,} words"
        if tokenizer is not None and tokens is not None:
            count = sum(len(tokenizer.encode(text)) for text in said)
            return f"more than {tokens:,} tokens" if count > tokens else None
        return None

    return too_long


def _files(
    paths: tuple[str, ...],
    splits: tuple[str, ...],
    config: Building,
    flag: str,
    forms: tuple[str, ...],
    chosen: Callable[[Path], bool],
) -> list[Path]:
    """The files of what was given: data sets are written out as such, folders are looked through."""
    from tutelage.data.cache import DEFAULT_DIR
    from tutelage.data.paths import files_of, form_of, one_each
    from tutelage.data.saved import is_data_set, written_rows

    cache_dir, files = (config.cache_dir or DEFAULT_DIR).expanduser(), list[Path]()
    for given, split in zip(paths, one_each(splits, paths, flag), strict=True):
        if is_data_set(given):
            files.append(written_rows(given, split, cache_dir, say, flag))
            continue
        found = files_of(given, split, flag, forms=forms)
        for file in found.files:
            if form_of(file.path) not in forms:
                raise UserError(f"{file.path} cannot be read: a builder reads {', '.join(forms)} by its name")
        files += [file.path for file in found.files]
    if files and not any(map(chosen, files)):
        named = ", ".join(sorted({file.name.split(".")[0] for file in files})[:5])
        raise UserError(f"none of the {len(files)} files is one that was asked for; there are {named}, ...")
    return [file for file in files if chosen(file)]
