"""An endless, resumable stream of optimizer steps, each the same number of micro-batches on every rank.

Without packing a micro-batch is `rows` samples laid end to end in one row; packed it is `rows` rows of
`length`, filled best-fit. Micro-batch m of rank r is the (m · world + r)-th of its step, so what a step holds
does not depend on how it is cut. What lies in a row is the business of an `Order`. The last step of an epoch
is topped up with empty micro-batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from tutelage.data.batch import Batch, Sample
from tutelage.data.mixture import Mixed
from tutelage.data.order import Groups, Order, Packed, Unpacked
from tutelage.data.pack import ROUND, collate
from tutelage.data.streaming import Streaming
from tutelage.data.streams import Streamed, TokenStreams
from tutelage.errors import UserError

Lay = Callable[[Sequence[Sequence[Any]], int], Batch]  # rows of samples, and their length


class Loader:
    """Every sample once an epoch, over all ranks. `next` gives a step's micro-batches for this rank."""

    def __init__(
        self,
        store: Groups | TokenStreams | Streaming,
        *,
        length: int,
        rows: int,
        accumulate: int,
        packed: bool,
        seed: int,
        rank: int = 0,
        world: int = 1,
        reduction: str = "tokens",
        shuffle: bool = True,
        workers: int = 0,
        epochs: int | None = None,
        weights: Sequence[float] = (),
        lay: Lay = collate,
    ) -> None:
        """`weights` are the shares of the data set's paths in what is shuffled; none: all of each."""
        assert reduction in ("tokens", "sequences") and 0 <= rank < world and rows > 0 and accumulate > 0
        if not isinstance(store, Streaming) and not len(store):
            raise UserError("there is no sample to load")
        self._order = order_of(
            store,
            length=length,
            packed=packed,
            seed=seed,
            shuffle=shuffle,
            weights=weights if shuffle else (),
        )
        self._facts = {**self._order.facts, "samples or rows a step": rows * accumulate * world}
        self._rows, self._accumulate, self._rank, self._world = rows, accumulate, rank, world
        self._by_sequence, self._epochs, self._collate = reduction == "sequences", epochs, lay
        self._threads = ThreadPoolExecutor(workers, "loader") if workers else None
        self._ahead: deque[tuple[int, int, Future[list[Batch]]]] = deque()
        self._workers = workers
        self._epoch, self._step = 0, 0  # of the step that comes next
        self._last: tuple[int, int] | None = None  # epoch and step given last

    def __iter__(self) -> Iterator[list[Batch]]:
        """Itself; a finished loader starts over."""
        if self._finished():
            self._move(0, 0)
        return self

    def __next__(self) -> list[Batch]:
        if self._finished():
            raise StopIteration
        epoch, step = self._epoch, self._step
        batches = self._build(epoch, step) if self._threads is None else self._prefetched()
        self._last = (epoch, step)
        self._epoch, self._step = self._after(epoch, step)
        return batches

    @property
    def last_ids(self) -> list[str]:
        """The sample ids of the step given last; none before the first."""
        return self.ids(*self._last) if self._last else []

    def __len__(self) -> int:
        """Steps of the first epoch; with packing another epoch may have a few more or fewer."""
        return self.steps_per_epoch(0)

    def steps_per_epoch(self, epoch: int) -> int:
        """How many optimizer steps this epoch has, the same on every rank."""
        return -(-self._order.rows(epoch) // (self._rows * self._accumulate * self._world))

    @property
    def positions(self) -> int:
        """How many tokens an epoch reads, over all ranks."""
        return self._order.positions

    @property
    def row_length(self) -> int | None:
        """Positions of every row; None: a row is as long as what lies in it."""
        return self._order.length

    @property
    def deepest(self) -> int:
        """How many positions the longest document takes, or piece of one."""
        return self._order.deepest

    @property
    def context(self) -> float:
        """How many tokens of its document a position sees in the mean, itself included; of shards about."""
        return self._order.context

    @property
    def endless(self) -> bool:
        """Whether its only epoch has no end."""
        return isinstance(self._order, Streaming)

    @property
    def passes(self) -> list[tuple[float, float]]:
        """Of a mixture of paths: each one's share of the rows, and how often an epoch passes over it."""
        order = self._order
        return list(zip(order.shares, order.passes, strict=True)) if isinstance(order, Mixed) else []

    @property
    def fingerprint(self) -> str:
        """Equal for equal samples in equal order."""
        return self._facts["data"]

    def ids(self, epoch: int, step: int) -> list[str]:
        """The ids of the samples of one step of this rank, in the order in which they are laid."""
        return [
            name
            for micro in self._micro_batches(epoch, step)
            for number in micro
            for name in self._order.ids(epoch, number)
        ]

    def state(self) -> dict[str, Any]:
        """The data position: what was given, not what was prefetched, and what the order was made of."""
        state = {"epoch": self._epoch, "step": self._step, "fingerprint": dict(self._facts)}
        if isinstance(self._order, Streaming):
            state["reading"] = self._order.state(self._step * self._rows * self._accumulate * self._world)
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken; refuses a state of other data or of another order."""
        saved = state["fingerprint"]
        changed = [name for name, value in self._facts.items() if saved.get(name) != value]
        if changed:
            was, now = (
                ", ".join(f"{name} {made.get(name)}" for name in changed) for made in (saved, self._facts)
            )
            raise UserError(
                f"cannot continue in the middle of other data: the checkpoint was made with {was}, "
                f"this run has {now}; set it back, or start a new run"
            )
        self._move(state["epoch"], state["step"])
        if isinstance(self._order, Streaming):
            self._order.restore(state["reading"])

    def longest(self) -> list[Batch]:
        """As much as a step can ever hold at once: the fullest micro-batch, twice if gradients accumulate."""
        return [self._lay(self._order.longest(self._rows))] * min(self._accumulate, 2)

    def close(self) -> None:
        """Stop prefetching. The loader still works, without threads."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        self._threads = None
        self._ahead.clear()

    def _finished(self) -> bool:
        return self._epochs is not None and self._epoch >= self._epochs

    def _move(self, epoch: int, step: int) -> None:
        self._epoch, self._step = epoch, step
        self._ahead.clear()

    def _after(self, epoch: int, step: int) -> tuple[int, int]:
        return (epoch, step + 1) if step + 1 < self.steps_per_epoch(epoch) else (epoch + 1, 0)

    def _prefetched(self) -> list[Batch]:
        """The next step, from threads that work ahead. Only what is taken here has been given."""
        assert self._threads is not None
        while len(self._ahead) <= 2 * self._workers:
            epoch, step = self._after(*self._ahead[-1][:2]) if self._ahead else (self._epoch, self._step)
            if self._epochs is not None and epoch >= self._epochs:
                break
            self._ahead.append((epoch, step, self._threads.submit(self._build, epoch, step)))
        epoch, step, future = self._ahead.popleft()
        assert (epoch, step) == (self._epoch, self._step)
        return future.result()

    def _build(self, epoch: int, step: int) -> list[Batch]:
        return [
            self._lay([self._order.row(epoch, number) for number in micro])
            for micro in self._micro_batches(epoch, step)
        ]

    def _micro_batches(self, epoch: int, step: int) -> list[range]:
        """Numbers of the rows of this rank's micro-batches of a step; none where the epoch has run out."""
        first = step * self._accumulate * self._world + self._rank
        count = self._order.rows(epoch)
        starts = [(first + at * self._world) * self._rows for at in range(self._accumulate)]
        return [range(min(start, count), min(start + self._rows, count)) for start in starts]

    def _lay(self, rows: list[list[Sample]]) -> Batch:
        if self._by_sequence:
            rows = [[_average(sample) for sample in row] for row in rows]
        if self._order.length is not None:
            return self._collate(rows + [[]] * (self._rows - len(rows)), self._order.length)
        row = [sample for each in rows for sample in each]
        width = sum(sample.positions for sample in row)
        return self._collate([row], max(-(-width // ROUND), 1) * ROUND)


def order_of(
    store: Groups | TokenStreams | Streaming,
    *,
    length: int,
    packed: bool,
    seed: int,
    shuffle: bool,
    weights: Sequence[float],
) -> Order:
    """The order in which rows are made of a data set."""
    if isinstance(store, Streaming):
        return store
    if isinstance(store, TokenStreams):
        return Streamed(store, length=length, seed=seed, shuffle=shuffle)

    def order(groups: Groups, number: int) -> Order:
        if packed:
            return Packed(groups, length=length, seed=number, shuffle=shuffle)
        return Unpacked(groups, seed=number, shuffle=shuffle)

    return Mixed(store, weights, order, seed=seed) if weights else order(store, seed)


def _average(sample: Sample) -> Sample:
    """The sample with weights that sum to 1 over what it predicts."""
    weights = np.asarray(sample.weights, np.float32)
    total = weights[1:].sum()
    return Sample(sample.tokens, weights / total if total else weights, sample.roles)
