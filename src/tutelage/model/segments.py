"""Attention within documents on CPU: those of like length side by side in one causal call.

A document followed by padding needs no mask: nobody in it sees what comes later, and padding is dropped.

B rows   T positions   n documents of a bucket   L its length   H query heads   K kv heads   C head dim
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.model.causal import masked_attention

ALIKE = (
    0.75  # shortest document of a bucket, as a share of its longest: at most 7/16 of its scores are wasted
)
ROUND = 16  # lengths of buckets are multiples of it: oneDNN prepares and keeps a kernel for every shape


@dataclass(frozen=True, slots=True)
class Bucket:
    """Documents of like length: where their positions come from and go to, in rows flattened to B·T."""

    index: Tensor  # (n, L) what to gather, the last position of a shorter document repeated
    kept: Tensor  # (m,) which of the n·L are positions of documents
    places: Tensor  # (m,) where those lie in B·T


def find_buckets(positions: Tensor, docs: Tensor) -> list[Bucket] | None:
    """The documents of rows (B, T) in buckets; None where one is not a stretch of consecutive positions."""
    same = docs[:, 1:] == docs[:, :-1]
    inside = same & (docs[:, 1:] >= 0)
    if bool((inside & (positions[:, 1:] != positions[:, :-1] + 1)).any()):
        return None
    T = docs.shape[1]
    first = torch.ones_like(docs, dtype=torch.bool)
    first[:, 1:] = ~same
    starts = first.flatten().nonzero()[:, 0]
    ends = torch.cat((starts[1:], starts.new_tensor([docs.numel()])))
    real = docs.flatten()[starts] >= 0
    starts, ends = starts[real], ends[real]
    owners = torch.stack((starts // T, docs.flatten()[starts]), dim=1)
    if len(owners.unique(dim=0)) < len(owners):
        return None
    return _group(starts, ends - starts)


def attend_buckets(
    q: Tensor, k: Tensor, v: Tensor, buckets: list[Bucket], masks: list[Tensor | None], *, dropout: float
) -> Tensor:
    """(B, H, T, C), (B, K, T, C), (B, K, T, C) -> (B, H, T, C), 0 in padding; `masks` by bucket."""
    if not buckets:  # a row of padding, as batches that top up a step are
        # Not plain zeros: every process must find a gradient for every weight, or FSDP2 fails.
        return 0 * (q + k[:, :1] + v[:, :1])
    B, H, T, C = q.shape
    flat = [x.transpose(1, 2).reshape(B * T, -1, C) for x in (q, k, v)]  # (B·T, H or K, C)
    outputs = []
    for bucket, mask in zip(buckets, masks, strict=True):
        q_part, k_part, v_part = (x[bucket.index].transpose(1, 2) for x in flat)  # (n, H or K, L, C)
        out = masked_attention(q_part, k_part, v_part, mask, dropout=dropout)
        outputs.append(out.transpose(1, 2).reshape(-1, H, C)[bucket.kept])
    places = torch.cat([bucket.places for bucket in buckets])
    mixed = flat[0].new_zeros(B * T, H, C).index_copy(0, places, torch.cat(outputs))
    return mixed.view(B, T, H, C).transpose(1, 2)


def _group(starts: Tensor, lengths: Tensor) -> list[Bucket]:
    order = lengths.argsort(descending=True, stable=True)
    starts, lengths = starts[order], lengths[order]
    buckets, done, sizes = [], 0, lengths.tolist()
    while done < len(sizes):
        longest, end = sizes[done], done
        while end < len(sizes) and sizes[end] >= longest * ALIKE:
            end += 1
        steps = torch.arange(-(-longest // ROUND) * ROUND)
        own = steps < lengths[done:end, None]  # (n, L)
        index = starts[done:end, None] + torch.minimum(steps, lengths[done:end, None] - 1)
        buckets.append(Bucket(index, own.flatten().nonzero()[:, 0], index[own]))
        done = end
    return buckets
