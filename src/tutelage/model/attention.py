"""The one rule of attention, and the executions that must agree with it.

Rule: a position sees those of its own document that are not after it, and no further back than the window;
where a document forks, only those in its trunk (branch 0) and in its own branch.
Executions: `dense` asks the rule for every pair (the reference; decoding), `causal` and `segments` give
whole documents to scaled_dot_product_attention (CPU training), `flex` gives FlexAttention the rule (CUDA).

B rows   T, S query and key positions   H query heads   K kv heads   C head dim
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from tutelage.errors import UserError
from tutelage.model.causal import PLAIN, Scores, masked_attention
from tutelage.model.planned import on_gpu, planned_flex
from tutelage.model.segments import Bucket, attend_buckets, find_buckets


def visible(
    q_pos: Tensor,
    k_pos: Tensor,
    q_doc: Tensor,
    k_doc: Tensor,
    *,
    window: int | None,
    branches: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """(B, T), (B, S), (B, T), (B, S) -> (B, 1, T, S): same document and 0 <= q_pos - k_pos (< window).

    `branches` are those of queries (B, T) and of keys (B, S); None: no document forks.
    """
    queries, keys = [q_pos, q_doc], [k_pos, k_doc]
    if branches is not None:
        queries, keys = [*queries, branches[0]], [*keys, branches[1]]
    return _sees([x[:, None, :, None] for x in queries], [x[:, None, None, :] for x in keys], window)


def _sees(query: list[Tensor], key: list[Tensor], window: int | None) -> Tensor:
    """Whether a query sees a key, each given as position, document and, where documents fork, branch."""
    distance = query[0] - key[0]
    seen = (query[1] == key[1]) & (distance >= 0)
    if window is not None:
        seen = seen & (distance < window)
    return seen & ((key[2] == 0) | (key[2] == query[2])) if len(key) > 2 else seen


@dataclass(slots=True)
class Layout:
    """Who sees whom in one forward pass: planned once, shared by every layer."""

    kind: Literal["causal", "segments", "dense", "flex"]
    positions: Tensor  # (B, T)
    buckets: list[Bucket] = field(default_factory=list)
    masks: dict[int | None, Any] = field(default_factory=dict)  # by window: (B, 1, T, S) bool, or a BlockMask
    dropout: float = 0.0  # chance of each attention weight to be left out


def plan(
    positions: Tensor,
    docs: Tensor | None,
    *,
    branches: Tensor | None = None,
    kv_used: int | None,
    windows: set[int | None],
    impl: Literal["auto", "eager", "sdpa", "flash"] = "auto",
    dropout: float = 0.0,
) -> Layout:
    """Choose the execution for rows of these positions, documents and branches, each (B, T).

    `impl` may insist: eager is `dense`, flash is `flex`, sdpa is whichever gives SDPA the least work.
    FlexAttention has no `dropout` of weights; auto keeps away from it then.

    With a cache (`kv_used` keys of it are readable) a key's position is its index and a row is one document.
    """
    if kv_used is not None:
        assert branches is None, "a cache holds documents that do not fork"
        keys = torch.arange(kv_used, device=positions.device).expand(len(positions), -1)
        rows = torch.zeros_like(positions), torch.zeros_like(keys)
        return Layout(
            "dense", positions, masks={w: visible(positions, keys, *rows, window=w) for w in windows}
        )
    if docs is None:
        docs = torch.zeros_like(positions)
    if impl == "flash" or (impl == "auto" and on_gpu(positions) and not dropout):
        if dropout:
            raise UserError("attention_impl flash has no dropout of attention weights; sdpa and eager have")
        return _flex(positions, docs, windows, branches)
    # Finding documents reads the documents, which on CUDA would wait for the device.
    buckets = None if impl == "eager" or on_gpu(positions) else find_buckets(positions, docs, branches)
    if buckets is None:
        forks = None if branches is None else (branches, branches)
        pairs = positions, positions, docs, docs
        masks = {w: visible(*pairs, window=w, branches=forks) for w in windows}
        return Layout("dense", positions, masks=masks, dropout=dropout)
    whole_rows = len(buckets) == 1 and len(buckets[0].index) == len(positions)
    if whole_rows and buckets[0].kept.numel() == positions.numel():
        return Layout("causal", positions, masks=_causal_masks(positions, windows), dropout=dropout)
    return Layout("segments", positions, buckets, dropout=dropout)


def attend(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, window: int | None, scores: Scores = PLAIN
) -> Tensor:
    """(B, H, T, C), (B, K, S, C), (B, K, S, C) -> (B, H, T, C); what padding gives means nothing."""
    if layout.kind == "segments":
        return _attend_segments(q, k, v, layout, window, scores)  # pyright: ignore[reportCallIssue]
    if layout.kind == "flex":
        bend = None if scores.cap is None else partial(_bent, scores.cap)
        kernel, mask = _flex_attention(), layout.masks[window]
        return kernel(q, k, v, score_mod=bend, block_mask=mask, scale=scores.scale, enable_gqa=True)
    return masked_attention(q, k, v, layout.masks[window], scores, dropout=layout.dropout)


def _bent(cap: float, score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return cap * torch.tanh(score / cap)


@torch.compiler.disable  # its shapes change with every batch
def _attend_segments(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, window: int | None, scores: Scores
) -> Tensor:
    masks: list[Tensor | None] = []
    for bucket in layout.buckets:
        length = bucket.index.shape[1]
        beyond = None if window is None or length <= window else _band(length, window, q.device)
        masks.append(None if beyond is None else beyond[:, :, bucket.offset :])
    return attend_buckets(q, k, v, layout.buckets, masks, scores, dropout=layout.dropout)


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """(1, 1, length, length): causal and within the window."""
    places = torch.arange(length, device=device)[None]
    same = torch.zeros_like(places)
    return visible(places, places, same, same, window=window)


def _causal_masks(positions: Tensor, windows: set[int | None]) -> dict[int | None, Tensor | None]:
    T = positions.shape[1]
    return {w: None if w is None or w >= T else _band(T, w, positions.device) for w in windows}


def _flex(
    positions: Tensor, docs: Tensor, windows: set[int | None], branches: Tensor | None = None
) -> Layout:
    """Not yet run: FlexAttention's backward needs CUDA. No host sync: the rule reads the tensors."""
    from torch.nn.attention.flex_attention import create_block_mask

    B, T = positions.shape
    of_rows = [positions, docs] if branches is None else [positions, docs, branches]
    masks = {}
    for window in windows:

        def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor, window: int | None = window) -> Tensor:
            return _sees([x[b, q] for x in of_rows], [x[b, k] for x in of_rows], window)

        masks[window] = create_block_mask(rule, B, None, T, T, device=positions.device)
    return Layout("flex", positions, masks=masks)


_compiled_flex: list[Any] = []


def _flex_attention() -> Any:
    """FlexAttention, compiled at first use: uncompiled it forms every score. What a plan has in its place."""
    if instead := planned_flex():
        return instead
    if not _compiled_flex:
        from torch.nn.attention.flex_attention import flex_attention

        _compiled_flex.append(torch.compile(flex_attention))
    return _compiled_flex[0]
