"""What objectives are made of: sums, and log-probabilities that never hold the logits of a whole batch.

B rows   T positions   N positions of a batch, flattened   D model dim   V vocabulary
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.model.planned import on_gpu
from tutelage.model.transformer import Transformer

_ROWS = 4096  # of the head's gradient, added at a time
CHUNK_ELEMENTS = 1 << 24  # logits held at a time: 32 MiB in bfloat16, whatever the vocabulary


@dataclass(slots=True)
class Loss:
    """Sums over a micro-batch; whoever has all micro-batches divides by the weight, once."""

    total: Tensor
    weight: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)  # divided by the weight too,
    counts: dict[str, Tensor] = field(default_factory=dict)  # but those that have their own here


class Objective(Protocol):
    """What a stage minimises: total / weight, summed over the step."""

    def __call__(self, model: Transformer, batch: Batch) -> Loss: ...


def token_logps(model: Transformer, batch: Batch, *, temperature: float = 1.0) -> Tensor:
    """log p(target) at every position, (B, T) float32; 0 where the weight is 0.

    Holds the logits of a chunk of positions at a time and forms them again in the backward pass.
    """
    hidden, targets, _, places = learned_positions(model, batch)
    logps = _TokenLogps.apply(hidden, model.head_weight, targets, temperature, model.config.logit_cap)
    flat = logps.new_zeros(batch.targets.numel())
    return flat.index_copy(0, places, logps).view_as(batch.targets)


def learned_positions(model: Transformer, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states (N, D), targets (N,), weights (N,) and flat places (N,) of the positions that count.

    Prompts and padding never meet the head. Finding them would wait for the device on CUDA: there all count.
    """
    hidden = model(batch.tokens, batch.positions, batch.docs, roles=batch.roles, branches=batch.branches)
    hidden = hidden.flatten(0, 1)  # (B·T, D)
    targets, weights = batch.targets.flatten(), batch.weights.flatten()
    if on_gpu(weights):
        return hidden, targets, weights, torch.arange(len(weights), device=weights.device)
    places = weights.nonzero()[:, 0]
    if len(places) == len(weights):
        return hidden, targets, weights, places
    return hidden[places], targets[places], weights[places], places


def kl_divergence(
    hidden: Tensor,
    head: Tensor,
    other: Tensor,
    other_head: Tensor,
    weights: Tensor,
    *,
    cap: float | None = None,
) -> Tensor:
    """Sum over positions of weights · KL(p || q), p = softmax(head · hidden), q of the others, float32.

    hidden and other (N, D), heads (V, D), weights (N,); the logits of a chunk of positions at a time, bent to
    within ±`cap` where there is one.
    """
    total = weights.new_zeros(())
    across, other_across = _across(head), _across(other_head)
    for part in _chunks(len(hidden), len(head)):
        logits, others = (hidden[part] @ across).float(), (other[part] @ other_across).float()  # (n, V)
        for each in (logits, others):
            _bend_(each, cap)
        p, q = logits.log_softmax(-1), others.log_softmax(-1)
        total += ((p.exp() * (p - q)).sum(-1) * weights[part]).sum()
    return total


def linear_cross_entropy(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    fp32: bool = False,
    compiled: bool = False,
    cap: float | None = None,
) -> Tensor:
    """Sum over positions of weights · −log softmax(head · hidden)[targets], float32.

    hidden (N, D), head (V, D), targets (N,), weights (N,). Gradients are formed in the forward pass, chunk by
    chunk, so the logits exist once and only a chunk of them (cut cross-entropy, https://arxiv.org/abs/2411.09009,
    and Liger's fused linear cross-entropy do the same). `fp32` forms the logits in float32 too;
    with a `cap` they are bent to within it.
    """
    if not torch.is_grad_enabled():  # validation wants no gradients formed
        states, wide = (hidden.float(), head.float()) if fp32 else (hidden, head)
        return -(_TokenLogps.apply(states.detach(), wide.detach(), targets, 1.0, cap) * weights).sum()
    chunk_loss = _compiled_chunk_loss() if compiled else _chunk_loss
    return _LinearCrossEntropy.apply(hidden, head, targets, weights, chunk_loss, fp32, cap)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden, head, targets, weights, chunk_loss, fp32, cap
    ) -> Tensor:
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        wide = head.float() if fp32 else head
        # float16 has no room for gradients before the loss scale, which the backward pass brings.
        kept = torch.float32 if head.dtype == torch.float16 else head.dtype
        hidden_grad = torch.empty_like(hidden, dtype=kept) if wants_hidden else None
        head_grad = torch.zeros_like(head, dtype=torch.float32) if wants_head else None
        total = weights.new_zeros((), dtype=torch.float32)
        across = _across(wide)
        for part in _chunks(len(hidden), len(head)):
            states = hidden[part].to(wide.dtype)
            own = targets[part], weights[part]
            loss, gradient, slope = chunk_loss(states, wide, across, *own, head_grad, cap)
            total += loss
            if hidden_grad is not None:
                hidden_grad[part] = gradient
            if head_grad is not None:  # not in the chunk: compiled, it would copy all to change these rows
                head_grad.index_add_(0, targets[part], states * slope)
        ctx.dtypes = hidden.dtype, head.dtype
        ctx.save_for_backward(hidden_grad, None if head_grad is None else head_grad.to(kept))
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor):  # type: ignore[override]
        hidden_grad, head_grad = ctx.saved_tensors
        hidden_dtype, head_dtype = ctx.dtypes
        hidden_grad = None if hidden_grad is None else hidden_grad.mul_(upstream).to(hidden_dtype)
        head_grad = None if head_grad is None else head_grad.mul_(upstream).to(head_dtype)
        return hidden_grad, head_grad, None, None, None, None, None


def _across(head: Tensor) -> Tensor:
    """(V, D) -> (D, V); on CPU in bfloat16 a copy: matmuls with a transposed view take 2.8 times as long."""
    return head.t().contiguous() if head.dtype == torch.bfloat16 and not on_gpu(head) else head.t()


def _chunk_loss(
    states: Tensor,
    head: Tensor,
    across: Tensor,
    targets: Tensor,
    weights: Tensor,
    head_grad: Tensor | None,
    cap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The chunk's weighted loss, its derivative by `states`, and that by the targets' logits (n, 1).

    The derivative by the head is added to `head_grad`, but for the targets' part.
    """
    logits = (states @ across).float()  # (n, V)
    bend = _bend_(logits, cap)
    chosen = targets[:, None]
    own, largest = logits.gather(1, chosen), logits.amax(-1, keepdim=True)  # (n, 1)
    odds = logits.sub_(largest).exp_()
    total = odds.sum(-1, keepdim=True)
    normaliser = total.log() + largest
    loss = ((normaliser - own)[:, 0] * weights).sum()
    # Chance - 1 would lose its digits in bfloat16 where the target is nearly certain: it goes by itself.
    slope = ((own - normaliser).exp() - 1) * weights[:, None]
    if bend is not None:
        odds, slope = odds * bend, slope * bend.gather(1, chosen)
    odds = odds.to(states.dtype).scatter_(1, chosen, 0.0)
    scale = weights[:, None] / total  # makes slopes of odds, beside D rather than V
    if head_grad is not None:
        _add_(head_grad, odds.t() @ (states * scale).to(states.dtype))
    return loss, (odds @ head) * scale + head[targets] * slope, slope  # the second is float32


def _add_(total: Tensor, part: Tensor) -> None:
    """Add bfloat16 to float32; on CPU in pieces, since PyTorch first makes a float32 copy of what it adds.

    Compiled it makes none, but would copy all to change some rows.
    """
    pieces = (total,), (part,)
    if total.device.type == "cpu" and part.dtype != total.dtype and not torch.compiler.is_compiling():
        pieces = total.split(_ROWS), part.split(_ROWS)
    for into, more in zip(*pieces, strict=True):
        into += more


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden, head, targets, temperature, cap) -> Tensor:  # type: ignore[override]
        parts, across = [], _across(head)
        for part in _chunks(len(hidden), len(head)):
            logits = (hidden[part] @ across).float()
            _bend_(logits, cap)
            logits = _tempered(logits, temperature)
            own, largest = logits.gather(1, targets[part, None]), logits.amax(-1, keepdim=True)  # (n, 1)
            total = logits.sub_(largest).exp_().sum(-1, keepdim=True)  # in place: logsumexp makes a copy
            parts.append((own - largest - total.log())[:, 0])
        ctx.save_for_backward(hidden, head, targets)
        ctx.temperature, ctx.cap = temperature, cap
        return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor):  # type: ignore[override]
        hidden, head, targets = ctx.saved_tensors
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        hidden_grad = torch.empty_like(hidden) if wants_hidden else None
        head_grad = torch.zeros_like(head, dtype=torch.float32) if wants_head else None
        across = _across(head)
        for part in _chunks(len(hidden), len(head)):
            logits = (hidden[part] @ across).float()
            bend = _bend_(logits, ctx.cap)
            logits = _tempered(logits, ctx.temperature)
            odds = logits.sub_(logits.amax(-1, keepdim=True)).exp_()
            scale = (upstream[part, None] / ctx.temperature).float()  # (n, 1)
            slope = odds.mul_(-scale / odds.sum(-1, keepdim=True))
            slope = slope.scatter_add_(1, targets[part, None], scale)
            slope = (slope if bend is None else slope.mul_(bend)).to(hidden.dtype)
            if hidden_grad is not None:
                hidden_grad[part] = slope @ head
            if head_grad is not None:
                _add_(head_grad, slope.t() @ hidden[part])
        return hidden_grad, None if head_grad is None else head_grad.to(head.dtype), None, None, None


def _bend_(logits: Tensor, cap: float | None) -> Tensor | None:
    """Bend logits to within ±cap in place, as Transformer.unembed does; returns the slope of that."""
    if cap is None:
        return None
    slope = 1 - logits.div_(cap).tanh_().square()
    logits.mul_(cap)
    return slope


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1.0 else logits.div_(temperature)


def _chunks(n: int, vocabulary: int) -> list[slice]:
    """Parts of one size, so that a compiled chunk sees few shapes; multiples of 64, which matmuls like."""
    size = max(1, min(n, max(64, CHUNK_ELEMENTS // vocabulary // 64 * 64)))
    return [slice(start, start + size) for start in range(0, n, size)]


_compiled: list[Any] = []


def _compiled_chunk_loss() -> Any:
    if not _compiled:
        _compiled.append(torch.compile(_chunk_loss))
    return _compiled[0]
