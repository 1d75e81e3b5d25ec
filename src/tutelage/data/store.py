"""Encoded documents by number, from memory-mapped shards; cutting and splitting make views, never copies."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from tutelage.data.batch import Group, Sample
from tutelage.data.cache import FILE_SHIFT, Shard
from tutelage.data.faults import Faults

_BLOCK = 4096  # documents looked at together


class SampleStore:
    """A sequence of `Sample`s. Sample i is a stretch of a row of a shard."""

    def __init__(
        self,
        shards: Sequence[Shard],
        shard_of: np.ndarray,
        rows: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
        pieces: np.ndarray | None = None,
    ) -> None:
        self.shards = list(shards)
        self.shard_of = shard_of  # which shard
        self.rows = rows  # which row of it
        self.starts = starts  # where its tokens begin in the shard
        self.lengths = lengths  # how many tokens it has
        self.pieces = pieces  # which piece of the row, where rows were split

    @classmethod
    def of_shards(cls, shards: Sequence[Shard]) -> SampleStore:
        """Every row of every shard, in order."""
        counts = [len(shard.lines) for shard in shards]
        empty = [np.zeros(0, np.int64)]
        return cls(
            shards,
            np.repeat(np.arange(len(shards)), counts),
            np.concatenate([np.arange(count) for count in counts] or empty),
            np.concatenate([shard.offsets[:-1] for shard in shards] or empty),
            np.concatenate([np.diff(shard.offsets) for shard in shards] or empty),
        )

    @classmethod
    def of(cls, samples: Sequence[Sample], *, kind: str = "jsonl") -> SampleStore:
        """Samples held in memory, numbered from 1."""
        tokens = np.concatenate([np.zeros(0, np.uint32), *(np.asarray(s.tokens, np.uint32) for s in samples)])
        weights = np.concatenate(
            [np.zeros(0, np.float32), *(np.asarray(s.weights, np.float32) for s in samples)]
        )
        roles = np.concatenate([np.zeros(0, np.uint8), *(np.asarray(s.roles, np.uint8) for s in samples)])
        offsets = np.cumsum([0, *(len(sample) for sample in samples)])
        digest = hashlib.sha256(b"".join(array.tobytes() for array in (tokens, weights, roles, offsets)))
        lines = np.arange(1, len(samples) + 1)
        shard = Shard(digest.hexdigest()[:32], kind, tokens, weights, roles, lines, offsets, Faults())
        return cls.of_shards([shard])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Sample:
        shard, start = self.shards[self.shard_of[index]], self.starts[index]
        stretch = slice(start, start + self.lengths[index])
        return Sample(shard.tokens[stretch], shard.weights[stretch], shard.roles[stretch])

    def id(self, index: int) -> str:
        """`<path index>-<line number>`, and `/<piece>` where documents were split.

        Of a path's second file it is `<path index>.1-<line number>`."""
        number = self.shard_of[index]
        shard = self.shards[number]
        file, line = divmod(int(shard.lines[self.rows[index]]), 1 << FILE_SHIFT)
        path = number if shard.path is None else shard.path
        row = f"{path}{f'.{file}' if file else ''}-{line}"
        return row if self.pieces is None else f"{row}/{self.pieces[index]}"

    def group(self, index: int) -> Group:
        """What must lie in one batch: the sample alone."""
        return [self[index]]

    @property
    def ids(self) -> list[str]:
        return [self.id(index) for index in range(len(self))]

    @property
    def positions(self) -> np.ndarray:
        """How many positions of a row each sample takes."""
        return np.maximum(self.lengths - 1, 0)

    @property
    def depths(self) -> np.ndarray:
        """How many positions each document takes."""
        return self.positions

    def depths_of(self, chosen: np.ndarray) -> np.ndarray:
        """Those of some documents."""
        return self.positions[chosen]

    @property
    def paths(self) -> np.ndarray:
        """Which of the data set's paths each sample is of."""
        numbers = [n if shard.path is None else shard.path for n, shard in enumerate(self.shards)]
        return np.array(numbers, np.int64)[self.shard_of]

    @property
    def fingerprint(self) -> str:
        """Equal for equal samples in equal order."""
        digest = hashlib.sha256(" ".join(shard.key for shard in self.shards).encode())
        for array in (self.shard_of, self.starts, self.lengths):
            digest.update(np.ascontiguousarray(array, np.int64).tobytes())
        return digest.hexdigest()[:32]

    def take(self, chosen: np.ndarray) -> SampleStore:
        """A view of some samples, by a mask or by their numbers."""
        pieces = None if self.pieces is None else self.pieces[chosen]
        return SampleStore(
            self.shards,
            self.shard_of[chosen],
            self.rows[chosen],
            self.starts[chosen],
            self.lengths[chosen],
            pieces,
        )

    def shorten(self, tokens: int) -> SampleStore:
        """A view in which no sample has more than its first `tokens` tokens."""
        lengths = np.minimum(self.lengths, tokens)
        return SampleStore(self.shards, self.shard_of, self.rows, self.starts, lengths, self.pieces)

    def learned(self) -> np.ndarray:
        """How many tokens of each sample are predicted with weight: its first token never is."""
        counts = np.zeros(len(self), np.int64)
        for number, shard in enumerate(self.shards):
            mine = np.flatnonzero(self.shard_of == number)
            for block in (mine[at : at + _BLOCK] for at in range(0, len(mine), _BLOCK)):
                stops = self.starts[block] + self.lengths[block]
                firsts = np.minimum(self.starts[block] + 1, stops)
                low, high = firsts.min(), stops.max()
                running = np.concatenate([[0], np.cumsum(shard.weights[low:high] > 0)])
                counts[block] = running[stops - low] - running[firsts - low]
        return counts

    def unlearned(self) -> np.ndarray:
        """How many tokens of each sample come before the first that is learned."""
        counts = self.lengths.copy()
        for number, shard in enumerate(self.shards):
            mine = np.flatnonzero(self.shard_of == number)
            for block in (mine[at : at + _BLOCK] for at in range(0, len(mine), _BLOCK)):
                starts, stops = self.starts[block], self.starts[block] + self.lengths[block]
                low, high = starts.min(), stops.max()
                learned = np.append(np.flatnonzero(shard.weights[low:high] > 0) + low, high)
                counts[block] = np.minimum(learned[np.searchsorted(learned, starts)], stops) - starts
        return counts


def split_documents(store: SampleStore, length: int) -> SampleStore:
    """Documents longer than a row -> pieces of `length` positions, the last shorter.

    A piece begins with the last token of the one before, which it reads and does not predict: so every token
    but a document's first is predicted exactly once.
    """
    assert store.pieces is None, "split once"
    counts = np.maximum(-(-store.positions // length), 1)
    source = np.repeat(np.arange(len(store)), counts)
    pieces = np.arange(len(source)) - np.repeat(np.cumsum(counts) - counts, counts)
    lengths = np.minimum(store.lengths[source] - pieces * length, length + 1)
    starts = store.starts[source] + pieces * length
    return SampleStore(store.shards, store.shard_of[source], store.rows[source], starts, lengths, pieces)
