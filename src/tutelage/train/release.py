"""Each weight moves as soon as its gradient is there, which is then freed: never are there gradients of all.

The backward pass comes to the last layers first and needs their weights no more once it has their gradients.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from tutelage import dist


class GradientRelease:
    """Steps the optimizer for one parameter after another, inside the backward pass.

    The step is over with `optimizer.step()`, which finds no gradient left and runs what follows a step. A
    gradient that is no number has moved its weight before anybody sees it.
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor], optimizer: Optimizer):
        """`weights` are what the optimizer trains, by the names of the model's parameters."""
        self.divisor = 1.0  # of gradients of sums; to be set before every backward pass
        self.rehearsing = False  # gradients are freed and move nothing
        self._norms: dict[Tensor, Tensor] = {}
        self._groups = {p: group for group in optimizer.param_groups for p in group["params"]}
        self._one = _without_hooks(optimizer)
        for name, parameter in model.named_parameters():  # after `masters`: its hooks come first
            weight = weights.get(name)
            if weight is not None and weight in self._groups:
                parameter.register_post_accumulate_grad_hook(lambda _, weight=weight: self._move(weight))

    def norm(self) -> Tensor:
        """The length of the gradient since this was last asked, over all processes, not divided."""
        norms = [self._norms[p] for p in self._groups if p in self._norms]
        self._norms = {}
        whole = torch.linalg.vector_norm(torch.stack(norms))
        return whole if dist.world_size() == 1 else dist.all_reduce_sum(whole.double() ** 2).sqrt()

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Inside, gradients are freed and move nothing."""
        self.rehearsing = True
        try:
            yield
        finally:
            self.rehearsing = False

    @torch.no_grad()
    def _move(self, weight: Tensor) -> None:
        gradient = weight.grad
        assert gradient is not None
        if not self.rehearsing:
            local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
            self._norms[weight] = torch.linalg.vector_norm(local)
            torch._foreach_mul_(  # pyright: ignore[reportPrivateImportUsage]
                [gradient],  # as the Trainer divides: in bfloat16 mul_ rounds otherwise
                1.0 / self.divisor,
            )
            self._one.param_groups = [{**self._groups[weight], "params": [weight]}]
            self._one.step()
        weight.grad = None


def _without_hooks(optimizer: Optimizer) -> Optimizer:
    """A second of its kind over the same state, whose steps nothing follows."""
    twin = object.__new__(type(optimizer))
    hooks = {"_optimizer_step_pre_hooks": OrderedDict(), "_optimizer_step_post_hooks": OrderedDict()}
    twin.__dict__ = {**optimizer.__dict__, **hooks}
    return twin
