"""A data set's numbers for people: tables on the terminal, and a histogram of lengths as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from tutelage.data.stats import Copies, Tally

_BINS = 50


def counts_table(tallies: Mapping[str, Tally], bad_rows: Mapping[str, int]) -> Table:
    """How many rows and messages each split has, and how many come twice."""
    table = Table(title="rows", title_justify="left")
    for name in (
        "",
        "rows",
        "bad rows",
        "words",
        "characters",
        "messages a row",
        "same rows",
        "same prompts",
    ):
        table.add_column(name, justify="right" if name else "left")
    for split, tally in tallies.items():
        messages = f"{np.mean(tally.messages):.1f}" if sum(tally.messages) else "-"
        table.add_row(
            split,
            f"{len(tally):,}",
            f"{bad_rows[split]:,}",
            f"{sum(tally.words):,}",
            f"{sum(tally.characters):,}",
            messages,
            _share(tally.same_rows.count, len(tally)),
            _share(tally.same_prompts.count, tally.prompts) if tally.prompts else "-",
        )
    return table


def roles_table(tallies: Mapping[str, Tally], tokens: Mapping[str, Mapping[str, int]]) -> Table:
    """Who says how much; tokens where a tokenizer counted them."""
    table = Table(title="who speaks", title_justify="left")
    for name in ("", "role", "messages", "words", "words a message", *(["tokens"] if tokens else [])):
        table.add_column(name, justify="left" if name in ("", "role") else "right")
    for split, tally in tallies.items():
        for role, count in tally.role_messages.most_common():
            words = tally.role_words[role]
            # Of plain text all tokens are of no role.
            counted = tokens.get(split, {}).get("other" if role == "text" else role, 0)
            cells = [f"{count:,}", f"{words:,}", f"{words / count:,.1f}"]
            table.add_row(split, role, *cells, *([f"{counted:,}"] if tokens else []))
    return table


def lengths_table(spreads: Mapping[str, Mapping[str, float]], unit: str) -> Table:
    """Mean, percentiles (p95: 95 % have at most so many) and the longest, of each split."""
    table = Table(title=f"{unit} in a row", title_justify="left")
    names = next(iter(spreads.values()))
    for name in ("", *names):
        table.add_column(name, justify="right" if name else "left")
    for split, numbers in spreads.items():
        table.add_row(split, *(f"{value:,.0f}" for value in numbers.values()))
    return table


def copies_lines(what: str, copies: Copies) -> list[str]:
    """The first rows that come twice, and what they are the same as."""
    if not copies.count:
        return []
    named = [f"  {twin.place} is {twin.first}" for twin in copies.named]
    more = copies.count - len(named)
    return [f"{copies.count:,} {what}:", *named, *([f"  and {more:,} more"] if more else [])]


def draw_lengths(lengths: Mapping[str, np.ndarray], unit: str, limit: int | None, path: Path) -> None:
    """Write the histogram as PNG: the share of each split's rows at each length, and what fits."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    longest = max(int(values.max()) for values in lengths.values())
    edges = np.linspace(0, longest + 1, min(_BINS, longest + 1) + 1)
    for split, values in lengths.items():
        weights = np.full(len(values), 100 / len(values))
        axes.hist(
            values, bins=list(edges), weights=weights, alpha=0.6, label=f"{split}, {len(values):,} rows"
        )
    if limit is not None and limit <= longest:
        axes.axvline(limit, color="black", linestyle="--", label=f"{limit:,} fit")
    axes.set_xlabel(f"{unit} in a row")
    axes.set_ylabel("% of rows")
    axes.legend()
    figure.savefig(path, dpi=120)


def numbers_of(tally: Tally, bad_rows: int) -> dict[str, Any]:
    """What `counts_table` and `roles_table` say, for a machine."""
    return {
        "rows": len(tally),
        "bad_rows": bad_rows,
        "messages": sum(tally.messages),
        "roles": {
            role: {"messages": count, "words": tally.role_words[role]}
            for role, count in tally.role_messages.items()
        },
        "same_rows": copies_numbers(tally.same_rows),
        "same_prompts": copies_numbers(tally.same_prompts),
    }


def copies_numbers(copies: Copies) -> dict[str, Any]:
    """How many, and the first of them."""
    return {"count": copies.count, "first": [[twin.place, twin.first] for twin in copies.named]}


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({100 * part / whole:.1f} %)" if part else "0"


def shortened(text: str, most: int = 300) -> str:
    """A text's beginning, on one line."""
    flat = " ".join(text.split())
    return flat if len(flat) <= most else f"{flat[:most]} [… {len(flat) - most:,} more characters]"


def example_lines(place: str, said: Sequence[tuple[str, str]]) -> list[str]:
    """A row as lines of a role and what it says."""
    return [f"{place}:", *(f"  {role:<10} {shortened(text)}" for role, text in said)]
