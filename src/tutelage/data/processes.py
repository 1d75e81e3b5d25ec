"""The same work in several processes, its results in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tutelage.errors import UserError

T = TypeVar("T")
_AHEAD = 4  # tasks a process: bounds the results that wait in memory


def in_processes(
    work: Callable[..., T], shared: Any, tasks: Iterable[tuple[Any, ...]], *, workers: int
) -> Iterator[T]:
    """`work(shared, *task)` for every task, in order; `shared` is sent to every process once.

    `work` is a function of a module. One process at most: everything is done here.
    """
    if workers <= 1:
        for task in tasks:
            yield work(shared, *task)
        return
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),  # a fork would inherit the locks of torch's threads
        initializer=_start,
        initargs=(work, shared),
    )
    pending: deque[Future[T]] = deque()
    try:
        for task in tasks:
            pending.append(pool.submit(_work, *task))
            if len(pending) > _AHEAD * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            "a process that encoded data died, most likely for lack of memory; lower --num_data_workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_mine: tuple[Callable[..., Any], Any] | None = None  # the work and what it shares, in a process of the pool


def _start(work: Callable[..., Any], shared: Any) -> None:
    global _mine
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then stops this process
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _mine = (work, shared)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent killed outright tells nobody: without this its processes would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(*task: Any) -> Any:
    assert _mine is not None
    work, shared = _mine
    return work(shared, *task)
