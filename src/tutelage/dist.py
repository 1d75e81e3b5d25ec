"""What the rest of the code may ask of other processes and tell them, true without any of them too.

Under torchrun every process runs the same command. What only one should do, `rank_zero_first` lets rank 0 do
first; what may fail on one, `together` makes fail on all, with the same words.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from tutelage.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
PATIENCE = timedelta(hours=2)  # that a rank waits for another: tokenizing a corpus happens on one


def launched() -> int:
    """How many processes torchrun started, 1 without it."""
    given = os.environ.get("WORLD_SIZE", "1")
    return int(given) if given.isdigit() else 1


def local_rank() -> int:
    """The number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def start() -> None:
    """Meet the other processes that torchrun started."""
    import torch

    if local_rank() < torch.cuda.device_count():  # else --device cpu is meant, or refused
        torch.cuda.set_device(local_rank())
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {launched()} and {', '.join(missing)} is not set: something else than torchrun "
            "set it; unset it, or start with torchrun"
        )
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, timeout=PATIENCE)


def stop() -> None:
    """Part from the others, once all are here, and end this process; alone, do nothing.

    Threads of PyTorch's backends now and then abort a process that ends by itself ("terminate called without
    an active exception"), and torchrun ends all as soon as one has failed.
    """
    group = _process_group()
    if group is not None:
        group.barrier()
        group.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def first_to_fail() -> bool:
    """Whether no process has asked this before. The others fail of the same or in its wake: one speaks."""
    group = _process_group()
    if group is None:
        return True
    try:
        store = group.distributed_c10d._get_default_store()  # pyright: ignore[reportPrivateUsage]
        return store.add("failed", 1) == 1
    except RuntimeError:  # nobody is left who counts
        return True


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


def gathered(value: T) -> list[T]:
    """Every process's value, by rank."""
    group = _process_group()
    if group is None:
        return [value]
    values: list = [None] * group.get_world_size()
    group.all_gather_object(values, value)
    return values


def largest(value: int) -> int:
    """The largest of all processes' values."""
    return max(gathered(value))


def together(work: Callable[[], T]) -> T:
    """What `work` returns here. If it raises a UserError on any process, all raise the first one's."""
    if _process_group() is None:
        return work()
    result, failed = None, None
    try:
        result = work()
    except UserError as error:
        failed = str(error)
    failures = [each for each in gathered(failed) if each is not None]
    if failures:
        error = UserError(failures[0])
        error.told_by_all = True
        raise error
    return result  # type: ignore[return-value]


def rank_zero_first(work: Callable[[], T]) -> T:
    """`work` on rank 0 and then on the others, who find what it left on disk; all fail if one does."""
    if _process_group() is None:
        return work()
    if rank() == 0:
        result = together(work)
        together(lambda: None)
        return result
    together(lambda: None)
    return together(work)


def by_rank_zero(work: Callable[[], T]) -> T:
    """What `work` returns on rank 0, for all; the others wait, and fail if it does."""
    result = together(work if rank() == 0 else lambda: None)
    return gathered(result)[0]  # type: ignore[return-value]


def _process_group():
    """`torch.distributed` once it is initialised. A process that never imported torch has no group: so no
    import here."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    return torch.distributed
