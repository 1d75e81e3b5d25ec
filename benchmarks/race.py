"""The referee's side of the race: contestants in processes of their own take turns on the same machine."""

import json
import os
import statistics
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
GRACE = 300  # seconds after the deadline in which a round may end


@dataclass(slots=True)
class Contestant:
    """A program that keeps the pace, and what it did: `tokens` a round, seconds of every round."""

    name: str
    command: list[str]
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_mb: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    def times(self, clock: str) -> list[float]:
        """Seconds of every round by this clock, wall or cpu."""
        return self.cpu_seconds if clock == "cpu" else self.seconds


class Runner:
    """A contestant's process. Between its turns it waits and takes no time."""

    def __init__(self, contestant: Contestant, *, threads: int, patience: float) -> None:
        self.contestant = contestant
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in `stop`
        self._process = subprocess.Popen(
            contestant.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env=environment(threads),
        )
        self._guard = threading.Timer(patience, self._process.kill)
        self._guard.start()
        self._steps_a_pass = 0

    def warm_up(self) -> None:
        self._steps_a_pass = self._listen()["steps_a_pass"]

    def take_turn(self, steps: int | None) -> None:
        """One round: these steps, or (None) a pass over the data."""
        steps = steps or self._steps_a_pass
        self._order(f"{steps}\n")
        told = [self._listen() for _ in range(steps)]
        self.contestant.seconds.append(sum(step["seconds"] for step in told))
        self.contestant.cpu_seconds.append(sum(step["cpu_seconds"] for step in told))

    def finish(self) -> None:
        self._order("\n")
        told = self._listen()
        self.contestant.peak_mb = told.pop("peak_mb")
        self.contestant.facts = told
        self._process.wait()

    def stop(self) -> None:
        """End the process, however far it is."""
        self._guard.cancel()
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def _order(self, words: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(words)
            self._process.stdin.flush()
        except BrokenPipeError:
            self._died()

    def _listen(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else self._died()

    def _died(self) -> Any:
        self._log.seek(0)
        last = "".join(self._log.readlines()[-15:])
        raise SystemExit(f"{self.contestant.name} ended or took too long; the last it said:\n{last}")


def race(
    contestants: list[Contestant], *, rounds: int, steps: int | None, threads: int, deadline: float
) -> int:
    """Let all take `rounds` turns one after another, fewer if the deadline would pass; returns how many."""
    runners: list[Runner] = []
    try:
        for contestant in contestants:
            runners.append(Runner(contestant, threads=threads, patience=deadline - time.monotonic() + GRACE))
            runners[-1].warm_up()  # before the next one starts: warming up is work too
            print(f"  {contestant.name} is warm", flush=True)
        for number in range(rounds):
            started = time.monotonic()
            for runner in runners:
                runner.take_turn(steps)
            seconds = ", ".join(f"{c.name} {c.seconds[-1]:.1f}" for c in contestants)
            print(f"  round {number + 1} of {rounds}, seconds: {seconds}", flush=True)
            if number + 1 < rounds and time.monotonic() + (time.monotonic() - started) > deadline:
                print(f"  no time for more than {number + 1} rounds", flush=True)
                rounds = number + 1
                break
        for runner in runners:
            runner.finish()
    finally:
        for runner in runners:
            runner.stop()
    return rounds


def environment(threads: int) -> dict[str, str]:
    """For a process that finds this repository and nobody's network."""
    paths = os.pathsep.join((str(ROOT), str(ROOT / "src")))
    return os.environ | {
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def median_ratio(faster: list[float], slower: list[float]) -> float:
    """Median over rounds of slower / faster: what the machine does to a whole round falls out."""
    return statistics.median(b / a for a, b in zip(faster, slower, strict=True))
