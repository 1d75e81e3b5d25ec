"""What a person watching a run sees: a bar with loss, rate and time left, or lines without a terminal."""

import resource
import sys
import time
from types import TracebackType

import torch
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

from tutelage import dist

LINE_EVERY = 10  # seconds, where there is no terminal for a bar
STEADINESS = 0.9  # of the moving average of the rate: a single slow step does not shake the time left


class ProgressBar:
    """Shows a run's steps on standard error; without a terminal every `print_freq`-th, as a line."""

    def __init__(
        self,
        *,
        steps: int,
        done: int = 0,
        print_freq: int = 1,
        title: str = "step",
        console: Console | None = None,
    ):
        self.console = console or Console(file=sys.stderr, quiet=dist.rank() > 0)
        self.steps = steps
        self._title = title
        self.print_freq = max(print_freq, 1)
        self._rate = 0.0  # tokens per second
        self._pace = 0.0  # seconds per step
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=steps, completed=done, numbers="")

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """Show a step; returns its tokens per second and peak memory, for whoever keeps them."""
        rate = metrics["tokens"] / metrics["seconds"]
        self._rate = self._rate * STEADINESS + rate * (1 - STEADINESS) if self._rate else rate
        pace = metrics["seconds"]
        self._pace = self._pace * STEADINESS + pace * (1 - STEADINESS) if self._pace else pace
        memory = peak_memory()
        mfu = f"  MFU {metrics['mfu']:.0%}" if "mfu" in metrics else ""
        right = f"  accuracy {metrics['accuracy']:.2f}" if "accuracy" in metrics else ""
        numbers = (
            f"loss {metrics['loss']:.4f}{right}  lr {metrics['lr']:.2e}  norm {metrics['grad_norm']:.2f}  "
            f"{self._rate:,.0f} tokens/s{mfu}  {memory / 2**30:.2f} GiB"
        )
        if self.console.is_terminal:
            self._bar.update(self._task, completed=step, numbers=numbers)
        elif step % self.print_freq == 0 or step == self.steps:
            left = int((self.steps - step) * self._pace)
            clock = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
            self.say(f"step {step}/{self.steps}  {numbers}  ETA {clock}")
        return {"tokens_per_second": rate, "peak_memory_bytes": float(memory)}

    def advance(self, step: int) -> None:
        """Show that so many steps are done, of work that has no numbers."""
        if self.console.is_terminal:
            self._bar.update(self._task, completed=step)
        elif step % self.print_freq == 0 and step < self.steps:
            self.say(f"{self._title} {step}/{self.steps}")

    def say(self, text: str) -> None:
        """A line that stays above the bar."""
        self._bar.console.print(text, highlight=False, soft_wrap=True, markup=False)


class ByteBar:
    """Shows how many bytes of a known number are done; without a terminal a line every ten seconds."""

    def __init__(self, title: str, *, console: Console | None = None):
        self.console = console or Console(file=sys.stderr)
        self._title = title
        self._said = time.monotonic()
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            DownloadColumn(),
            TransferSpeedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=None)

    def __enter__(self) -> "ByteBar":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, done: int, total: int) -> None:
        """Show that `done` of `total` bytes are done."""
        if self.console.is_terminal:
            self._bar.update(self._task, completed=done, total=total)
        elif time.monotonic() - self._said >= LINE_EVERY and done < total:
            self._said = time.monotonic()
            megabytes = f"{done / 1e6:,.1f} of {total / 1e6:,.1f} MB"
            self.console.print(f"{self._title}: {megabytes}", highlight=False, soft_wrap=True)


def peak_memory() -> int:
    """Bytes: the most the GPU held for tensors, or the most this process held where there is no GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
