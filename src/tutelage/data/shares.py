"""Whose turn it is in a mixture: row by row, by weight, at any place without what came before.

Every `BLOCK` rows hold the sources in their shares, to a row, in an order drawn for the block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

import numpy as np

from tutelage.errors import UserError

BLOCK = 4096  # rows in which the shares of the sources are as their weights, to a row
_LEAST = 2 / BLOCK  # share of a source: with less, rounding could take rows back
_MASK = (1 << 64) - 1


def shares_of(weights: Sequence[float], sources: int) -> list[float]:
    """The weights as shares of 1; refuses those that no mixture of so many sources can have."""
    if len(weights) != sources or not all(0 < weight < math.inf for weight in weights):
        raise UserError(f"{len(weights)} weights for {sources} sources: one above 0 is needed for each")
    shares = [weight / sum(weights) for weight in weights]
    if min(shares) < _LEAST:
        raise UserError(
            f"the least of the weights is {min(shares):.5%} of their sum; a mixture has at "
            f"least {_LEAST:.3%} of each source"
        )
    return shares


class Shares:
    """The rows of a mixture, counted from the start of the run."""

    def __init__(self, shares: Sequence[float], seed: int) -> None:
        self._upto, self._seed = list(accumulate(shares))[:-1], seed

    def place(self, number: int) -> tuple[int, int]:
        """The source of row `number`, and which of that source's rows it is, counted from 0."""
        block, within = divmod(number, BLOCK)
        sources, ranks = self._block(block)
        source = int(sources[within])
        return source, self._taken(block * BLOCK)[source] + int(ranks[within])

    def before(self, number: int) -> list[int]:
        """How many of the rows before row `number` are of each source."""
        block, within = divmod(number, BLOCK)
        taken = self._taken(block * BLOCK)
        if not within:
            return taken
        own = np.bincount(self._block(block)[0][:within], minlength=len(taken))
        return [count + int(more) for count, more in zip(taken, own, strict=True)]

    def _taken(self, rows: int) -> list[int]:
        """How many of a mixture's first `rows` rows are of each source; from block to block none falls."""
        bounds = [0, *(int(rows * upto) for upto in self._upto), rows]
        return [after - before for before, after in pairwise(bounds)]

    @lru_cache(maxsize=4)  # noqa: B019 - they live as long as their run
    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """The source of each row of a block, and how many of the same source come before it there."""
        before, after = self._taken(block * BLOCK), self._taken((block + 1) * BLOCK)
        counts = [b - a for a, b in zip(before, after, strict=True)]
        sources = np.random.default_rng([self._seed, block]).permutation(
            np.repeat(np.arange(len(counts)), counts)
        )
        ranks = np.zeros(BLOCK, np.int64)
        for source, count in enumerate(counts):
            ranks[sources == source] = np.arange(count)
        return sources, ranks


def shuffled(number: int, count: int, *key: int) -> int:
    """Where a permutation of range(count) takes `number`; keys draw permutations, none is ever written out.

    A Feistel network over the next power of 4, walked until it is back below `count` (Black and Rogaway,
    https://doi.org/10.1007/3-540-45760-7_9).
    """
    half = max(((count - 1).bit_length() + 1) // 2, 1)
    mask, base = (1 << half) - 1, mixed_bits(*key)
    while True:
        left, right = number >> half, number & mask
        for turn in range(4):
            left, right = right, left ^ (mixed_bits(base, turn, right) & mask)
        number = left << half | right
        if number < count:
            return number


def mixed_bits(*values: int) -> int:
    """64 bits that depend on all of the values (splitmix64's finalizer)."""
    state = 0
    for value in values:
        state = (state + value + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ state >> 27) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state
