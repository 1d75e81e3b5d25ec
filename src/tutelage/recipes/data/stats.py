"""Count what a data set holds: rows, lengths, who speaks, what would be cut, what comes twice.

    tutelage data stats --train_data_paths chats.jsonl --val_data_paths held_out.jsonl --ckpt_paths MODEL

MODEL, or --tokenizer, counts tokens as training would, rendered with the chat template; without either,
lengths are words. With --val_data_paths it says which held-out rows or prompts are in the training data too.
--output_dir gets the numbers as stats.json and the histogram as lengths.png.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tutelage.errors import UserError

if TYPE_CHECKING:
    from tutelage.data.stats import Tally
    from tutelage.recipes.data.counting import Split


@dataclass(frozen=True, kw_only=True, slots=True)
class DataStatsConfig:
    # Data
    train_data_paths: tuple[str, ...]
    """jsonl:FILE with messages, text or answers to compare, text:FILE, document:FILE, local:DIR, hub ids"""
    train_data_splits: tuple[
        str, ...
    ] = ()  # of each path that is a data set of the hub or local:; - for files
    train_data_shapes: tuple[str, ...] = ()  # of each path, where its records do not say it
    train_num_samples: tuple[float, ...] = ()  # of each path: above 1 a count, up to 1 a share, -1 all
    val_data_paths: tuple[str, ...] = ()  # what is held out: counted too, and looked for in the training data
    val_data_splits: tuple[str, ...] = ()  # the same of each val path
    val_data_shapes: tuple[str, ...] = ()
    val_num_samples: tuple[float, ...] = ()
    data_fields: tuple[str, ...] = ()  # OLD=NEW, other names for keys, like question=instruction
    skip_bad_rows: bool = False  # count rows that cannot be used and go on without them
    num_data_workers: int = 1  # processes that encode
    cache_dir: Path | None = None  # of encoded data; default ~/.cache/tutelage

    # Model and text
    ckpt_paths: tuple[str, ...] = ()  # whose tokenizer counts: an HF directory, a hub id or a .gguf file
    tokenizer: str | None = None  # instead: a directory with a tokenizer
    template_config: str | None = None  # a built-in name, a YAML file, or `model`; default: recognised
    max_seq_len: int | None = None  # positions of the longest document that is not cut; says what would be
    too_long: Literal["truncate", "drop", "split"] = "truncate"  # what would happen to longer ones

    # What is shown
    num_samples: int = 1  # rows of each path, its first ones
    output_dir: Path | None = None  # gets stats.json and lengths.png

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value}, must be at least {least}"
            for name, least in (("max_seq_len", 1), ("num_data_workers", 1), ("num_samples", 0))
            if (value := getattr(self, name)) is not None and value < least
        ]
        if not self.train_data_paths:
            problems.append("train_data_paths names no path")
        if len(self.ckpt_paths) + (self.tokenizer is not None) > 1:
            problems.append("tokens are counted for one model: give one of ckpt_paths, or tokenizer")
        if self.max_seq_len is not None and not self.counts_with:
            problems.append(
                "max_seq_len counts tokens, which takes a tokenizer: give ckpt_paths or tokenizer"
            )
        if problems:
            raise UserError("\n  ".join(problems))

    @property
    def counts_with(self) -> str | None:
        """Where the tokenizer is, if tokens are to be counted."""
        return self.tokenizer or (self.ckpt_paths[0] if self.ckpt_paths else None)


def run(config: DataStatsConfig) -> None:
    """Count, print tables, write files."""
    from rich.console import Console
    from rich.text import Text

    from tutelage.data.stats import spread
    from tutelage.recipes.data.counting import counted
    from tutelage.report.inspect import histogram, show_line
    from tutelage.report.stats_table import copies_lines, counts_table, lengths_table, roles_table

    splits = {"train": counted(config, "train")}
    if config.val_data_paths:
        splits["val"] = counted(config, "val")
    console = Console()
    unit = "tokens" if config.counts_with else "words"
    tallies = {name: split.tally for name, split in splits.items()}
    tokens = {name: split.tokens_of_roles() for name, split in splits.items() if split.store}
    console.print(counts_table(tallies, {name: split.bad_rows for name, split in splits.items()}))
    console.print(roles_table(tallies, tokens))
    console.print(lengths_table({name: spread(split.lengths) for name, split in splits.items()}, unit))
    lines = _example_lines(config, tallies)
    for name, split in splits.items():
        limit = None if config.max_seq_len is None else config.max_seq_len + 1
        lines += ["", f"{name}: {unit}", *histogram(split.lengths, limit=limit, unit=unit)]
        lines += ["", *(f"{name}: {line}" for line in _cut_lines(split))]
        lines += copies_lines(f"rows of {name} were there before", split.tally.same_rows)
        lines += copies_lines(f"prompts of {name} were there before", split.tally.same_prompts)
    lines += _leak_lines(splits)
    for line in lines:
        show_line(console, Text(line))
    if config.output_dir is not None:
        _write(config.output_dir, splits, unit, config.max_seq_len)


def _cut_lines(split: Split) -> list[str]:
    """What would be cut, or where that was not asked for, how much is learned."""
    if split.report is not None:
        return split.report.lines()
    if split.store is None:
        return []
    learned, predicted = int(split.store.learned().sum()), int(split.store.positions.sum())
    share = 100 * learned / max(predicted, 1)
    return [f"{learned:,} of {predicted:,} predicted tokens are learned, {share:.1f} %"]


def _example_lines(config: DataStatsConfig, tallies: dict[str, Tally]) -> list[str]:
    """The first rows of each path."""
    from tutelage.data.read import load_rows
    from tutelage.data.stats import said
    from tutelage.report.stats_table import example_lines

    lines: list[str] = []
    for tally in tallies.values():
        for rows in tally.places:
            first = load_rows(rows.source, rows.offsets[: config.num_samples])
            for line, row in zip(rows.lines, first, strict=False):
                lines += ["", *example_lines(rows.source.place(line), list(said(row)))]
    return lines


def _leak_lines(splits: dict[str, Split]) -> list[str]:
    from tutelage.report.stats_table import copies_lines

    if "val" not in splits:
        return []
    rows, prompts = splits["val"].tally.leaked_from(splits["train"].tally)
    found = copies_lines("different rows of val are in train", rows)
    found += copies_lines("different prompts of val are in train", prompts)
    return ["", *(found or ["no row and no prompt of val is in train"])]


def _write(directory: Path, splits: dict[str, Split], unit: str, limit: int | None) -> None:
    from tutelage.data.stats import spread
    from tutelage.recipes.saying import say
    from tutelage.report.stats_table import copies_numbers, draw_lengths, numbers_of

    directory.mkdir(parents=True, exist_ok=True)
    numbers: dict[str, Any] = {}
    for name, split in splits.items():
        numbers[name] = numbers_of(split.tally, split.bad_rows)
        numbers[name]["characters"] = spread(split.tally.characters)
        numbers[name]["words"] = spread(split.tally.words)
        if split.store is not None:
            learned, predicted = int(split.store.learned().sum()), int(split.store.positions.sum())
            numbers[name]["tokens"] = spread(split.store.lengths)
            numbers[name]["role_tokens"] = split.tokens_of_roles()
            numbers[name]["learned_share"] = learned / max(predicted, 1)
        if split.report is not None:
            cuts = [
                {"reason": cut.reason, "rows": cut.rows, "tokens": cut.tokens} for cut in split.report.cuts
            ]
            numbers[name]["cut"] = {"max_seq_len": limit, "cuts": cuts}
    if "val" in splits:
        rows, prompts = splits["val"].tally.leaked_from(splits["train"].tally)
        numbers["leaked"] = {"rows": copies_numbers(rows), "prompts": copies_numbers(prompts)}
    path = directory / "stats.json"
    path.write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    drawn = {name: split.lengths for name, split in splits.items() if len(split.lengths)}
    if drawn:
        fit = None if limit is None else limit + 1
        draw_lengths(drawn, unit, fit, directory / "lengths.png")
        say(f"wrote {path} and {directory / 'lengths.png'}")
