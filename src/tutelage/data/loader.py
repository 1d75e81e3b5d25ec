"""An endless, resumable stream of optimizer steps, each the same number of micro-batches on every rank.

Without packing a micro-batch is `rows` samples laid end to end in one row; packed it is `rows` rows of
`length`, filled best-fit. Micro-batch m of rank r is the (m · world + r)-th of its step, so what a step holds
does not depend on how it is cut. The last step of an epoch is topped up with empty micro-batches.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from tutelage.data.batch import Batch, Sample
from tutelage.data.pack import best_fit, collate
from tutelage.data.store import SampleStore
from tutelage.errors import UserError

WINDOW = 10_000  # documents packed together: enough to fill rows, too few to sort an epoch by length
_ROWS_A_WINDOW = 256  # at least, so that the one row left half empty weighs under half a percent
ROUND = 64  # widths of unpacked micro-batches are multiples of it, so that kernels meet few shapes
_FILLERS = 256  # short documents, to fill the rows of `longest`
_PLANS_KEPT = 2  # this epoch's and, prefetching, the next one's

Row = list[int]  # numbers of the samples laid in one row
MicroBatch = list[Row]


class Loader:
    """Every sample once an epoch, over all ranks. `next` gives a step's micro-batches for this rank."""

    def __init__(
        self,
        store: SampleStore,
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
    ) -> None:
        assert reduction in ("tokens", "sequences") and 0 <= rank < world and rows > 0 and accumulate > 0
        if not len(store):
            raise UserError("there is no sample to load")
        self._positions = store.positions
        longest = int(self._positions.max())
        if packed and longest > length:
            raise UserError(
                f"a document of {longest + 1} tokens does not fit rows of {length}; "
                "truncate or split it first"
            )
        self._store, self._length, self._rows, self._accumulate = store, length, rows, accumulate
        self._packed, self._seed, self._rank, self._world = packed, seed, rank, world
        self._by_sequence, self._shuffle, self._epochs = reduction == "sequences", shuffle, epochs
        self._plan_inputs = {
            "data": store.fingerprint,
            "samples or rows a step": rows * accumulate * world,
            "packing": packed,
            "row length": length if packed else 0,
            "seed": seed if shuffle else 0,
            "shuffling": shuffle,
        }
        self._plans: OrderedDict[int, list[Row] | np.ndarray] = OrderedDict()
        self._planning = threading.Lock()
        self._threads = ThreadPoolExecutor(workers, "loader") if workers else None
        self._ahead: deque[tuple[int, int, Future[list[Batch]]]] = deque()
        self._workers = workers
        self._epoch, self._step = 0, 0  # of the step that comes next
        self.last_ids: list[str] = []  # sample ids of the step given last

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
        self.last_ids = self.ids(epoch, step)
        self._epoch, self._step = self._after(epoch, step)
        return batches

    def __len__(self) -> int:
        """Steps of the first epoch; with packing another epoch may have a few more or fewer."""
        return self.steps_per_epoch(0)

    def steps_per_epoch(self, epoch: int) -> int:
        """How many optimizer steps this epoch has, the same on every rank."""
        units = len(self._plan(epoch)) if self._packed else len(self._store)  # rows or samples
        return -(-units // (self._rows * self._accumulate * self._world))

    def ids(self, epoch: int, step: int) -> list[str]:
        """The ids of the samples of one step of this rank, in the order in which they are laid."""
        return [self._store.id(i) for micro in self._micro_batches(epoch, step) for row in micro for i in row]

    def state(self) -> dict[str, Any]:
        """The data position: what was given, not what was prefetched, and what the order was made of."""
        return {"epoch": self._epoch, "step": self._step, "fingerprint": dict(self._plan_inputs)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken; refuses a state of other data or of another order."""
        saved = state["fingerprint"]
        changed = [name for name, value in self._plan_inputs.items() if saved.get(name) != value]
        if changed:
            was, now = (
                ", ".join(f"{name} {made[name]}" for name in changed) for made in (saved, self._plan_inputs)
            )
            raise UserError(
                f"cannot continue in the middle of other data: the checkpoint was made with {was}, "
                f"this run has {now}; set it back, or start a new run"
            )
        self._move(state["epoch"], state["step"])

    def longest(self) -> list[Batch]:
        """As much as a step can ever hold at once: the fullest micro-batch, twice if gradients accumulate."""
        order = np.argsort(-self._positions, kind="stable")
        if self._packed:
            room = 2 * self._rows * self._length  # for the longest documents; the shortest fill what is left
            most = 1 + int(np.searchsorted(np.cumsum(self._positions[order]), room))
            chosen = np.concatenate([order[:most], order[most:][-_FILLERS:]])
            bins = [chosen[row].tolist() for row in best_fit(self._positions[chosen], self._length)]
            micro = sorted(bins, key=lambda row: -self._positions[row].sum())[: self._rows]
        else:
            micro = [[index] for index in order[: self._rows].tolist()]
        return [self._lay(micro)] * min(self._accumulate, 2)

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
        return [self._lay(micro) for micro in self._micro_batches(epoch, step)]

    def _micro_batches(self, epoch: int, step: int) -> list[MicroBatch]:
        """The rows of this rank's micro-batches of a step; empty lists where the epoch has run out."""
        plan = self._plan(epoch)
        first = step * self._accumulate * self._world + self._rank
        numbers = range(first, first + self._accumulate * self._world, self._world)
        taken = [plan[number * self._rows : (number + 1) * self._rows] for number in numbers]
        return [micro.tolist() if isinstance(micro, np.ndarray) else micro for micro in taken]

    def _plan(self, epoch: int) -> list[Row] | np.ndarray:
        """The epoch's rows in the order in which they are taken; unpacked, an array (samples, 1)."""
        with self._planning:
            if epoch not in self._plans:
                self._plans[epoch] = self._make_plan(epoch)
                while len(self._plans) > _PLANS_KEPT:
                    self._plans.popitem(last=False)
            return self._plans[epoch]

    def _make_plan(self, epoch: int) -> list[Row] | np.ndarray:
        chance = np.random.default_rng([self._seed, epoch])
        count = len(self._store)
        order = chance.permutation(count) if self._shuffle else np.arange(count)
        if not self._packed:
            return order[:, None]
        mean = max(self._positions.mean(), 1)
        window = max(WINDOW, int(_ROWS_A_WINDOW * self._length / mean))
        rows = [
            part[row].tolist()
            for part in np.array_split(order, max(1, round(count / window)))
            for row in best_fit(self._positions[part], self._length)
        ]
        return [rows[number] for number in chance.permutation(len(rows))] if self._shuffle else rows

    def _lay(self, micro: MicroBatch) -> Batch:
        rows = [[sample for index in row for sample in self._group(index)] for row in micro]
        if self._packed:
            return collate(rows + [[]] * (self._rows - len(rows)), self._length)
        row = [sample for each in rows for sample in each]
        width = sum(sample.positions for sample in row)
        return collate([row], max(-(-width // ROUND), 1) * ROUND)

    def _group(self, index: int) -> list[Sample]:
        sample = self._store[index]
        return [_average(sample) if self._by_sequence else sample]


def _average(sample: Sample) -> Sample:
    """The sample with weights that sum to 1 over what it predicts."""
    weights = np.asarray(sample.weights, np.float32)
    total = weights[1:].sum()
    return Sample(sample.tokens, weights / total if total else weights, sample.roles)
