"""Where the time of one step goes, from torch's profiler, in the groups that a person thinks in."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile

MATMULS = {"aten::mm", "aten::addmm"}
ATTENTION = {"aten::bmm", "aten::_scaled_dot_product_flash_attention_for_cpu"}
LOSS = "_LinearCrossEntropy"


def shares_of(step: Callable[[], Any]) -> dict[str, float]:
    """Share of the step's time by group, largest first."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    times: Counter[str] = Counter()
    for event in profiler.events():
        times[_group(event)] += event.self_cpu_time_total
    whole = sum(times.values())
    return {name: time / whole for name, time in times.most_common()}


def _group(event: Any) -> str:
    names = [event.name, *(above.name for above in _above(event))]
    if event.name in MATMULS:
        return "matmuls of the head" if LOSS in names else "matmuls of the layers"
    if LOSS in names:
        return "the rest of the loss: softmax, gradient sums"
    if event.name in ATTENTION or "_CausalAttentionBackward" in names or "_CausalAttention" in names:
        return "attention: fused forward, matmuls of the backward"
    if any(name.startswith("Optimizer.step") for name in names):
        return "optimizer, and rounding the masters into the model"
    if any("Compiled" in name for name in names):
        return "compiled rest of the blocks: norms, rotary, SwiGLU, softmax of the backward"
    return "everything else: embedding, gradient norm and hand-over, or the blocks where not compiled"


def _above(event: Any):
    while event.cpu_parent is not None:
        event = event.cpu_parent
        yield event
