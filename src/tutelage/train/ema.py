"""A running average of the weights, often better than where the last steps left them (arxiv 2411.18704).

It follows the master weights after every optimizer step. Checkpoints hold both; what is validated and
exported is the average.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

RAMP = 2000  # steps: the average forgets faster before, so that fresh weights do not linger in it


def decay_at(step: int, decay: float) -> float:
    """Share of itself that the average keeps at update `step`, from 1: decay (1 - exp(-step / RAMP))."""
    return decay * (1 - math.exp(-step / RAMP))


class EMA:
    """The exponential moving average of trained weights, in float32 on their device: 4 bytes a weight."""

    def __init__(self, weights: Mapping[str, Tensor], *, decay: float):
        self.decay = decay
        self._weights = weights
        self._averages = {name: p.detach().float().clone() for name, p in weights.items() if p.requires_grad}
        self._updates = torch.zeros((), dtype=torch.int64)

    def follow(self, optimizer: Optimizer) -> None:
        """From now on take in the weights after each of its steps."""
        optimizer.register_step_post_hook(lambda *_: self.update())

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the weights as they are."""
        self._updates += 1
        new = 1 - decay_at(int(self._updates), self.decay)
        current = [self._weights[name].detach().float() for name in self._averages]
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            list(self._averages.values()), current, new
        )

    def weights(self) -> dict[str, Tensor]:
        """The averages by name, with what is not trained as it is."""
        return {name: self._averages.get(name, p.detach()) for name, p in self._weights.items()}

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it, to be filled in place when a run is resumed."""
        return {**{f"ema.{name}": p for name, p in self._averages.items()}, "ema.updates": self._updates}

    @torch.no_grad()
    def copy_into(self, model: nn.Module) -> None:
        """Give the model the averages, rounded to its dtype."""
        for name, p in model.named_parameters():
            if name in self._averages:
                p.copy_(self._averages[name])

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """The model has the averages inside, and its own weights again after; a copy keeps them meanwhile."""
        kept = {name: p.detach().clone() for name, p in model.named_parameters() if name in self._averages}
        self.copy_into(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in model.named_parameters():
                    if name in kept:
                        p.copy_(kept[name])
