"""What a training step takes, found by running it on tensors without data: bytes by part, and arithmetic.

The model, the objective, the optimizer and the Trainer are those of a run, so that the answer cannot drift
from the code; only what a GPU does otherwise than a CPU is put in their place (see `model/planned.py`).

B rows   T positions   H query heads   K kv heads   C head dim
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tutelage.data.batch import Batch
from tutelage.model.config import ModelConfig
from tutelage.model.planned import planned
from tutelage.model.quantize import Quantization, quantized_size, quantized_weights
from tutelage.model.transformer import Transformer
from tutelage.objectives.base import Loss, Objective
from tutelage.train.ledger import Ledger
from tutelage.train.optim import by_muon
from tutelage.train.precision import Precision, compute_dtype
from tutelage.train.trainer import Trainer

PARTS = (
    "weights",
    "masters",
    "gradients",
    "optimizer",
    "averages",
    "batch",
    "activations",
    "logits",
    "recomputed",
    "temporary",
    "step",
)
_MICRO_BATCHES = 2  # that are run, at most: the second finds the gradients of the first


class Assembled(Protocol):
    """A trainer of a model, and what it trains."""

    trainer: Trainer
    weights: Mapping[str, Tensor]
    average: Any

    def follow(self) -> None: ...


Assemble = Callable[[Objective, Iterator[list[Batch]]], Assembled]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of one optimizer step."""

    trained: int  # parameters
    parameters: int
    peak: int  # bytes
    parts: dict[str, int]  # bytes at the peak
    peak_part: str  # what ran at the peak
    resting: dict[str, int]  # bytes between steps
    flops: float  # what is computed, recomputation included


def estimate(
    assemble: Assemble, objective: Objective, batch: Batch, *, accumulate: int, gpu: bool, pairs: float
) -> Estimate:
    """Run a step of `accumulate` micro-batches like `batch` without data, on a GPU or on CPU.

    `assemble` builds model and trainer, inside. `pairs` of positions attend to each other in the batch.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    ledger = Ledger(fake, earnest=not gpu)
    with planned(_flex(ledger, pairs) if gpu else None), fake, ledger:
        phases = _Phases(ledger, objective)
        micro = min(accumulate, _MICRO_BATCHES)
        built = assemble(phases, iter(()))
        model, trainer = built.trainer.model, built.trainer
        built.follow()
        _name_parts(ledger, built)
        phases.watch(model, built.weights, trainer)
        with ledger.during("batch"):
            batches = [_without_data(batch, ledger) for _ in range(micro)]
        ledger.flops.clear()
        with ledger.during("temporary"):
            trainer.train_step(batches)
        batches.clear()
        resting = ledger.live()
        parts, peak_part = ledger.at_peak()
    per_step = ledger.flops.pop("step", 0.0)
    return Estimate(
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        parameters=sum(p.numel() for p in model.parameters()) + quantized_weights(model),
        peak=ledger.peak,
        parts={name: parts[name] for name in PARTS if parts.get(name)},
        peak_part=peak_part,
        resting=resting,
        flops=sum(ledger.flops.values()) / micro * accumulate + per_step,
    )


class _Phases:
    """The objective, telling the ledger where a step is."""

    def __init__(self, ledger: Ledger, objective: Objective) -> None:
        self._ledger = ledger
        self._objective = objective

    def __call__(self, model: Transformer, batch: Batch) -> Loss:
        """The loss; what comes after it is the backward pass."""
        with self._ledger.during("logits"):
            return self._objective(model, batch)

    def watch(self, model: Transformer, weights: Mapping[str, Tensor], trainer: Trainer) -> None:
        """Tell forward pass from loss, and gradients from what is freed again."""
        ledger = self._ledger

        def begin(*_: Any) -> None:
            ledger.part = "activations"

        def end(*_: Any) -> None:
            ledger.part = "logits"

        model.register_forward_pre_hook(begin)
        model.register_forward_hook(end)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                master = weights.get(name, parameter)

                def formed(p: Tensor, master: Tensor = master) -> None:
                    ledger.name(iter([g for g in (p.grad, master.grad) if g is not None]), "gradients")

                parameter.register_post_accumulate_grad_hook(formed)

        def stepping(*_: Any) -> None:
            ledger.part = "step"

        def stepped(*_: Any) -> None:
            ledger.part = "temporary"

        trainer.optimizer.register_step_pre_hook(stepping)
        trainer.optimizer.register_step_post_hook(stepped)


def _name_parts(ledger: Ledger, built: Assembled) -> None:
    model, optimizer = built.trainer.model, built.trainer.optimizer
    own = dict(model.named_parameters())
    ledger.name(iter(p for name, p in built.weights.items() if p is not own.get(name)), "masters")
    ledger.name(iter(own.values()), "weights")
    state = (x for values in optimizer.state.values() for x in values.values() if isinstance(x, Tensor))
    ledger.name(state, "optimizer")
    if built.average:
        ledger.name(iter(built.average.tensors().values()), "averages")


def _without_data(batch: Batch, ledger: Ledger) -> Batch:
    given = {each.name: getattr(batch, each.name) for each in fields(batch)}
    return replace(batch, **{name: ledger.in_earnest(x) for name, x in given.items() if x is not None})


def _flex(ledger: Ledger, pairs: float) -> Callable[..., Tensor]:
    """What FlexAttention's kernels keep and compute: no scores, but the output and its normalisers."""

    class Flex(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # type: ignore[override]
            ledger.count_flops(4 * q.shape[1] * q.shape[3] * pairs)
            out, normaliser = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
            ctx.save_for_backward(q, k, v, out, normaliser)
            return out

        @staticmethod
        def backward(ctx: Any, upstream: Tensor):  # type: ignore[override]
            q, k, v, _, normaliser = ctx.saved_tensors
            ledger.count_flops(10 * q.shape[1] * q.shape[3] * pairs)  # scores again, and four products
            torch.empty_like(normaliser)  # sum of upstream times out
            return tuple(torch.empty_like(x) for x in (q, k, v))

    def flex(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        score_mod: Any,
        block_mask: Any,
        scale: float | None,
        enable_gqa: bool,
    ) -> Tensor:
        return Flex.apply(q, k, v)

    return flex


def sharded(
    found: Estimate,
    shape: ModelConfig,
    precision: Precision,
    processes: int,
    quantization: Quantization | None = None,
    *,
    released: bool = False,
) -> Estimate:
    """The estimate of one of several processes (FSDP2), by arithmetic.

    Weights, gradients and optimizer are shared out; what computing needs is gathered: embedding, norm and
    head for all of a step, blocks two at a time (one computes, the next one comes), and their gradients.
    Codes of quantized weights are no parameters: every process has all of them.
    """
    size = compute_dtype(precision).itemsize
    with torch.device("meta"):
        model = Transformer(shape)
    codes, coded = quantized_size(model, quantization)
    block = sum(p.numel() for p in model.model.layers[0].parameters())
    rest = sum(p.numel() for p in model.parameters()) - block * shape.n_layers
    stored = size if precision == "bf16_pure" else 4  # bytes of a master, and of its gradient
    parts = dict(found.parts)
    parts["weights"] = (rest + 2 * (block - coded // shape.n_layers)) * size + codes
    frozen = found.parameters - found.trained - coded
    parts["masters"] = (found.trained * stored + frozen * size) // processes
    formed = 2 * min(block, found.trained // shape.n_layers) * (size + 4)  # and summed in float32
    parts["gradients"] = formed + (0 if released else found.trained * stored // processes)
    for name in ("optimizer", "averages", "step"):
        if name in parts:
            parts[name] //= processes
    resting = {name: parts[name] for name in ("masters", "optimizer", "averages") if name in parts}
    return replace(found, parts=parts, peak=sum(parts.values()), resting=resting)


_MOMENT = {"fp32": 4, "bf16": 2, "8bit": 1, "paged_8bit": 1}  # bytes


def standing(
    model: Transformer,
    precision: Precision,
    *,
    muon: bool,
    averaged: bool,
    state: str | None = None,
    released: bool = False,
    quantization: Quantization | None = None,
) -> dict[str, int]:
    """Bytes of what a step has whatever its batch: a plan's numbers by arithmetic.

    `model` is as before it was quantized. `state` is in what the optimizer keeps its moments; gradients that
    are `released` are never all there.
    """
    codes, coded = quantized_size(model, quantization)
    size = compute_dtype(precision).itemsize
    stored = size if precision == "bf16_pure" else 4  # bytes of a number that the optimizer trains
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    count = sum(p.numel() for _, p in trained)
    moments = sum(p.numel() * (1 if muon and by_muon(name, p) else 2) for name, p in trained)
    return {
        "weights": (sum(p.numel() for p in model.parameters()) - coded) * size + codes,
        "masters": count * stored if precision in ("bf16", "fp16") else 0,
        "gradients": 0 if released else count * stored,
        "optimizer": moments * (_MOMENT[state] if state else stored),
        "averages": 4 * count * averaged,
    }
