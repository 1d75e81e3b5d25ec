"""Causal attention on CPU, of all positions or of the last ones. In bfloat16: PyTorch's fused forward, and a
backward made of batched matmuls.

PyTorch's fused backward spends 0.3 ms on every head of every document, however short (measured on 2.13: 42 ms
for 16 documents of 35 tokens and 9 heads, where this takes 3). Here the softmax is formed again from its
normaliser in blocks that fit the cache: nothing of size T x T is kept (FlashAttention-2, arxiv 2307.08691).

B rows   T queries, the last of S positions   H query heads   K kv heads   G = H / K   C head dim
n of the B·K   t queries of a block   s keys they see
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 256  # queries whose scores exist at a time; later keys are not even looked at
SCORES = 1 << 19  # of them at a time, over documents and heads: 1 MiB, which stays in a core's cache


@dataclass(frozen=True, slots=True)
class Scores:
    """How the product of a query and a key becomes a score."""

    scale: float | None = None  # what it is multiplied by; None: 1 / sqrt(C)
    cap: float | None = None  # scores are bent to within ±cap: cap · tanh(score / cap), arxiv 2408.00118


PLAIN = Scores()


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, scores: Scores = PLAIN, *, dropout: float = 0.0
) -> Tensor:
    """(B, H, T, C), (B, K, S, C), (B, K, S, C) -> (B, H, T, C); `dropout` is PyTorch's, which forms T x S."""
    wants_gradient = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if q.dtype == torch.bfloat16 and q.device.type == "cpu" and wants_gradient and not dropout:
        return _CausalAttention.apply(q, k, v, scores.scale or 1 / math.sqrt(q.shape[-1]))
    mask = _last_queries(q, k)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=True,
        dropout_p=dropout,
        scale=scores.scale,
    )


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scores: Scores = PLAIN, *, dropout: float = 0.0
) -> Tensor:
    """The same within `mask` (1 or B, 1, T, S) bool; None: causal."""
    if scores.cap is not None:
        return _capped_attention(q, k, v, mask, scores, scores.cap, dropout)
    if mask is None:
        return causal_attention(q, k, v, scores, dropout=dropout)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, enable_gqa=True, dropout_p=dropout, scale=scores.scale
    )


def _capped_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scores: Scores, cap: float, dropout: float
) -> Tensor:
    """With capped scores, which no fused kernel here knows: all T x S exist, in float32."""
    B, H, T, C = q.shape
    K, S = k.shape[1], k.shape[2]
    if mask is None:
        mask = torch.ones(1, 1, T, S, dtype=torch.bool, device=q.device).tril(S - T)
    products = q.reshape(B, K, -1, C) @ k.transpose(-1, -2)  # (B, K, G·T, S)
    bent = (products.float() * ((scores.scale or 1 / math.sqrt(C)) / cap)).tanh() * cap
    seen = bent.view(B, K, -1, T, S).masked_fill(~mask[:, :, None], -math.inf)
    chances = F.dropout(seen.softmax(-1).to(q.dtype), dropout)
    return (chances.view(B, K, -1, S) @ v).view(B, H, T, C)


def _last_queries(q: Tensor, k: Tensor) -> Tensor | None:
    """(T, S) bool: whom the last T of S positions see; None if they are all (PyTorch's causal ends at T)."""
    T, S = q.shape[2], k.shape[2]
    return None if T == S else torch.ones(T, S, dtype=torch.bool, device=q.device).tril_(S - T)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:  # type: ignore[override]
        groups = q.shape[1] // k.shape[1]
        wide_k, wide_v = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (k, v))
        mask = _last_queries(q, k)
        if mask is not None:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -math.inf)
        out, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, wide_k, wide_v, 0.0, mask is None, attn_mask=mask, scale=scale
        )
        ctx.scale = scale
        ctx.save_for_backward(q, k, v, out, normaliser)
        return out

    @staticmethod
    def backward(ctx: Any, upstream: Tensor):  # type: ignore[override]
        q, k, v, out, normaliser = ctx.saved_tensors
        B, H, T, C = q.shape
        K, S, scale = k.shape[1], k.shape[2], ctx.scale
        # The normaliser joins the matmul as two more columns, subtracted before the product is rounded: the
        # exponent is then exact to 2^-8 of itself, where subtracting afterwards would lose 2^-8 of the score.
        queries = _with_columns(q, -normaliser / scale).view(B * K, H // K, T, C + 2)
        slopes = _with_columns(upstream, -(upstream.float() * out.float()).sum(-1)).view_as(queries)
        keys, values = (F.pad(x, (0, 2), value=1.0).view(B * K, S, C + 2) for x in (k, v))
        at_once = max(1, SCORES // (H // K * min(T, BLOCK) * S))
        parts = zip(*(x.split(at_once) for x in (queries, keys, values, slopes)), strict=True)
        # Collected, not written in place: compiled, each write would copy the whole.
        gradients = [_backward(a, b, c, d, scale) for a, b, c, d in parts]
        q_grad, k_grad, v_grad = (torch.cat(g) for g in zip(*gradients, strict=True))
        return q_grad.view_as(q), k_grad.view_as(k), v_grad.view_as(v), None


def _backward(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """(n, G, T, C + 2), (n, S, C + 2), (n, S, C + 2), (n, G, T, C + 2) -> the gradients of q, k and v."""
    n, G, T, columns = q.shape
    C, offset = columns - 2, k.shape[1] - T
    q_grads: list[Tensor] = []
    k_grad = v_grad = q.new_zeros(n, 0, C, dtype=torch.float32)
    for start in range(0, T, BLOCK):
        end = min(start + BLOCK, T)
        q_part, slope_part = (
            x[:, :, start:end].reshape(n, -1, columns) for x in (q, slopes)
        )  # (n, G·t, C + 2)
        k_part, v_part = k[:, : offset + end], v[:, : offset + end]  # (n, s, C + 2)
        chance = torch.bmm(q_part, k_part.transpose(1, 2)).mul_(scale).exp_()  # (n, G·t, s)
        chance.view(n * G, end - start, -1).tril_(offset + start)  # later keys: 0, whatever exp made of them
        v_grad = _longer(v_grad, torch.bmm(chance.transpose(1, 2), slope_part[..., :C]))
        chance.mul_(torch.bmm(slope_part, v_part.transpose(1, 2))).mul_(scale)  # now the scores' gradient
        k_grad = _longer(k_grad, torch.bmm(chance.transpose(1, 2), q_part[..., :C]))
        q_grads.append(torch.bmm(chance, k_part[..., :C]).view(n, G, end - start, C))
    return torch.cat(q_grads, dim=2), k_grad.to(k.dtype), v_grad.to(v.dtype)


def _longer(total: Tensor, part: Tensor) -> Tensor:
    """Sums over earlier blocks (n, fewer keys, C) and this one (n, s, C) -> (n, s, C), float32."""
    return (
        part.float() if not total.shape[1] else part + F.pad(total, (0, 0, 0, part.shape[1] - total.shape[1]))
    )


def _with_columns(x: Tensor, values: Tensor) -> Tensor:
    """(B, H, T, C), (B, H, T) float32 -> (B, H, T, C + 2): the values as a rounded part and what it lost."""
    rounded = values.to(x.dtype)
    return torch.cat((x, rounded[..., None], (values - rounded.float()).to(x.dtype)[..., None]), dim=-1)
