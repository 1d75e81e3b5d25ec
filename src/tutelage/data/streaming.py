"""Several paths that are read while they are trained on, row by row by weight, for the `Loader`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from tutelage.data.batch import Sample
from tutelage.data.shares import Shares, shares_of
from tutelage.data.sources import Source
from tutelage.data.store import SampleStore
from tutelage.data.windows import Reading, Windows

ENDLESS = 1 << 62  # rows of the only epoch


class Streaming:
    """An `Order` without end: rows of several paths, by weight."""

    def __init__(
        self,
        paths: Sequence[Sequence[Source]],
        reading: Reading,
        *,
        weights: Sequence[float] = (),
    ) -> None:
        """Without `weights` all paths have the same share."""
        self._reading, self._lock = reading, threading.Lock()
        shares = shares_of(list(weights) or [1.0] * len(paths), len(paths))
        self._turns = Shares(shares, reading.seed)
        self._paths = [Windows(sources, reading) for sources in paths]
        self.length = reading.max_seq_len if reading.packed else None
        self.deepest = reading.max_seq_len
        self._beginning: SampleStore | None = None
        self.facts: dict[str, Any] = {
            "data": " ".join(_fingerprint(source) for sources in paths for source in sources),
            "weights": " ".join(map(repr, shares)),
            "packing": reading.packed,
            "row length": reading.max_seq_len,
            "seed": reading.seed,
            "shuffling": True,
            "shuffle buffer": reading.window,
            "rows": f"{paths[0][0].kind} {reading.encoder.origin(paths[0][0].kind)} {reading.too_long}",
        }

    @property
    def positions(self) -> int:
        return ENDLESS  # of an epoch that never ends

    @property
    def context(self) -> float:
        """How many tokens of its document a position sees in the mean of the first window."""
        sizes = self.beginning().positions.astype(np.float64)
        return float((sizes * (sizes + 1) / 2).sum() / max(sizes.sum(), 1.0))

    def beginning(self) -> SampleStore:
        """The first samples of the first path."""
        if self._beginning is None:
            with self._lock:
                self._beginning = self._paths[0].beginning()
        return self._beginning

    def rows(self, epoch: int) -> int:
        return ENDLESS

    def row(self, epoch: int, number: int) -> list[Sample]:
        path, taken = self._turns.place(number)
        with self._lock:
            return self._paths[path].row(taken)

    def ids(self, epoch: int, number: int) -> list[str]:
        path, taken = self._turns.place(number)
        with self._lock:
            return self._paths[path].ids(taken)

    def longest(self, count: int) -> list[list[Sample]]:
        """Rows as long as any can be: what will come is not known."""
        tokens = np.zeros(self._reading.max_seq_len + 1, np.int64)
        ones, roles = np.ones(len(tokens), np.float32), np.zeros(len(tokens), np.uint8)
        return [[Sample(tokens, ones, roles)]] * count

    def state(self, number: int) -> list[dict[str, Any]]:
        """What reading must know to give row `number` and those after it."""
        with self._lock:
            before = self._turns.before(number)
            return [path.state(count) for path, count in zip(self._paths, before, strict=True)]

    def restore(self, state: list[dict[str, Any]]) -> None:
        with self._lock:
            for path, own in zip(self._paths, state, strict=True):
                path.restore(own)


def _fingerprint(source: Source) -> str:
    """A file's name and size: its contents are too much to read before training."""
    return f"{source.path.name}:{source.path.stat().st_size}:{source.shape}:{source.key}:{source.fields}"
