"""Rows of documents that fork, and what each of their branches is as a document of its own."""

from dataclasses import dataclass

import torch
from torch import Tensor

Fork = tuple[
    int, tuple[int, ...]
]  # length of the trunk, and of every branch; (n, ()) is an ordinary document


@dataclass(frozen=True)
class Forked:
    """positions, docs and branches, each (B, T), and where the documents of their own lie in B·T."""

    positions: Tensor
    docs: Tensor
    branches: Tensor
    paths: list[Tensor]  # a branch with its trunk before it
    trunks: list[int]  # how much of each path is trunk, and shared

    @property
    def real(self) -> Tensor:
        """(B, 1, T, 1), for heads: False in padding."""
        return (self.docs >= 0)[:, None, :, None]


def forked(*rows: list[Fork], length: int, padding_first: int = 0) -> Forked:
    positions, branches = (torch.zeros(len(rows), length, dtype=torch.int64) for _ in range(2))
    docs, paths, trunks = torch.full((len(rows), length), -1), [], []
    for row, forks in enumerate(rows):
        end = padding_first
        for doc, (trunk, answers) in enumerate(forks):
            start = end
            for branch, n in enumerate((trunk, *answers)):
                here = torch.arange(end, end + n)
                positions[row, here] = torch.arange(n) + (trunk if branch else 0)
                docs[row, here], branches[row, here] = doc, branch
                if (branch or not answers) and n:
                    before = torch.arange(start, start + trunk if branch else start)
                    paths.append(row * length + torch.cat((before, here)))
                    trunks.append(len(before))
                end += n
    return Forked(positions, docs, branches, paths, trunks)


FORKED = {
    "a pair": forked([(20, (9, 12))], length=41),
    "four": forked([(30, (5, 17, 1, 8))], length=64),
    "trunks of 0 and 1": forked([(0, (7, 9)), (1, (4, 6)), (1, (1, 1))], length=30),
    "mixed": forked(
        [(11, ()), (20, (6, 7)), (3, ()), (18, (6, 5, 6))],
        [(40, (12, 15)), (13, ())],
        [(33, (1, 20)), (2, (1,))],
        [],
        length=90,
    ),
    "alike": forked([(50, (20, 20)), (60, (22, 19))], [(48, (21, 24)), (57, (20, 22))], length=200),
    "padding first": forked([(20, (9, 12)), (5, ())], length=50, padding_first=3),
    "all padding": forked([], [], length=6),
}
