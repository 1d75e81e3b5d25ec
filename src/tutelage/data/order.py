"""Which documents share a row and in which order rows are taken, epoch after epoch, for the `Loader` to ask.

Orders: chats or texts `Packed` best-fit into rows of one length, samples laid end to end as they come
(`Unpacked`), pretokenized shards cut into full rows (`streams.Streamed`), and mixtures (`mixture.Mixed`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, Protocol

import numpy as np

from tutelage.data.batch import Group, Sample
from tutelage.data.pack import best_fit
from tutelage.errors import UserError

WINDOW = 10_000  # documents packed together: enough to fill rows, too few to sort an epoch by length
_ROWS_A_WINDOW = 256  # at least, so that the one row left half empty weighs under half a percent
_FILLERS = 256  # short documents, to fill the rows of `longest`
_PLANS_KEPT = 2  # this epoch's and, prefetching, the next one's


class Order(Protocol):
    """Rows of an epoch, numbered as they are taken."""

    facts: dict[str, Any]  # what the order is made of, in words: to continue it, all must be the same

    @property
    def length(self) -> int | None: ...  # positions of every row; None: a row is as long as what lies in it

    @property
    def positions(self) -> int: ...  # of an epoch

    @property
    def deepest(self) -> int: ...  # positions of the longest document, or piece of one

    @property
    def context(self) -> float: ...  # how many tokens of its document a position sees in the mean

    def rows(self, epoch: int) -> int: ...
    def row(self, epoch: int, number: int) -> list[Sample]: ...
    def ids(self, epoch: int, number: int) -> list[str]: ...
    def longest(self, count: int) -> list[list[Sample]]: ...


class Groups(Protocol):
    """What rows are filled with: samples that share a micro-batch, most often one alone."""

    def __len__(self) -> int: ...
    def group(self, index: int) -> Group: ...
    def id(self, index: int) -> str: ...
    @property
    def positions(self) -> np.ndarray: ...  # of a row, that each group takes
    @property
    def depths(self) -> np.ndarray: ...  # positions of each document
    def depths_of(self, chosen: np.ndarray) -> np.ndarray: ...  # those of some groups
    @property
    def paths(self) -> np.ndarray: ...  # which of the data set's paths each group is of
    @property
    def fingerprint(self) -> str: ...


class Unpacked:
    """A group a row, the order of every epoch drawn anew."""

    length = None

    def __init__(self, store: Groups, *, seed: int, shuffle: bool) -> None:
        self._store, self._seed, self._shuffle = store, seed, shuffle
        self.facts = _facts(store, packing=False, length=0, seed=seed, shuffle=shuffle)
        self.positions, self.deepest, self.context = _sizes(store)
        self._kept = _Kept(self._plan)

    def rows(self, epoch: int) -> int:
        return len(self._store)

    def row(self, epoch: int, number: int) -> list[Sample]:
        return list(self._store.group(self._kept[epoch][number]))

    def ids(self, epoch: int, number: int) -> list[str]:
        return [self._store.id(self._kept[epoch][number])]

    def longest(self, count: int) -> list[list[Sample]]:
        longest_first = np.argsort(-self._store.positions, kind="stable")
        return [list(self._store.group(index)) for index in longest_first[:count].tolist()]

    def _plan(self, epoch: int) -> np.ndarray:
        count = len(self._store)
        return _chance(self._seed, epoch).permutation(count) if self._shuffle else np.arange(count)


class Packed:
    """Rows of `length` filled best-fit from windows of the shuffled samples, the rows shuffled again."""

    def __init__(self, store: Groups, *, length: int, seed: int, shuffle: bool) -> None:
        self._positions = store.positions
        longest = int(self._positions.max())
        if longest > length:
            raise UserError(
                f"a document of {longest + 1} tokens does not fit rows of {length}; "
                "truncate or split it first"
            )
        self._store, self.length, self._seed, self._shuffle = store, length, seed, shuffle
        self.facts = _facts(store, packing=True, length=length, seed=seed, shuffle=shuffle)
        self.positions, self.deepest, self.context = _sizes(store)
        self._kept = _Kept(self._plan)
        self._counts: dict[int, int] = {}  # rows of epochs: counting them takes planning them

    def rows(self, epoch: int) -> int:
        if epoch not in self._counts:
            self._counts[epoch] = len(self._kept[epoch])
        return self._counts[epoch]

    def row(self, epoch: int, number: int) -> list[Sample]:
        return [sample for index in self._kept[epoch][number] for sample in self._store.group(index)]

    def ids(self, epoch: int, number: int) -> list[str]:
        return [self._store.id(index) for index in self._kept[epoch][number]]

    def longest(self, count: int) -> list[list[Sample]]:
        order = np.argsort(-self._positions, kind="stable")
        room = 2 * count * self.length  # for the longest documents; the shortest fill what is left
        most = 1 + int(np.searchsorted(np.cumsum(self._positions[order]), room))
        chosen = np.concatenate([order[:most], order[most:][-_FILLERS:]])
        bins = [chosen[row].tolist() for row in best_fit(self._positions[chosen], self.length)]
        fullest = sorted(bins, key=lambda row: -self._positions[row].sum())[:count]
        return [[sample for index in row for sample in self._store.group(index)] for row in fullest]

    def _plan(self, epoch: int) -> list[list[int]]:
        chance, count = _chance(self._seed, epoch), len(self._store)
        order = chance.permutation(count) if self._shuffle else np.arange(count)
        mean = max(self._positions.mean(), 1)
        window = max(WINDOW, int(_ROWS_A_WINDOW * self.length / mean))
        rows = [
            part[row].tolist()
            for part in np.array_split(order, max(1, round(count / window)))
            for row in best_fit(self._positions[part], self.length)
        ]
        return [rows[number] for number in chance.permutation(len(rows))] if self._shuffle else rows


class _Kept:
    """The plans of the newest epochs, made when first asked for; threads may ask."""

    def __init__(self, make: Any) -> None:
        self._make = make
        self._plans: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, epoch: int) -> Any:
        with self._lock:
            if epoch not in self._plans:
                self._plans[epoch] = self._make(epoch)
                while len(self._plans) > _PLANS_KEPT:
                    self._plans.popitem(last=False)
            return self._plans[epoch]


def _facts(store: Groups, *, packing: bool, length: int, seed: int, shuffle: bool) -> dict[str, Any]:
    return {
        "data": store.fingerprint,
        "packing": packing,
        "row length": length,
        "seed": seed if shuffle else 0,
        "shuffling": shuffle,
    }


def _sizes(store: Groups) -> tuple[int, int, float]:
    """Positions in all, of the longest document, and how many a position sees in the mean."""
    sizes = store.depths.astype(np.float64)
    seen = (sizes * (sizes + 1) / 2).sum() / max(sizes.sum(), 1.0)
    return int(store.positions.sum()), int(sizes.max()), float(seen)


def _chance(seed: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng([seed, epoch])
