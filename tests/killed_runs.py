"""Processes that end by kill -9: at a moment, or before the n-th change they make to files in a directory.

A server imports everything once and forks, so that a killed run costs a fraction of a second.
"""

import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

PRELOADED = [
    "tiny_runs",
    "test_saver",
    "tutelage.recipes.sft",
    "tutelage.recipes.stage.handing_over",
    "tutelage.recipes.inference",
    "matplotlib.backends.backend_svg",
    "pydantic",
    "tensorboard.compat.proto.event_pb2",
    "tensorboard.summary.writer.record_writer",
]
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}

forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(PRELOADED)


def start(
    function: Callable[..., None], *arguments: Any, log: Path, directory: Path, kill_at: int | None = None
) -> BaseProcess:
    """Call `function` in a new process; with `kill_at` it dies before that change to files in `directory`."""
    _server()
    process = forks.Process(target=_begin, args=(function, arguments, log, directory, kill_at), daemon=True)
    process.start()
    return process


def end(process: BaseProcess, seconds: float = 120) -> int:
    """The exit code of a process, -9 if it was killed."""
    process.join(seconds)
    assert process.exitcode is not None, f"still running after {seconds} s"
    return process.exitcode


def killed_ever_later(begin: Callable[[int], BaseProcess], *, log: Path, stride: int = 1) -> int:
    """Begin again and again, killed at an ever later change, until one is through; returns how many died."""
    for kills in range(1000):
        code = end(begin(1 + kills * stride))
        if code == 0:
            return kills
        assert code == -signal.SIGKILL, log.read_text()
    raise AssertionError("not one was through")


def killed_at_random(
    begin: Callable[[], BaseProcess], *, kills: int, within: float, seed: int, log: Path
) -> None:
    """Begin again and again, killed at some moment within so many seconds; then let one come through."""
    draw = random.Random(seed)
    for _ in range(kills):
        process = begin()
        process.join(draw.uniform(0, within))
        if process.exitcode is None:
            process.kill()
        assert end(process) in (0, -signal.SIGKILL), log.read_text()
    assert end(begin()) == 0, log.read_text()


@cache
def _server() -> None:
    """Start the server where it finds what is found here: of itself it knows PYTHONPATH and no more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()


def _begin(
    function: Callable[..., None], arguments: tuple, log: Path, directory: Path, kill_at: int | None
) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    if kill_at is not None:
        sys.addaudithook(_killer(str(directory), kill_at))
    function(*arguments)


def _killer(directory: str, left: int) -> Callable[[str, tuple], None]:
    def hook(event: str, arguments: tuple) -> None:
        nonlocal left
        if event == "open":
            path, _, flags = arguments
            changes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR) != 0
        else:
            path, changes = arguments[0] if arguments else "", event in CHANGES
        if changes and isinstance(path, str | os.PathLike) and _is_in(os.fspath(path), directory):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def _is_in(path: Any, directory: str) -> bool:
    """Also for the bare names that rmtree removes relative to a directory it holds open."""
    return isinstance(path, str) and (path.startswith(directory) or os.sep not in path)
