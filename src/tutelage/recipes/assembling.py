"""From a model and the settings to a trainer: what `fit` trains with, and a plan runs without data."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage import dist
from tutelage.data.batch import Batch
from tutelage.model.transformer import Transformer
from tutelage.objectives.base import Objective
from tutelage.recipes.optimizing import optimizer_of, schedule_of
from tutelage.recipes.training import TrainingConfig
from tutelage.train import optim, parallel, precision, surgery
from tutelage.train.ema import EMA
from tutelage.train.trainer import Trainer


@dataclass(slots=True)
class Assembled:
    """A trainer and what was put into it."""

    trainer: Trainer
    weights: dict[str, torch.nn.Parameter]  # what the optimizer trains, and what is frozen, by name
    average: EMA | None

    @property
    def extra(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside weights and optimizer."""
        parts = (self.average, self.trainer.scale)
        return {name: tensor for part in parts if part for name, tensor in part.tensors().items()}

    def follow(self) -> None:
        """Give the model its masters' values, now that they are known, and all of them after each step."""
        precision.follow(self.trainer.model, self.weights, self.trainer.optimizer)
        if self.average:
            self.average.follow(self.trainer.optimizer)


def assemble(
    config: TrainingConfig,
    model: Transformer,
    objective: Objective,
    source: Iterator[list[Batch]],
    steps: int,
    device: torch.device,
) -> Assembled:
    """Masters, optimizer and trainer of a model, as the settings say. Plans are made of it, too."""
    model.attention_impl = config.attention_impl
    if config.compile:
        surgery.compile_blocks(model)
    surgery.recompute(model, config.selective_ac_ratio)
    if dist.world_size() > 1:
        weights = parallel.shard(model, config.precision, device)
    else:
        weights = precision.masters(model, config.precision)
    optimizer = optimizer_of(config, weights)
    schedule = schedule_of(config, steps)
    scale = precision.LossScale() if config.precision == "fp16" else None
    trainer = Trainer(
        model, objective, source, optimizer, schedule, steps=steps, clip=config.clip_grad_norm, scale=scale
    )
    average = EMA(weights, decay=config.ema_decay) if config.ema_decay else None
    optim.allocate_state(optimizer)
    return Assembled(trainer, weights, average)
