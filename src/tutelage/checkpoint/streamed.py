"""Tensors on their way to a file: what a format calls them, and their rows, computed when they are written.

A writer of any format takes a list of them, so writing a model costs one piece of a tensor, not the model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor

from tutelage.checkpoint.source import Source, pieces
from tutelage.errors import UserError

Rows = Callable[[int, int], Tensor]  # start, stop -> these rows


@dataclass(frozen=True, slots=True)
class Streamed:
    """One tensor of a file to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: Rows  # in any dtype

    @property
    def n_bytes(self) -> int:
        """What it takes in the file."""
        return prod(self.shape) * self.dtype.itemsize

    def pieces(self) -> Iterator[Tensor]:
        """Its rows, some megabytes at a time."""
        for start, stop in pieces(self.shape):
            yield self.rows(start, stop).to(self.dtype)

    def parts(self) -> Iterator[bytes]:
        """The bytes of these."""
        return map(bytes_of, self.pieces())


class Held:
    """Weights in memory, as a source like those on disk."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.where, self.problems = "the model in memory", []
        self._state = state
        self.shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}

    @property
    def dtype(self) -> torch.dtype:
        """That of the first."""
        return next(iter(self._state.values())).dtype

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start..stop of a tensor, on the CPU."""
        return self._state[name].detach()[start:stop].cpu()


class Checked:
    """A source to be written in `dtype`: numbers that are none, or that it cannot hold, are refused."""

    def __init__(self, source: Source, dtype: torch.dtype):
        self.where, self.shapes, self.problems = source.where, source.shapes, source.problems
        self.dtype = source.dtype
        self._source, self._written = source, dtype

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start..stop, as they are."""
        rows = self._source.rows(name, start, stop)
        if not all(bound.isfinite() for bound in rows.to(self._written).aminmax()):
            dtype = str(self._written).removeprefix("torch.")
            raise UserError(
                f"{self.where}: {name} has NaN or infinity among its weights (rows {start:,} to {stop:,}), "
                f"or numbers too large for {dtype}; no such model is written"
            )
        return rows


def streamed(source: Source, names: Sequence[str], dtype: torch.dtype) -> list[Streamed]:
    """Tensors of a source as they are, but for the dtype."""
    return [Streamed(name, source.shapes[name], dtype, partial(source.rows, name)) for name in names]


def below_each_other(reads: Sequence[Rows], heights: Sequence[int]) -> Rows:
    """Rows of the matrix that matrices of these heights make, one below the other."""

    def rows(start: int, stop: int) -> Tensor:
        parts, begin = [], 0
        for read, height in zip(reads, heights, strict=True):
            if begin < stop and start < begin + height:
                parts.append(read(max(start, begin) - begin, min(stop - begin, height)))
            begin += height
        return torch.cat(parts)

    return rows


def bytes_of(tensor: Tensor) -> bytes:
    """The bytes of a tensor on the CPU, row after row."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
