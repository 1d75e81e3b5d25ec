"""The texts of data files, for commands that look at nothing else: lines, records, what messages say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.recipes.saying import say

if TYPE_CHECKING:
    from tutelage.data.read import Rows


def choose(
    paths: Sequence[str],
    *,
    splits: Sequence[str],
    num_samples: Sequence[float],
    skip_bad_rows: bool,
    cache_dir: Path | None,
    flags: str,
) -> list[Rows]:
    """The rows to read of each path; bad ones are refused, or skipped aloud.

    `flags` is what the names of the flags begin with: --train_, say."""
    from tutelage.data.faults import Faults
    from tutelage.data.paths import find_data
    from tutelage.data.read import sample_together, scan
    from tutelage.data.sources import parse_sources

    found = find_data(paths, splits, cache_dir=cache_dir, log=say, flag=f"{flags}data_splits")
    scanned = [scan(source) for source in parse_sources(found)]
    faults = Faults()
    for rows in scanned:
        faults.extend(rows.faults)
    if faults.count and skip_bad_rows:
        say(f"{faults.count:,} bad rows skipped, the first of them {faults.named[0]}")
    elif faults.count:
        faults.refuse()
    chosen = []
    for number, amount in enumerate(num_samples or (-1.0,) * len(found)):
        parts = [rows for rows in scanned if rows.source.number == number]
        chosen += sample_together(parts, amount, str(found[number]), f"{flags}num_samples")
    return [rows for rows in chosen if len(rows)]


def sample_bytes(chosen: list[Rows], limit: int) -> list[Rows]:
    """The rows, or where they have more than about `limit` bytes of text a sample of so many, aloud."""
    size = sum(map(_bytes_of, chosen))
    if size <= limit:
        return chosen
    share = limit / size
    fewer = [rows.sample(max(share, 1 / len(rows))) for rows in chosen]  # of each path one row at least
    say(
        f"learning from {sum(map(len, fewer)):,} of {sum(map(len, chosen)):,} rows, drawn by chance: all "
        f"have about {size:,.0f} bytes of text, and --max_train_bytes is {limit:,}"
    )
    return fewer


def texts(chosen: Sequence[Rows]) -> Iterator[str]:
    """Every text, and what every message of a conversation says."""
    for _, text in placed_texts(chosen):
        yield text


def placed_texts(chosen: Sequence[Rows]) -> Iterator[tuple[str, str]]:
    """(`file:line`, text) of what `texts` gives."""
    from tutelage.data.read import load_rows

    for rows in chosen:
        for line, row in zip(rows.lines, load_rows(rows.source, rows.offsets), strict=True):
            place = rows.source.place(line)
            if isinstance(row, str):
                yield place, row
            else:
                yield from ((place, message["content"]) for message in row)


def _bytes_of(rows: Rows) -> float:
    """About how many bytes of text the rows have, judged by a thousand of them."""
    from dataclasses import replace

    step = -(-len(rows) // 1000)
    some = replace(rows, lines=rows.lines[::step], offsets=rows.offsets[::step])
    return sum(len(text.encode()) for text in texts([some])) * len(rows) / len(some)
