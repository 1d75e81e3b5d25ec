"""Full rows from pretokenized shards, in any order, at any place: nothing is planned, nothing held.

A source's positions are cut into rows of `length` from a starting point drawn for each pass, so another pass
has other rows. Each pass predicts every token once. Where sources have weights, a source with few rows is
passed several times while another is passed once.

    L positions of a row   N rows of an epoch   R rows of a pass over a source
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np

from tutelage.data.batch import Sample
from tutelage.data.shards import Piece, TokenShards
from tutelage.data.shares import Shares, mixed_bits, shares_of, shuffled
from tutelage.data.store import SampleStore
from tutelage.errors import UserError
from tutelage.text.roles import ROLE_IDS


@dataclass(slots=True)
class TokenStreams:
    """Sources of pretraining text. Weights are shares of the rows; none: all of each, once an epoch."""

    sources: list[TokenShards]
    weights: list[float] | None = None

    def __post_init__(self) -> None:
        if self.weights is None:
            return
        shares_of(self.weights, len(self.sources))

    @property
    def shares(self) -> list[float] | None:
        """Of the rows, each source's."""
        return None if self.weights is None else shares_of(self.weights, len(self.sources))

    def beginning(self, positions: int) -> SampleStore:
        """The documents that lie at the first positions of the first source, to look at."""
        first = self.sources[0]
        pieces = first.pieces(0, min(positions, first.positions))
        return SampleStore.of([_sample(piece.tokens) for piece in pieces], kind="text")

    @property
    def positions(self) -> int:
        """How many tokens are predicted in one pass over each source."""
        return sum(source.positions for source in self.sources)

    def __len__(self) -> int:
        return self.positions


class Streamed:
    """The `Order` of `TokenStreams`."""

    def __init__(self, streams: TokenStreams, *, length: int, seed: int, shuffle: bool) -> None:
        self.length, self._seed, self._shuffle = length, seed, shuffle
        self._sources = streams.sources
        for source in self._sources:
            if not source.positions:
                raise UserError(f"{source.directory} has no token to predict")
        self._row_counts = [-(-source.positions // length) for source in self._sources]  # R of each
        self._rows_before = list(accumulate(self._row_counts, initial=0))
        shares = streams.shares if shuffle else None
        self._shares = Shares(shares, seed) if shares else None
        self.positions = streams.positions
        self.deepest = length
        documents = sum(source.meta["documents"] for source in streams.sources)
        self.context = (min(length, self.positions / max(documents, 1)) + 1) / 2
        self.facts: dict[str, Any] = {
            "data": " ".join(source.fingerprint for source in self._sources),
            "weights": " ".join(map(repr, shares or ())),
            "packing": "stream",
            "row length": length,
            "seed": seed if shuffle else 0,
            "shuffling": shuffle,
        }

    def rows(self, epoch: int) -> int:
        return self._rows_before[-1]

    def row(self, epoch: int, number: int) -> list[Sample]:
        return [_sample(piece.tokens) for _, piece in self._pieces(epoch, number)]

    def ids(self, epoch: int, number: int) -> list[str]:
        """`<path index>-<document>/<position in it>`, documents counted from 1."""
        return [
            f"{source}-{piece.document + 1}/{piece.start}" for source, piece in self._pieces(epoch, number)
        ]

    def longest(self, count: int) -> list[list[Sample]]:
        """All rows are full. Those with one long document each would need no less than any other."""
        return [self.row(0, number) for number in range(min(count, self.rows(0)))]

    def _pieces(self, epoch: int, number: int) -> list[tuple[int, Piece]]:
        source, turn, row = self._place(epoch, number)
        first = (row - 1) * self.length + self._phase(source, turn)
        start, stop = max(first, 0), min(first + self.length, self._sources[source].positions)
        return [(source, piece) for piece in self._sources[source].pieces(start, stop)]

    def _place(self, epoch: int, number: int) -> tuple[int, int, int]:
        """The source of an epoch's row, the pass over that source, and the row of that pass."""
        if self._shares is None:
            at = shuffled(number, self.rows(epoch), self._seed, epoch) if self._shuffle else number
            source = int(np.searchsorted(self._rows_before, at, side="right")) - 1
            return source, epoch, at - self._rows_before[source]
        source, taken = self._shares.place(epoch * self.rows(epoch) + number)
        turn, at = divmod(taken, self._row_counts[source])
        return source, turn, shuffled(at, self._row_counts[source], self._seed, source, turn)

    def _phase(self, source: int, turn: int) -> int:
        """Positions in a pass's first row: drawn so that every pass has the same number of rows."""
        if not self._shuffle:
            return self.length
        rest = self._sources[source].positions % self.length or self.length
        return rest + mixed_bits(self._seed, source, turn) % (self.length - rest + 1)


def _sample(tokens: np.ndarray) -> Sample:
    ones, roles = _constants(1 << (len(tokens) - 1).bit_length())
    return Sample(tokens, ones[: len(tokens)], roles[: len(tokens)])


@lru_cache(maxsize=32)
def _constants(length: int) -> tuple[np.ndarray, np.ndarray]:
    return np.ones(length, np.float32), np.full(length, ROLE_IDS["other"], np.uint8)
