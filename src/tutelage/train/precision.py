"""float32 masters under a model that computes in bfloat16: on one device what FSDP2 does on many."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Precision = Literal["fp32", "bf16", "bf16_pure", "fp16"]
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def load_dtype(precision: Precision) -> torch.dtype:
    """In which dtype to read weights that `masters` will take: never one that would round a master."""
    return torch.bfloat16 if precision == "bf16_pure" else torch.float32


def compute_dtype(precision: Precision) -> torch.dtype:
    """In which dtype the model computes."""
    return _DTYPES.get(precision, torch.bfloat16)


def masters(model: nn.Module, precision: Precision) -> dict[str, nn.Parameter]:
    """Put the model's parameters into the compute dtype and return what the optimizer trains, by name.

    fp32 and bf16_pure train the model's own parameters. bf16 and fp16 train float32 copies: a gradient moves
    to its master as soon as the backward pass has formed it, so micro-batches add up in float32. What is
    frozen has neither.
    """
    copies, dtype = {}, compute_dtype(precision)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or precision in ("fp32", "bf16_pure"):
            parameter.data = parameter.data.to(dtype)
            if parameter.requires_grad:
                copies[name] = parameter
            continue
        master = nn.Parameter(parameter.detach().float())
        parameter.data = parameter.data.to(dtype)
        parameter.register_post_accumulate_grad_hook(lambda p, master=master: _hand_over(p, master))
        copies[name] = master
    return copies


def follow(model: nn.Module, masters: Mapping[str, Tensor], optimizer: Optimizer) -> None:
    """After each optimizer step, and at once, round the masters into the model."""
    pairs = [(p, masters.get(name, p)) for name, p in model.named_parameters()]
    pairs = [(p, master) for p, master in pairs if master is not p]
    if not pairs:
        return

    @torch.no_grad()
    def copy(*_: object) -> None:
        torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
            [p for p, _ in pairs], [master for _, master in pairs]
        )

    copy()
    optimizer.register_step_post_hook(copy)


class LossScale:
    """A factor of the loss that keeps float16 gradients from vanishing (https://arxiv.org/abs/1710.03740).

    Halved when a gradient overflows, doubled after `patience` steps without. It begins at 1, because totals
    are sums over thousands of tokens and not means.
    """

    def __init__(self, patience: int = 500) -> None:
        self._patience = patience
        self._state = torch.tensor([1.0, 0.0], dtype=torch.float64)  # the factor, steps since it changed

    @property
    def value(self) -> float:
        """What to multiply the loss by."""
        return float(self._state[0])

    def update(self, finite: bool) -> bool:
        """Take note of a step; returns False when the factor is so low that it cannot be to blame."""
        factor, steps = self._state.tolist()
        if not finite:
            factor, steps = factor / 2, 0
        elif steps + 1 == self._patience:
            factor, steps = factor * 2, 0
        else:
            steps += 1
        self._state.copy_(torch.tensor([factor, steps], dtype=torch.float64))
        return factor >= 2.0**-24

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it, to be filled in place when a run is resumed."""
        return {"loss_scale": self._state}


def _hand_over(parameter: Tensor, master: nn.Parameter) -> None:
    gradient, parameter.grad = parameter.grad, None
    assert gradient is not None
    if master.grad is None:
        master.grad = gradient.float()
    else:
        master.grad.add_(gradient)
