"""A model over several processes: FSDP2, which keeps a share of every weight, gradient and state on each."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from tutelage import dist
from tutelage.model.transformer import Transformer
from tutelage.train.precision import Precision, compute_dtype


def shard(model: Transformer, precision: Precision, device: torch.device) -> dict[str, nn.Parameter]:
    """Shard the model block by block and return what the optimizer trains, by name: float32 master shards.

    Gradients are summed over processes in float32, never averaged: the Trainer divides once.
    (bf16_pure has no masters: shards are bfloat16.)
    """
    for parameter in model.parameters():
        if precision == "bf16_pure" or not parameter.requires_grad:  # what is frozen has no master
            parameter.data = parameter.data.to(compute_dtype(precision))
    if not any(p.requires_grad for p in model.model.parameters()):
        # FSDP2 waits for a gradient of its output before it sums any, and a head alone would give it none.
        model.register_forward_hook(_ask_for_gradient)
    # Without a mesh FSDP2 takes the machine's accelerator, whatever the run is to use.
    mesh = init_device_mesh(device.type, (dist.world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype(precision), reduce_dtype=torch.float32)
    for block in model.model.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _ask_for_gradient(module: nn.Module, inputs: object, hidden: Tensor) -> Tensor:
    return hidden.requires_grad_() if torch.is_grad_enabled() else hidden


def reshard(model: nn.Module) -> None:
    """Forget gathered weights, so that the next forward pass gathers them as they are now."""
    if isinstance(model, FSDPModule):
        model.reshard()


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside, what no block has (head and embedding) is whole on every process, as generating needs."""
    if isinstance(model, FSDPModule):
        model.unshard()
    yield
    reshard(model)


def whole(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights, gathered from all processes one after another: all must call this; empty but on rank 0."""
    gathered = {}
    for name, weight in weights.items():
        full = weight.full_tensor() if isinstance(weight, DTensor) else weight
        if dist.rank() == 0:
            gathered[name] = full.detach().cpu() if dist.world_size() > 1 else full.detach()
    return gathered
