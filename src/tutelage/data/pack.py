"""Lay documents out in rows, and shift targets against tokens: here, once, and nowhere else.

A document of n tokens takes n − 1 positions: it reads tokens[:-1], predicts tokens[1:] with weights[1:], and
carries the roles of what it reads. So a document of `length + 1` tokens just fits a row of `length`.

    B rows   T positions   N positions of all documents together
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from tutelage.data.batch import Batch, Group, Sample
from tutelage.text.roles import ROLE_IDS

ROUND = 64  # widths of unpacked micro-batches are multiples of it, so that kernels meet few shapes
OTHER = ROLE_IDS["other"]


def best_fit(sizes: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Bins of indices into `sizes`, none fuller than `capacity`: best fit, largest first.

    Equal input gives equal bins. Each size costs one bisection over the distinct free spaces.
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    if len(sizes) and sizes.max() > capacity:
        raise ValueError(
            f"a document of {sizes.max() + 1} tokens does not fit rows of {capacity}; "
            "truncate or split it first"
        )
    bins: list[list[int]] = []
    spaces: list[int] = []  # the distinct free spaces, ascending
    bins_with: dict[int, list[int]] = {}  # free space -> bins that have it
    for index in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[index])
        at = bisect_left(spaces, size)
        if at == len(spaces):
            space, chosen = capacity, len(bins)
            bins.append([])
        else:
            space = spaces[at]
            chosen = bins_with[space].pop()
            if not bins_with[space]:
                del bins_with[space], spaces[at]
        bins[chosen].append(index)
        left = space - size
        if left not in bins_with:
            insort(spaces, left)
            bins_with[left] = []
        bins_with[left].append(chosen)
    return bins


def collate(rows: Sequence[Sequence[Sample]], length: int) -> Batch:
    """Rows of documents -> Batch (B, T), T = `length`; what is left of a row is padding.

    `docs` holds a document's index in its row. A document of one token predicts nothing and takes no place.
    """
    samples = [sample for row in rows for sample in row]
    row_of = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    sizes = np.array([len(sample) for sample in samples], dtype=np.int64)
    counts = np.maximum(sizes - 1, 0)
    starts = np.cumsum(counts) - counts  # of each document, in the N positions
    fills = np.zeros(len(rows), dtype=np.int64)
    np.add.at(fills, row_of, counts)
    if len(rows) and fills.max() > length:
        raise ValueError(
            f"{fills.max()} positions of documents do not fit a row of {length}; pack them first"
        )
    offsets = starts - (np.cumsum(fills) - fills)[row_of]  # of each document, in its row
    along = np.arange(counts.sum()) - np.repeat(starts, counts)  # (N,) position within the document
    places = np.repeat(row_of * length + offsets, counts) + along  # (N,) where it lands in B·T
    read = np.repeat(np.cumsum(sizes) - sizes, counts) + along  # (N,) index into all tokens, end to end
    docs = np.concatenate([np.arange(len(row)) for row in rows] or [np.zeros(0, np.int64)])

    def lay(values: np.ndarray, padding: int = 0) -> torch.Tensor:
        laid = np.full(len(rows) * length, padding, dtype=values.dtype)
        laid[places] = values
        return torch.from_numpy(laid.reshape(len(rows), length))  # (B, T)

    tokens = _end_to_end([sample.tokens for sample in samples], np.int64)
    return Batch(
        tokens=lay(tokens[read]),
        targets=lay(tokens[read + 1]),
        weights=lay(_end_to_end([sample.weights for sample in samples], np.float32)[read + 1]),
        positions=lay(along),
        docs=lay(np.repeat(docs.astype(np.int64), counts), padding=-1),
        roles=lay(_end_to_end([sample.roles for sample in samples], np.int64)[read], padding=OTHER),
    )


def pack(groups: Iterable[Group], *, rows: int, length: int) -> Iterator[Batch]:
    """Batches of `rows` rows filled best-fit; the last may have empty rows.

    A group lies in one row if it fits there, its samples in order; if not, in several rows of one batch.
    """
    groups = list(groups)
    sizes = [sum(sample.positions for sample in group) for group in groups]
    fitting = [index for index, size in enumerate(sizes) if size <= length]
    blocks = [  # rows that must stay together
        [[sample for index in row for sample in groups[fitting[index]]]]
        for row in best_fit([sizes[index] for index in fitting], length)
    ]
    for group, size in zip(groups, sizes, strict=True):
        if size > length:
            spread = best_fit([sample.positions for sample in group], length)
            blocks.append([[group[index] for index in sorted(row)] for row in spread])
    tallest = max((len(block) for block in blocks), default=0)
    if tallest > rows:
        raise ValueError(
            f"a group needs {tallest} rows of {length} and a batch has {rows}; raise one of them"
        )
    for chosen in best_fit([len(block) for block in blocks], rows):
        filled = [row for index in chosen for row in blocks[index]]
        yield collate(filled + [[]] * (rows - len(filled)), length)


def empty(rows: int, length: int) -> Batch:
    """A batch of nothing but padding, for ranks and steps that have run out of documents."""
    return collate([[]] * rows, length)


def _end_to_end(lists: list, dtype: type) -> np.ndarray:
    """All lists after one another, with one spare value so that indexing is safe when there are none."""
    return np.concatenate([*(np.asarray(values, dtype=dtype) for values in lists), np.zeros(1, dtype)])
