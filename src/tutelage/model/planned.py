"""For which kind of device arithmetic is laid out: that of its tensors, unless a plan says another.

A plan runs the model on tensors without data, which can only pretend to lie on a CPU (PyTorch without a GPU
aborts in the backward pass of others). What is done differently on GPUs asks here, not its tensors.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

_kernels: list[
    Callable[..., Tensor] | None
] = []  # the last: of the plan that is running, None of one for CPU


def on_gpu(x: Tensor) -> bool:
    """Whether to compute as on a GPU."""
    return _kernels[-1] is not None if _kernels else x.is_cuda


def planned_flex() -> Any:
    """What stands for FlexAttention in the plan that is running; None without one."""
    return _kernels[-1] if _kernels else None


def main_memory() -> str:
    """Where to put what leaves a device; in a plan for GPUs nowhere, for its bytes are not the GPU's."""
    return "cpu" if planned_flex() is None else "meta"


@contextmanager
def planned(flex: Callable[..., Tensor] | None) -> Iterator[None]:
    """Inside, tensors pass for those of a GPU with `flex` in place of FlexAttention, or (None) of a CPU."""
    _kernels.append(flex)
    try:
        yield
    finally:
        _kernels.pop()
