"""A bar for work that is counted, shards or bytes: how much is done and how long the rest will take."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_SECONDS_BETWEEN_LINES = 10.0


class Done(Protocol):
    """Tells a bar how much is finished, and of how much where that was not known before."""

    def __call__(self, count: int, total: int | None = None, /) -> None: ...


@contextmanager
def counting(
    what: str, total: int | None, *, unit: Literal["items", "bytes"] = "items", console: Console | None = None
) -> Iterator[Done]:
    """A bar on standard error, to be told how much is done; a line now and then without a terminal."""
    console = console or Console(file=sys.stderr)
    columns = [MofNCompleteColumn()] if unit == "items" else [DownloadColumn(), TransferSpeedColumn()]
    bar = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        *columns,
        TextColumn("ETA"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        disable=not console.is_terminal,
    )
    task = bar.add_task(what, total=total)
    last = time.monotonic()

    def done(count: int, of: int | None = None, /) -> None:
        nonlocal last, total
        total = of or total
        bar.update(task, completed=count, total=total)
        now = time.monotonic()
        if not console.is_terminal and (count == total or now - last > _SECONDS_BETWEEN_LINES):
            last = now
            console.print(f"{what} {_said(count, unit)}/{_said(total, unit)}", highlight=False)

    with bar:
        yield done


def _said(count: int | None, unit: str) -> str:
    if count is None:
        return "?"
    return f"{count:,}" if unit == "items" else f"{count / 1e6:,.1f} MB"
