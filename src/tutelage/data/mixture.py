"""Rows of several paths by weight, for the `Loader`: a mixture of orders, each of one path.

A path with few samples is passed several times while another is passed once; every pass has an order of its
own. An epoch has as many rows as all paths have together in one pass.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tutelage.data.batch import Group, Sample
from tutelage.data.order import Groups, Order
from tutelage.data.shares import Shares, shares_of
from tutelage.errors import UserError


class Mixed:
    """An `Order` of orders: row by row, one of them is drawn by weight."""

    def __init__(
        self,
        store: Groups,
        weights: Sequence[float],
        order_of: Callable[[Groups, int], Order],
        *,
        seed: int,
    ) -> None:
        """`order_of` makes the order of one path's groups, given a number to shuffle by."""
        paths = store.paths
        self.shares = shares_of(weights, len(weights))
        members = [np.flatnonzero(paths == path) for path in range(len(weights))]
        if empty := [str(path + 1) for path, own in enumerate(members) if not len(own)]:
            raise UserError(f"nothing is left to learn from in path {', '.join(empty)} of the mixture")
        self._orders = [order_of(_Part(store, own), seed + path) for path, own in enumerate(members)]
        self._turns = Shares(self.shares, seed)
        self._begun = [[0] for _ in self._orders]  # rows of each path before each pass over it
        self._lock = threading.Lock()
        self._rows = sum(order.rows(0) for order in self._orders)
        self.length = self._orders[0].length
        self.deepest = max(order.deepest for order in self._orders)
        each = [order.positions / order.rows(0) for order in self._orders]  # positions of a row
        read = [share * size for share, size in zip(self.shares, each, strict=True)]
        self.positions = round(self._rows * sum(read))
        self.context = float(np.average([order.context for order in self._orders], weights=read))
        self.facts: dict[str, Any] = {
            **self._orders[0].facts,
            "data": " ".join(order.facts["data"] for order in self._orders),
            "weights": " ".join(map(repr, self.shares)),
            "seed": seed,
        }

    @property
    def passes(self) -> list[float]:
        """How often an epoch passes over each path, in the mean."""
        return [
            share * self._rows / order.rows(0) for share, order in zip(self.shares, self._orders, strict=True)
        ]

    def rows(self, epoch: int) -> int:
        return self._rows

    def row(self, epoch: int, number: int) -> list[Sample]:
        order, turn, at = self._place(epoch, number)
        return order.row(turn, at)

    def ids(self, epoch: int, number: int) -> list[str]:
        order, turn, at = self._place(epoch, number)
        return order.ids(turn, at)

    def longest(self, count: int) -> list[list[Sample]]:
        rows = [row for order in self._orders for row in order.longest(count)]
        return sorted(rows, key=lambda row: -sum(sample.positions for sample in row))[:count]

    def _place(self, epoch: int, number: int) -> tuple[Order, int, int]:
        """The order of an epoch's row, the pass over that order, and the row of that pass."""
        source, taken = self._turns.place(epoch * self._rows + number)
        order, begun = self._orders[source], self._begun[source]
        with self._lock:
            while begun[-1] <= taken:
                begun.append(begun[-1] + order.rows(len(begun) - 1))
        turn = bisect_right(begun, taken) - 1
        return order, turn, taken - begun[turn]


class _Part:
    """Some of the groups of a data set."""

    def __init__(self, store: Groups, chosen: np.ndarray) -> None:
        self._store, self._chosen = store, chosen
        self.positions, self.paths = store.positions[chosen], store.paths[chosen]
        self.depths = store.depths_of(chosen)
        self.fingerprint = f"{store.fingerprint}/{self.paths[0]}"

    def __len__(self) -> int:
        return len(self._chosen)

    def group(self, index: int) -> Group:
        return self._store.group(int(self._chosen[index]))

    def id(self, index: int) -> str:
        return self._store.id(int(self._chosen[index]))

    def depths_of(self, chosen: np.ndarray) -> np.ndarray:
        return self._store.depths_of(self._chosen[chosen])
