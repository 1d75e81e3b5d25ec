"""The few facts about other processes that the rest of the code may ask for, true without any of them too."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def rank() -> int:
    """The number of this process, 0 when it is alone."""
    group = _process_group()
    return group.get_rank() if group else 0


def world_size() -> int:
    """How many processes train together, 1 when this one is alone."""
    group = _process_group()
    return group.get_world_size() if group else 1


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of every process's `tensor`, as a new tensor; `tensor` itself when alone."""
    group = _process_group()
    if group is None:
        return tensor
    total = tensor.detach().clone()
    group.all_reduce(total)
    return total


def _process_group():
    """`torch.distributed` once it is initialised. A process that never imported torch has no group: so no
    import here."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    return torch.distributed
