"""Attention within documents on CPU: those of like length side by side in one causal call.

A document followed by padding needs no mask: nobody in it sees what comes later, and padding is dropped.
Where a document forks, a branch is the document of its trunk and itself, with only its own queries.

B rows   T positions   n documents of a bucket   S its length   H query heads   K kv heads   C head dim
"""

import math
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from tutelage.model.causal import PLAIN, Scores, masked_attention

ALIKE = (
    0.75  # shortest document of a bucket, as a share of its longest: at most 7/16 of its scores are wasted
)
ROUND = 16  # lengths of buckets are multiples of it: oneDNN prepares and keeps a kernel for every shape


@dataclass(frozen=True, slots=True)
class Bucket:
    """Documents of like length: where their positions come from and go to, in rows flattened to B·T."""

    index: Tensor  # (n, S) what to gather, the last position of a shorter document repeated
    offset: int  # where queries begin: before it all is trunk
    kept: Tensor  # (m,) which of the n·(S − offset) queries are not trunk or padding
    places: Tensor  # (m,) where those lie in B·T


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A document, its trunk or one of its branches; a branch has the trunk before it."""

    start: int
    own: int
    trunk_start: int
    trunk: int  # its length, 0 without one

    @property
    def length(self) -> int:
        return self.trunk + self.own


def find_buckets(positions: Tensor, docs: Tensor, branches: Tensor | None = None) -> list[Bucket] | None:
    """The documents of rows (B, T) in buckets; None where one is not a stretch of consecutive positions.

    One that forks is a trunk, and branches that go on at the position where it ends.
    """
    stretches = _find_stretches(positions, docs, branches)
    if stretches is None:
        return None
    return [_bucket(group) for group in _group(stretches)]


def attend_buckets(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    buckets: list[Bucket],
    masks: list[Tensor | None],
    scores: Scores = PLAIN,
    *,
    dropout: float,
) -> Tensor:
    """(B, H, T, C), (B, K, T, C), (B, K, T, C) -> (B, H, T, C), 0 in padding; `masks` by bucket."""
    if not buckets:  # a row of padding, as batches that top up a step are
        # Not plain zeros: every process must find a gradient for every weight, or FSDP2 fails.
        return 0 * (q + k[:, :1] + v[:, :1])
    B, H, T, C = q.shape
    queries = [bucket.index[:, bucket.offset :] for bucket in buckets]
    keys = [bucket.index for bucket in buckets]
    parts = [_gathered(x, places) for x, places in ((q, queries), (k, keys), (v, keys))]
    outputs = []
    for bucket, mask, q_part, k_part, v_part in zip(buckets, masks, *parts, strict=True):
        out = masked_attention(q_part, k_part, v_part, mask, scores, dropout=dropout)  # (n, H, S − offset, C)
        outputs.append(out.transpose(1, 2).reshape(-1, H, C).index_select(0, bucket.kept))
    places = torch.cat([bucket.places for bucket in buckets])
    mixed = q.new_zeros(B * T, H, C).index_copy(0, places, torch.cat(outputs))
    return mixed.view(B, T, H, C).transpose(1, 2)


def _gathered(x: Tensor, places: list[Tensor]) -> list[Tensor]:
    """(B, H or K, T, C), (n, S) of every bucket -> (n, H or K, S, C) of every bucket.

    Gathered at once, or the backward pass would add up gradients of all positions for every bucket; and by
    index_select, whose backward takes a third of indexing's.
    """
    flat = x.transpose(1, 2).flatten(0, 1)  # (B·T, H or K, C)
    rows = flat.index_select(0, torch.cat([index.flatten() for index in places]))
    parts = rows.split([index.numel() for index in places])
    return [x.unflatten(0, index.shape).transpose(1, 2) for x, index in zip(parts, places, strict=True)]


def _find_stretches(positions: Tensor, docs: Tensor, branches: Tensor | None) -> list[_Stretch] | None:
    same = docs[:, 1:] == docs[:, :-1]
    inside = same if branches is None else same & (branches[:, 1:] == branches[:, :-1])
    if bool((inside & (docs[:, 1:] >= 0) & (positions[:, 1:] != positions[:, :-1] + 1)).any()):
        return None
    T = docs.shape[1]
    first = torch.ones_like(docs, dtype=torch.bool)
    first[:, 1:] = ~inside
    starts = first.flatten().nonzero()[:, 0]
    ends = torch.cat((starts[1:], starts.new_tensor([docs.numel()])))
    real = docs.flatten()[starts] >= 0
    starts, ends = starts[real], ends[real]
    of_starts = [starts // T, docs.flatten()[starts]]
    if branches is not None:
        of_starts.append(branches.flatten()[starts])
    owners = torch.stack(of_starts, dim=1)  # row, document and branch
    if len(owners.unique(dim=0)) < len(owners):
        return None
    found = zip(starts.tolist(), (ends - starts).tolist(), strict=True)
    if branches is None:
        return [_Stretch(start, own, start, 0) for start, own in found]
    return _with_trunks(list(found), positions.flatten()[starts].tolist(), owners.tolist())


def _with_trunks(
    found: list[tuple[int, int]], positions: list[int], owners: list[list[int]]
) -> list[_Stretch] | None:
    """Stretches (start, length) that begin at `positions`; None if one does not go on after its trunk."""
    trunks: dict[tuple[int, int], tuple[int, int, int]] = {}  # start, length and the position that follows
    for (start, own), position, (row, doc, branch) in zip(found, positions, owners, strict=True):
        if branch == 0:
            trunks[row, doc] = start, own, position + own
    stretches = []
    for (start, own), position, (row, doc, branch) in zip(found, positions, owners, strict=True):
        alone = start, 0, position
        trunk_start, trunk, follows = trunks.get((row, doc), alone) if branch else alone
        if position != follows:
            return None
        stretches.append(_Stretch(start, own, trunk_start, trunk))
    return stretches


@dataclass(slots=True)
class _Group:
    """Stretches side by side in one rectangle of queries and keys, given from the longest trunk down."""

    members: list[_Stretch]
    longest: int = 0
    fewest: float = math.inf  # scores of a member

    def takes(self, stretch: _Stretch) -> bool:
        """Whether every member would fill enough of the rectangle with `stretch` in it; then it is."""
        longest, fewest = max(self.longest, stretch.length), min(self.fewest, stretch.own * stretch.length)
        if fewest < ALIKE * ALIKE * longest * (longest - stretch.trunk):
            return False
        self.longest, self.fewest = longest, fewest
        self.members.append(stretch)
        return True


def _group(stretches: list[_Stretch]) -> list[_Group]:
    groups: list[_Group] = []
    for stretch in sorted(stretches, key=lambda s: (s.trunk, s.length), reverse=True):
        if not any(group.takes(stretch) for group in reversed(groups)):
            groups.append(_Group([]))
            groups[-1].takes(stretch)
    return groups


def _bucket(group: _Group) -> Bucket:
    start, own, trunk_start, trunk = torch.tensor([astuple(s) for s in group.members]).unbind(1)  # each (n,)
    steps = torch.arange(-(-group.longest // ROUND) * ROUND)
    offset = int(trunk.min()) // ROUND * ROUND
    place = steps - trunk[:, None]  # (n, S), in the stretch itself
    real = (place >= 0) & (place < own[:, None])
    after = start[:, None] + torch.minimum(place, own[:, None] - 1)
    index = torch.where(place < 0, trunk_start[:, None] + steps, after)
    return Bucket(index, offset, real[:, offset:].flatten().nonzero()[:, 0], index[real])
