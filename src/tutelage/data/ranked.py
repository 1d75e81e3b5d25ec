"""Batches of answers that know which of them are better.

B rows   T positions   A answers of a batch   P pairs of a better and a worse answer to one prompt
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.data.groups import TRUNK, Comparisons, Stretch
from tutelage.data.pack import ROUND, collate


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedBatch(Batch):
    """Answers in rows, and what is known of them; `weights` are 1 where an answer is predicted."""

    answers: Tensor  # (B, T) int64, which answer a prediction belongs to; −1 in shared prompts and padding
    numbers: Tensor  # (A,) int64, of each answer in its data set
    lengths: Tensor  # (A,) float32, learned tokens of each answer
    liked: Tensor  # (A,) bool, whether it is the best to its prompt
    better: Tensor  # (P,) int64, the better answer of each pair
    worse: Tensor  # (P,) int64
    shares: Tensor  # (P,) float32, 1 / pairs of the same prompt: they sum to its prompts
    margins: Tensor  # (P,) float32, by how much it is better; 0 where that is not known
    ref_logps: Tensor | None = None  # (A,) float32, log-probability of each answer under the reference
    strays: RankedBatch | None = None  # the same prompts with answers to others, for KTO
    drift: Tensor | None = None  # () float32, how much likelier the policy finds strays than the reference


def collate_ranked(rows: Sequence[Sequence[Stretch]], length: int) -> RankedBatch:
    """Rows of stretches -> a batch; every group of them is whole."""
    base = collate(rows, length)
    counts = np.array([len(row) for row in rows], np.int64)
    stretches = [stretch for row in rows for stretch in row]
    first = torch.from_numpy(np.cumsum(counts) - counts)[:, None]  # (B, 1)
    real = base.docs >= 0
    which = torch.where(
        real, base.docs + first, len(stretches)
    )  # (B, T) index of a stretch; the last: padding

    def laid(values: list[int], padding: int) -> Tensor:
        return torch.tensor([*values, padding])[which]  # (B, T)

    answers = [stretch for stretch in stretches if stretch.number != TRUNK]
    places, docs, at = [], [], 0
    for row in rows:
        for place, stretch in enumerate(row):
            docs.append(docs[-1] if stretch.branch else place)
            places.append(TRUNK if stretch.number == TRUNK else at)
            at += stretch.number != TRUNK
    better, worse, shares = _pairs(answers)
    scores = np.array([answer.score for answer in answers], np.float32)
    margins = scores[better] - scores[worse] if len(better) else np.zeros(0, np.float32)
    return RankedBatch(
        tokens=base.tokens,
        targets=base.targets,
        weights=base.weights,
        positions=base.positions + laid([stretch.start for stretch in stretches], 0),
        docs=laid(docs, -1),
        roles=base.roles,
        branches=laid([s.branch for s in stretches], 0) if any(s.branch for s in stretches) else None,
        answers=laid(places, -1),
        numbers=torch.tensor([answer.number for answer in answers], dtype=torch.int64),
        lengths=torch.tensor([answer.learned for answer in answers], dtype=torch.float32),
        liked=torch.tensor([answer.rank == 0 for answer in answers], dtype=torch.bool),
        better=torch.tensor(better, dtype=torch.int64),
        worse=torch.tensor(worse, dtype=torch.int64),
        shares=torch.tensor(shares, dtype=torch.float32),
        margins=torch.from_numpy(np.nan_to_num(margins, nan=0.0)),
    )


def collate_with_strays(groups: Comparisons, rows: Sequence[Sequence[Stretch]], length: int) -> RankedBatch:
    """`collate_ranked`, and beside it every prompt with an answer to another, in one row."""
    batch = collate_ranked(rows, length)
    strays = [groups.stray(number) for number in batch.numbers.tolist()]
    width = sum(stray.positions for stray in strays)
    return replace(batch, strays=collate_ranked([strays], max(-(-width // ROUND), 1) * ROUND))


def _pairs(answers: Sequence[Stretch]) -> tuple[list[int], list[int], list[float]]:
    """Indices of the better and the worse of every pair of one group, and 1 / pairs of that group."""
    members: dict[int, list[int]] = {}
    for at, answer in enumerate(answers):
        members.setdefault(answer.group, []).append(at)
    better, worse, shares = [], [], []
    for group in members.values():
        pairs = [(i, j) for i in group for j in group if answers[i].rank < answers[j].rank]
        better += [i for i, _ in pairs]
        worse += [j for _, j in pairs]
        shares += [1 / max(len(pairs), 1)] * len(pairs)
    return better, worse, shares
