"""A plan as a table to read, the words below it, and a record for programs."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rich.table import Table

_MEANINGS = {
    "weights": "as the model computes with them",
    "masters": "float32 weights that the optimizer trains",
    "gradients": "added up over micro-batches",
    "optimizer": "its state",
    "averages": "of the weights, --ema_decay",
    "batch": "tokens and where they belong",
    "activations": "kept for the backward pass",
    "logits": "a chunk of them, and the loss's gradients",
    "recomputed": "activations of checkpointed blocks, formed again",
    "temporary": "of the backward pass",
    "step": "of the optimizer's step",
}


class Named(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def memory(self) -> float: ...


class Numbers(Protocol):
    """What a run of the model would take."""

    @property
    def trained(self) -> int: ...
    @property
    def parameters(self) -> int: ...
    @property
    def peak(self) -> int: ...
    @property
    def parts(self) -> dict[str, int]: ...
    @property
    def resting(self) -> dict[str, int]: ...
    @property
    def flops(self) -> float: ...


class Plan(Protocol):
    """See `recipes/estimating.py`."""

    @property
    def device(self) -> Named: ...
    @property
    def estimate(self) -> Numbers: ...
    @property
    def processes(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def model_flops(self) -> float: ...
    @property
    def mfu(self) -> float: ...
    @property
    def seconds(self) -> float | None: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def fits(self) -> bool: ...


def table(plan: Plan) -> Table:
    """Memory by part at the peak, then arithmetic and time."""
    found = plan.estimate
    each = f", each of {plan.processes} processes" if plan.processes > 1 else ""
    made = Table(title=f"one optimizer step on {plan.device.name}{each}", title_justify="left")
    made.add_column("at the peak")
    made.add_column("GiB", justify="right")
    made.add_column("")
    for part, size in found.parts.items():
        made.add_row(part, gib(size), _MEANINGS[part])
    made.add_row("peak memory", gib(found.peak), f"of {plan.device.memory:.1f} on the device", style="bold")
    made.add_row(
        "between steps", gib(sum(found.resting.values())), "weights, masters, optimizer", end_section=True
    )
    made.add_row("parameters", f"{found.parameters / 1e6:,.1f} M", f"{found.trained:,} of them trained")
    made.add_row("tokens a step", f"{plan.tokens:,}", "rows as long as they can be")
    made.add_row("TFLOP a step", f"{found.flops / 1e12:,.1f}", f"{_again(plan)}")
    if plan.seconds is not None:
        rate = f"{plan.tokens / plan.seconds:,.0f} tokens a second, at {plan.mfu:.0%} of the device's peak"
        made.add_row("seconds a step", _seconds(plan.seconds), rate)
    return made


def closing(plan: Plan, others: Sequence[tuple[Mapping[str, Any], Plan]]) -> str:
    """Whether it fits, what would, and what was assumed."""
    lines = [f"assumed: {note}" for note in plan.notes]
    words = "fits" if plan.fits else "does not fit"
    lines.append(f"{words} on {plan.device.name}: {gib(plan.estimate.peak)} of {plan.device.memory:.1f} GiB")
    for change, other in others:
        flags = " ".join(
            f"--{name}" + ("" if value is True else f" {value}") for name, value in change.items()
        )
        time = "" if other.seconds is None else f", {_seconds(other.seconds)} s a step"
        lines.append(f"  {gib(other.estimate.peak):>8} GiB{time}{', fits' if other.fits else ''}: {flags}")
    return "\n".join(lines)


def record(plan: Plan, others: Sequence[tuple[Mapping[str, Any], Plan]]) -> dict[str, Any]:
    """The same as plain values, memory in bytes."""
    return {
        **_values(plan),
        "assumed": list(plan.notes),
        "changes": [{"settings": dict(change), **_values(other)} for change, other in others],
    }


def gib(size: float) -> str:
    """Bytes in GiB, small ones with more digits."""
    return f"{size / 2**30:,.2f}" if size >= 2**30 else f"{size / 2**30:.3f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.2f}" if seconds >= 0.1 else f"{seconds:.2g}"


def _again(plan: Plan) -> str:
    more = plan.estimate.flops * plan.processes / plan.model_flops - 1
    return f"{plan.model_flops / 1e12:,.1f} of the model, and {more:.0%} more" if more > 0.005 else ""


def _values(plan: Plan) -> dict[str, Any]:
    found = plan.estimate
    return {
        "device": plan.device.name,
        "device_memory": plan.device.memory * 2**30,
        "fits": plan.fits,
        "peak": found.peak,
        "parts": found.parts,
        "between_steps": found.resting,
        "parameters": found.parameters,
        "trained": found.trained,
        "processes": plan.processes,
        "tokens": plan.tokens,
        "flops": found.flops,
        "model_flops": plan.model_flops,
        "mfu": plan.mfu,
        "seconds": plan.seconds,
    }
