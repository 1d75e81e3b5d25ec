"""float32 masters under a model that computes in bfloat16: on one device what FSDP2 does on many."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Precision = Literal["fp32", "bf16", "bf16_pure"]


def load_dtype(precision: Precision) -> torch.dtype:
    """In which dtype to read weights that `masters` will take: never one that would round a master."""
    return torch.bfloat16 if precision == "bf16_pure" else torch.float32


def compute_dtype(precision: Precision) -> torch.dtype:
    """In which dtype the model computes."""
    return torch.float32 if precision == "fp32" else torch.bfloat16


def stored_dtype(precision: Precision) -> torch.dtype:
    """In which dtype the result is stored: the one the model computes in."""
    return compute_dtype(precision)


def masters(model: nn.Module, precision: Precision) -> dict[str, nn.Parameter]:
    """Put the model into its compute dtype and return what the optimizer trains, by name.

    fp32 and bf16_pure train the model's own parameters. bf16 trains float32 copies: a gradient moves to its
    master as soon as the backward pass has formed it, so micro-batches add up in float32.
    """
    if precision == "fp32":
        model.float()
        return dict(model.named_parameters())
    if precision == "bf16_pure":
        model.bfloat16()
        return dict(model.named_parameters())
    copies = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
            copies[name] = parameter
            continue
        master = nn.Parameter(parameter.detach().float())
        parameter.data = parameter.data.bfloat16()
        parameter.register_post_accumulate_grad_hook(lambda p, master=master: _hand_over(p, master))
        copies[name] = master
    return copies


def follow(model: nn.Module, masters: dict[str, nn.Parameter], optimizer: Optimizer) -> None:
    """After each optimizer step, and at once, round the masters into the model."""
    pairs = [(p, masters[name]) for name, p in model.named_parameters() if masters[name] is not p]
    if not pairs:
        return

    @torch.no_grad()
    def copy(*_: object) -> None:
        torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
            [p for p, _ in pairs], [master for _, master in pairs]
        )

    copy()
    optimizer.register_step_post_hook(copy)


def _hand_over(parameter: Tensor, master: nn.Parameter) -> None:
    gradient, parameter.grad = parameter.grad, None
    assert gradient is not None
    if master.grad is None:
        master.grad = gradient.float()
    else:
        master.grad.add_(gradient)
