"""A contestant's side of the race: it warms up, says so, and then takes as many steps as it is told.

The referee writes a number to its standard input; the contestant takes that many steps and answers each with
a line of JSON. At the end of the input it says what memory it used, and stops.
"""

import json
import os
import resource
import sys
import time
from typing import Any


class Finished(Exception):
    """The referee has seen enough."""


class Pace:
    """Stands at the end of every step of a training loop that knows nothing of it."""

    def __init__(self) -> None:
        # What libraries print goes to the log, and only JSON to the referee.
        self._answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self._left = 0
        self._warm = False
        self._steps_a_pass = 0

    def warm_up(self, steps: int, *, steps_a_pass: int) -> None:
        """From here on, `steps` steps are not timed; a pass over the data takes `steps_a_pass`."""
        self._left, self._steps_a_pass = steps, steps_a_pass
        self._mark()

    def step_done(self) -> None:
        """Report the step and, when all that were asked for are done, wait for more; Finished if none."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        if self._warm:
            self._say({"seconds": wall, "cpu_seconds": cpu})
        self._left -= 1
        if self._left <= 0:
            if not self._warm:
                self._say({"ready": True, "steps_a_pass": self._steps_a_pass})
                self._warm = True
            order = sys.stdin.readline()
            if not order.strip():
                raise Finished
            self._left = int(order)
        self._mark()

    def goodbye(self, facts: dict[str, Any]) -> None:
        """Say what the whole race took: peak resident memory in MB, and whatever else there is to tell."""
        self._say({"peak_mb": peak_mb(), **facts})

    def _mark(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def _say(self, answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=self._answers, flush=True)


def peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
