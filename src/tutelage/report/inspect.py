"""Show documents as training sees them: who says what, what of it is learned, where each begins and ends.

It reads the same without colour: every line begins with a role and, where it is learned, a mark.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from rich.console import Console
from rich.text import Text

from tutelage.data.store import SampleStore
from tutelage.text.roles import ROLES
from tutelage.text.tokenizer import Tokenizer

LEARNED_MARK = "┃"
_COLOURS = {
    "system": "magenta",
    "user": "cyan",
    "assistant": "green",
    "tool": "yellow",
    "other": "bright_black",
}
_LEARNED, _UNLEARNED, _INVISIBLE = "bold green", "", "dim"
_LONGEST_RUN = 1200  # characters shown of a run of text: its beginning and its end
_SPELLED = {" ": "·", "\n": "⏎", "\t": "→", "\r": "␍"}
_BARS = 12
_BAR_WIDTH = 40


def preview(
    store: SampleStore,
    tokenizer: Tokenizer,
    *,
    samples: int = 1,
    chosen: Sequence[int] | None = None,
    seed: int = 0,
    console: Console | None = None,
) -> None:
    """Show these documents, or some by chance, and how long all are; on standard error unless told."""
    console = console or Console(file=sys.stderr)
    if chosen is None:
        chosen = sorted(np.random.default_rng(seed).permutation(len(store))[:samples].tolist())
    show_samples(store, chosen, tokenizer, console)
    for line in histogram(store.lengths):
        show_line(console, Text(line))


def show_samples(
    store: SampleStore, chosen: Sequence[int], tokenizer: Tokenizer, console: Console, note: str = ""
) -> None:
    """Print these documents, under a legend of the marks."""
    legend = Text("role       ")
    legend.append(f"{LEARNED_MARK}learned", _LEARNED)
    legend.append("   │not learned   ").append("· ⏎ → ␍", _INVISIBLE).append("  space, line end, tab, return")
    show_line(console, legend)
    for index in chosen:
        for line in sample_lines(store, index, tokenizer, note):
            show_line(console, line)


def show_line(console: Console, line: Text) -> None:
    """Print a line as it is: not wrapped, so that a pipe gets it whole; nothing in it is markup."""
    console.print(line, soft_wrap=True, highlight=False, markup=False)


def sample_lines(store: SampleStore, index: int, tokenizer: Tokenizer, note: str = "") -> Iterator[Text]:
    """One document between two borders, a line for every line of text of one role."""
    sample = store[index]
    tokens, roles = np.asarray(sample.tokens).tolist(), np.asarray(sample.roles).tolist()
    learned = (np.asarray(sample.weights) > 0).tolist()
    yield Text(_heading(store, index, sum(learned[1:])) + note, "bold")
    kinds = groupby(range(len(tokens)), key=lambda at: (roles[at], learned[at]))
    runs = [(kind, list(places)) for kind, places in kinds]
    texts = _texts_of([[tokens[at] for at in places] for _, places in runs], tokenizer)
    for ((role, is_learned), _), text in zip(runs, texts, strict=True):
        for line in re.findall(r"[^\n]*\n|[^\n]+", _shortened(text)) or [""]:
            yield _line(ROLES[role], is_learned, line)
    yield Text("└─ end of document", "bold")


def histogram(lengths: np.ndarray, *, limit: int | None = None, unit: str = "tokens") -> list[str]:
    """How many documents have how many tokens, as lines; `limit` is the most that fit a row."""
    if not len(lengths):
        return ["no documents"]
    width = _round_width((int(lengths.max()) + 1) / _BARS)
    counts = np.bincount(np.asarray(lengths) // width)
    digits = len(f"{width * len(counts):,}")
    lines = [f"{unit} in a document, and how many documents have so many"]
    for number, count in enumerate(counts.tolist()):
        low, high = number * width, (number + 1) * width - 1
        bar = "█" * round(_BAR_WIDTH * count / counts.max()) or ("▏" if count else "")
        mark = f"  ← {limit:,} fit" if limit is not None and low <= limit <= high else ""
        lines.append(f"{low:>{digits},} - {high:>{digits},} {bar:<{_BAR_WIDTH}} {count:,}{mark}")
    middle, most = np.percentile(lengths, [50, 95], method="lower").astype(int)
    lines.append(
        f"{len(lengths):,} documents, {int(lengths.sum()):,} {unit}: mean {lengths.mean():,.0f}, "
        f"median {middle:,}, 95 % have at most {most:,}, longest {int(lengths.max()):,}"
    )
    return lines


def visible(text: str) -> Iterator[tuple[str, bool]]:
    """(characters, are they stand-ins) in order: white space gets a sign, what cannot be printed its code."""
    for spelled, characters in groupby(text, key=lambda character: _spelled(character) is not None):
        if spelled:
            yield "".join(_spelled(character) or "" for character in characters), True
        else:
            yield "".join(characters), False


def _line(role: str, learned: bool, text: str) -> Text:
    line = Text().append(f"{role:<11}", _COLOURS[role])
    line.append(LEARNED_MARK if learned else "│", _LEARNED if learned else _INVISIBLE)
    for characters, stands_in in visible(text):
        line.append(characters, _INVISIBLE if stands_in else _LEARNED if learned else _UNLEARNED)
    return line


def _heading(store: SampleStore, index: int, learned: int) -> str:
    tokens = int(store.lengths[index])
    offsets, row = store.shards[store.shard_of[index]].offsets, store.rows[index]
    whole = int(offsets[row + 1] - offsets[row])
    part = "" if whole == tokens else f" of {whole:,}"
    return f"┌─ {store.id(index)}: {tokens:,}{part} tokens, {learned:,} learned"


def _texts_of(runs: list[list[int]], tokenizer: Tokenizer) -> list[str]:
    """The text of each run, decoded in its context: alone, some tokenizers lose a run's first space."""
    texts, before, tokens = [], "", []
    for run in runs:
        tokens += run
        text = tokenizer.decode(tokens, skip_control=False)
        shared = before.rstrip("\ufffd")  # half a character, which this run may complete
        texts.append(
            text[len(shared) :] if text.startswith(shared) else tokenizer.decode(run, skip_control=False)
        )
        before = text
    return texts


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST_RUN:
        return text
    half = _LONGEST_RUN // 2
    return f"{text[:half]} [… {len(text) - 2 * half:,} more characters …] {text[-half:]}"


def _spelled(character: str) -> str | None:
    """The sign or code to show instead of a character that cannot be seen, or that a terminal might obey."""
    if character in _SPELLED:
        return _SPELLED[character]
    return None if character.isprintable() else character.encode("unicode_escape").decode()


def _round_width(least: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, …"""
    power = 1
    while True:
        for step in (1, 2, 5):
            if step * power >= least:
                return step * power
        power *= 10
