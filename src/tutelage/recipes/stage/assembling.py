"""From a model and settings to a Trainer: what `fit` trains with and `plan` measures without weights."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from tutelage import dist
from tutelage.data.batch import Batch
from tutelage.model.transformer import Transformer
from tutelage.objectives.base import Objective
from tutelage.recipes.stage.optimizing import optimizer_of, schedule_of
from tutelage.recipes.stage.training import TrainingConfig
from tutelage.train import optim, parallel, precision, surgery
from tutelage.train.ema import EMA
from tutelage.train.release import GradientRelease
from tutelage.train.trainer import Trainer


@dataclass(slots=True)
class Assembled:
    """A run ready to start."""

    trainer: Trainer
    optimizer: Optimizer
    weights: Mapping[str, Tensor]  # what is trained, by name: masters where the model is their rounding
    fixed: Mapping[str, Tensor]  # what an adapter has beside, which is not trained but belongs to it
    average: EMA | None
    extra: Mapping[str, Tensor]  # what checkpoints hold beside the weights and the optimizer's state

    def follow(self) -> None:
        """Round the masters into the model, now that they are known, and after each step; average them."""
        precision.follow(self.trainer.model, self.weights, self.optimizer)
        if self.average:
            self.average.follow(self.optimizer)


def assemble(
    config: TrainingConfig,
    model: Transformer,
    objective: Objective,
    source: Iterator[list[Batch]],
    *,
    steps: int,
    device: torch.device,
) -> Assembled:
    """Put the model into its precision, over its processes, under an optimizer whose state exists."""
    model.attention_impl = config.attention_impl
    if config.compile:
        surgery.compile_blocks(model)
    surgery.recompute(model, config.selective_ac_ratio, config.ac_policy)
    if config.offload_activations:
        surgery.offload(model)
    if dist.world_size() > 1:
        weights = parallel.shard(model, config.precision, device)
    else:
        weights = precision.masters(model, config.precision)
    optimizer = optimizer_of(config, weights)
    schedule = schedule_of(config, steps)
    scale = precision.LossScale() if config.precision == "fp16" else None
    trainer = Trainer(
        model,
        objective,
        source,
        optimizer,
        schedule,
        steps=steps,
        clip=config.clip_grad_norm,
        scale=scale,
        release=GradientRelease(model, weights, optimizer) if config.gradient_release else None,
    )
    average = EMA(weights, decay=config.ema_decay) if config.ema_decay else None
    fixed = {name: p for name, p in model.named_parameters() if ".initial_" in name}
    extra = {**(average.tensors() if average else {}), **(scale.tensors() if scale else {}), **fixed}
    optim.allocate_state(optimizer)
    return Assembled(trainer, optimizer, weights, fixed, average, extra)
