"""Rows of data that is read while it is trained on: window by window, each encoded and shuffled by itself.

A window is the next so many records of a path. In it rows are packed and shuffled as a whole data set's are,
so it does what a shuffle buffer does; but where it began in the files says all that is needed to go on in
it. After the last record the path is read again, its files in another order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np

from tutelage.data.batch import Sample
from tutelage.data.cache import FILE_SHIFT, Shard
from tutelage.data.cut import CutReport, TooLong, cut, refuse_unmasked
from tutelage.data.encode import CHUNK, Chunk, Encoder
from tutelage.data.faults import Faults
from tutelage.data.order import Order, Packed, Unpacked
from tutelage.data.read import NO_ROW, checker, parse, raw_rows
from tutelage.data.sources import Source
from tutelage.data.store import SampleStore
from tutelage.errors import UserError

_KEPT = 3  # windows of a path: those that steps made ahead may still ask for


@dataclass(frozen=True, slots=True)
class Place:
    """Where reading goes on: in pass `turn`, in that pass's `file`-th file, at a line and its offset."""

    turn: int = 0
    file: int = 0
    line: int = 1
    offset: int = 0


Row = tuple[Place, Source, bytes]  # where it is, and what is there


@dataclass(frozen=True, slots=True)
class Reading:
    """How rows become samples."""

    encoder: Encoder
    max_seq_len: int
    too_long: TooLong
    max_cut_percent: float
    skip_bad_rows: bool
    allow_unmasked: bool
    window: int  # records
    packed: bool
    seed: int
    log: Callable[[str], None]


class Windows:
    """The endless rows of one path."""

    def __init__(self, sources: Sequence[Source], reading: Reading) -> None:
        self._sources, self._reading = list(sources), reading
        self._begun: list[int] = [0]  # the number of each known window's first row
        self._places: list[Place] = [Place()]
        self._first = 0  # the number of the first known window
        self._kept: OrderedDict[int, Order] = OrderedDict()
        self._open: tuple[Row, Iterator[Row | None]] | None = None  # the row read last, and what comes after
        self._fault_of = {source: checker(source) for source in sources}
        self._reported = False
        self._learned_in_pass = False

    def row(self, number: int) -> list[Sample]:
        order, at = self._window_of(number)
        return order.row(0, at)

    def ids(self, number: int) -> list[str]:
        order, at = self._window_of(number)
        return order.ids(0, at)

    def beginning(self) -> SampleStore:
        """The samples of the first window that is known, to look at."""
        return self._read(0)[0]

    def state(self, number: int) -> dict[str, Any]:
        """The window in which row `number` lies, or the last before it that was read."""
        at = bisect_right(self._begun, number) - 1
        return {"window": self._first + at, "begun": self._begun[at], **asdict(self._places[at])}

    def restore(self, state: dict[str, Any]) -> None:
        """Begin at a window that `state` said."""
        self._first, self._begun = state["window"], [state["begun"]]
        self._places = [Place(state["turn"], state["file"], state["line"], state["offset"])]
        self._kept.clear()
        self._open = None

    def _window_of(self, number: int) -> tuple[Order, int]:
        """The order of the window that a row is in, and its number there."""
        while True:
            at = bisect_right(self._begun, number) - 1
            assert at >= 0, "rows before the one that was gone on with"
            order = self._loaded(at)
            if number < self._begun[at] + order.rows(0):
                return order, number - self._begun[at]

    def _loaded(self, at: int) -> Order:
        """The order of a known window; the one after it is then known too."""
        if at not in self._kept:
            reading = self._reading
            store, after = self._read(at)
            seed = reading.seed + 7919 * (self._first + at)  # another order in each window
            if reading.packed:
                order: Order = Packed(store, length=reading.max_seq_len, seed=seed, shuffle=True)
            else:
                order = Unpacked(store, seed=seed, shuffle=True)
            self._kept[at] = order
            if at + 1 == len(self._places):
                self._places.append(after)
                self._begun.append(self._begun[at] + order.rows(0))
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return self._kept[at]

    def _read(self, at: int) -> tuple[SampleStore, Place]:
        """The samples of a known window, and where the next begins; windows of nothing are passed over."""
        reading, place = self._reading, self._places[at]
        while True:
            chunks, faults, after = self._encoded(place)
            if not reading.skip_bad_rows:
                faults.refuse()
            shard = _joined(chunks, self._sources[0], f"{self._first + at}")
            store = SampleStore.of_shards([shard])
            if not reading.allow_unmasked:
                refuse_unmasked(store)
            store, report = cut(
                store, max_seq_len=reading.max_seq_len, too_long=reading.too_long, faults=faults
            )
            self._report(report)
            self._learned_in_pass |= bool(len(store))
            if len(store):
                return store, after
            if after.turn > place.turn and not self._learned_in_pass:
                name = self._sources[0].name or self._sources[0].path
                raise UserError(f"no row of {name} is left to learn from")
            place = after

    def _encoded(self, place: Place) -> tuple[list[Chunk], Faults, Place]:
        """The next records, and where those after them begin."""
        faults, chunks, count = Faults(), [], 0
        batch: list[tuple[int, Any]] = []
        of: Source | None = None

        def flush() -> None:
            if batch and of is not None:
                chunks.append(self._reading.encoder.encoded(of, batch))
                faults.extend(chunks[-1].faults)
                chunks[-1].lines += self._sources.index(of) << FILE_SHIFT
                batch.clear()

        first, rows = self._rows(place)
        for found in chain(first, rows):
            if found is None:  # the pass has ended
                flush()
                return chunks, faults, Place(place.turn + 1)
            here, source, raw = found
            if count == self._reading.window:
                flush()
                self._open = (found, rows)
                return chunks, faults, here
            if source is not of or len(batch) == CHUNK:
                flush()
                of = source
            fault = self._fault_of[source](raw)
            if fault:
                faults.add(source.place(here.line), fault)
            elif fault is None:
                batch.append((here.line, parse(source, raw)))
            count += fault != NO_ROW
        raise AssertionError("rows end with None")

    def _rows(self, place: Place) -> tuple[list[Row], Iterator[Row | None]]:
        """The records from a place to the end of its pass, then None; open files are read on."""
        opened, self._open = self._open, None
        if opened is not None and opened[0][0] == place:
            return [opened[0]], opened[1]
        return [], self._from(place)

    def _from(self, place: Place) -> Iterator[Row | None]:
        order = np.random.default_rng([self._reading.seed, place.turn]).permutation(len(self._sources))
        for number in range(place.file, len(order)):
            source = self._sources[order[number]]
            line, offset = (place.line, place.offset) if number == place.file else (1, 0)
            for at, start, raw in raw_rows(source, line=line, offset=offset):
                yield Place(place.turn, number, at, start), source, raw
        yield None

    def _report(self, report: CutReport) -> None:
        """Hold the first window to the measure of a whole data set; say of later ones that they exceed it."""
        if not self._reported:
            report.refuse(self._reading.max_cut_percent)
            for line in report.lines():
                self._reading.log(f"train data, first window: {line}")
        elif report.percent > self._reading.max_cut_percent:
            self._reading.log(f"train data: of a window {report.percent:.1f} % is cut: " + report.lines()[1])
        self._reported = True


def _joined(chunks: Sequence[Chunk], source: Source, key: str) -> Shard:
    """Encoded rows as a shard in memory."""

    def end_to_end(name: str, dtype: type) -> np.ndarray:
        return np.concatenate([np.zeros(0, dtype), *(getattr(chunk, name) for chunk in chunks)])

    lengths = end_to_end("lengths", np.int64)
    return Shard(
        key,
        source.kind,
        end_to_end("tokens", np.uint32),
        end_to_end("weights", np.float32),
        end_to_end("roles", np.uint8),
        end_to_end("lines", np.int64),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        Faults(),
        path=source.number,
    )
