"""The optimizer and the schedule that a training stage's settings mean."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from tutelage.recipes.stage.training import TrainingConfig
from tutelage.train import optim
from tutelage.train.trainer import Schedule


def optimizer_of(config: TrainingConfig, weights: Mapping[str, Tensor]) -> Optimizer:
    """The optimizer of these weights."""
    shared: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps, "wd": config.wd}
    if config.optimizer == "muon":
        return optim.MuonAdamW(weights, muon_lr=config.muon_lr, **shared)
    if config.optimizer_state not in (None, "fp32"):
        return optim.narrow_adamw(weights, kind=config.optimizer_state, seed=config.seed, **shared)
    return optim.adamw(weights, **shared)


def schedule_of(config: TrainingConfig, steps: int) -> Schedule:
    """The factor of the learning rate at each of `steps` steps."""
    return optim.schedule(
        config.lr_scheduler,
        steps=steps,
        warmup=config.warmup(steps),
        floor=config.min_lr_ratio,
        start=config.warmup_init_lr_ratio,
        decay_ratio=config.decay_ratio,
        decay_in_warmup=config.decay_in_warmup,
    )
