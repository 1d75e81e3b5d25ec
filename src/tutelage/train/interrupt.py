"""Ctrl-C and SIGTERM end a run after a whole step, saved."""

import signal
from collections.abc import Callable
from types import FrameType, TracebackType


class Signals:
    """While open, the first SIGINT or SIGTERM is noted in `received`; a second has its usual effect."""

    def __init__(self, say: Callable[[signal.Signals], None]) -> None:
        self.received: signal.Signals | None = None
        self._say = say  # called with the first one, at once

    def __enter__(self) -> "Signals":
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()
        self._say(self.received)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
