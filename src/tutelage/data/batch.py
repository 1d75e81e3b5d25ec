"""The one currency of training: a `Sample` is one document, a `Batch` is documents laid out in rows.

B rows   T positions
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:  # encoding and showing data deal in samples and need no torch
    import torch
    from torch import Tensor


@dataclass(slots=True)
class Sample:
    """One document: three lists of equal length.

    A weight belongs to its token: it says how much *predicting that token* counts. Nothing is shifted here.
    """

    tokens: Sequence[int] | np.ndarray
    weights: Sequence[float] | np.ndarray
    roles: Sequence[int] | np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def positions(self) -> int:
        """How many positions of a row it takes: its last token is only a target."""
        return max(len(self.tokens) - 1, 0)


Group = Sequence[Sample]  # one document, or a pair, or K ranked answers: never split over batches


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents in rows, every field (B, T) and aligned with `targets`; padding has docs −1 and weight 0."""

    tokens: Tensor  # (B, T) int64, what the model reads
    targets: Tensor  # (B, T) int64, what it should predict there
    weights: Tensor  # (B, T) float32, how much that prediction counts
    positions: Tensor  # (B, T) int64, from 0 in every document
    docs: Tensor  # (B, T) int64, 0, 1, 2, … along a row; −1 in padding
    roles: Tensor  # (B, T) int64, who wrote the token that is read
    branches: Tensor | None = None  # (B, T) int64, where documents fork: 0 in the trunk, then 1, 2, …

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> Self:
        """The same batch on another device."""
        moved = {
            each.name: getattr(self, each.name).to(device, non_blocking=non_blocking)
            for each in fields(self)
            if getattr(self, each.name) is not None
        }
        return replace(self, **moved)
