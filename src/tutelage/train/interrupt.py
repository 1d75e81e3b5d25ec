"""Ctrl-C and SIGTERM end a run after a whole step, saved."""

import signal
from collections.abc import Callable
from types import FrameType, TracebackType

from tutelage import dist


class Signals:
    """While open, the first SIGINT or SIGTERM is noted in `received`; a second ends the process at once."""

    def __init__(self, say: Callable[[signal.Signals], None]) -> None:
        self.received: signal.Signals | None = None
        self._say = say  # called with the first one, at once

    def __enter__(self) -> "Signals":
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self.received = self.received is not None, signal.Signals(number)
        if dist.launched() > 1:  # torchrun may send it more than once, and kills after 30 seconds
            if not again:
                self._say(self.received)
            return
        # Not what they were before: a shell lets commands in the background ignore Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._say(self.received)
