"""The one training loop: sum a step's micro-batches, divide once, clip, update, report.

Closed: it takes built objects, never configs; nobody subclasses it; a new need is first a new source.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from tutelage import dist
from tutelage.data.batch import Batch
from tutelage.objectives.base import Loss, Objective
from tutelage.train.precision import LossScale
from tutelage.train.release import GradientRelease

Metrics = dict[str, float]
Hook = Callable[["Trainer", Metrics], None]
COUNT = "count of "  # before the name of a metric: what it is divided by
Schedule = Callable[[int], float]  # step, from 0 -> factor of the learning rate


class NonFiniteLossError(ArithmeticError):
    """A step's loss or gradient is not a number; raised before it touches a weight."""

    spoiled = False  # unless gradients were released: those that are no numbers have moved their weights


def means(sums: Mapping[str, float], weight: float) -> Metrics:
    """Summed metrics, each divided by its count or by the weight; one that counted nothing is left out."""
    counts = {name.removeprefix(COUNT): value for name, value in sums.items() if name.startswith(COUNT)}
    values = {name: value for name, value in sums.items() if not name.startswith(COUNT)}
    return {
        name: value / (counts.get(name, weight) or 1.0)
        for name, value in values.items()
        if counts.get(name, 1.0)
    }


def every(n: int, hook: Hook) -> Hook:
    """The hook, called after every n-th step only; n below 1: never."""
    return lambda trainer, metrics: hook(trainer, metrics) if n > 0 and trainer.step % n == 0 else None


class Trainer:
    """Minimises `objective` over `source`: an item of it is one optimizer step, a list of micro-batches."""

    def __init__(
        self,
        model: Any,
        objective: Objective,
        source: Iterator[list[Batch]],
        optimizer: Optimizer,
        schedule: Schedule,
        *,
        steps: int,
        clip: float = 0.0,
        hooks: Sequence[Hook] = (),
        scale: LossScale | None = None,
        release: GradientRelease | None = None,
    ):
        assert release is None or not (clip or scale), "a gradient is gone before all are there"
        self.model = model
        self.objective = objective
        self.source = source
        self.optimizer = optimizer
        self.schedule = schedule
        self.steps = steps
        self.clip = clip  # largest gradient norm; 0: no clipping
        self.hooks = hooks
        self.scale = scale  # of the loss, where gradients are float16
        self.release = release  # which moves each weight in the backward pass
        self.step = 0  # steps done
        self.device = next(model.parameters()).device
        for group in optimizer.param_groups:
            group.setdefault("peak_lr", group["lr"])

    def fit(self) -> None:
        """Train until `steps` steps are done. A hook that raises ends it, after a whole step."""
        while self.step < self.steps:
            started = time.perf_counter()
            metrics = self.train_step(next(self.source))
            self.step += 1
            metrics["seconds"] = time.perf_counter() - started
            for hook in self.hooks:
                hook(self, metrics)

    def train_step(self, batches: list[Batch]) -> Metrics:
        """One update by the gradient of (sum of totals) / (sum of weights) over micro-batches and ranks.

        Raises NonFiniteLossError, weights untouched, when the loss or the gradient's norm is inf or NaN; with
        a `scale` that can be lowered, a step whose gradient overflows is left out instead.
        """
        factor = self.schedule(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        sums = self._accumulate(batches)
        gradients = self._gradients()
        norm = self.release.norm() if self.release else get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm  # sharded by FSDP2
        values = torch.stack([*sums.values(), norm.double()]).tolist()  # the step's one wait for the device
        report = dict(zip([*sums, "grad_norm"], values, strict=True))
        weight = report.pop("weight")
        divisor = (weight or 1.0) * (self.scale.value if self.scale else 1.0)
        loss, norm_value = report.pop("total") / (weight or 1.0), report.pop("grad_norm") / divisor
        finite = math.isfinite(norm_value)
        left_out = self.scale is not None and self.scale.update(finite) and not finite
        if not math.isfinite(loss) or not (finite or left_out):
            self.optimizer.zero_grad()
            raise self._not_finite(loss, norm_value)
        if not left_out:
            shrink = min(1.0, self.clip / norm_value) if self.clip and norm_value else 1.0
            if gradients:
                torch._foreach_mul_(  # pyright: ignore[reportPrivateImportUsage]
                    gradients, shrink / divisor
                )
            self.optimizer.step()
        self.optimizer.zero_grad()
        if self.scale:  # the norm of a step that was left out is no number that JSON has
            report |= {"loss_scale": self.scale.value * (weight or 1.0), "left_out": float(left_out) * weight}
            norm_value = 0.0 if left_out else norm_value
        counts = {name: report.pop(name) for name in ("tokens", "learned")}
        objective = means(report, weight)
        lr = self.optimizer.param_groups[0]["lr"]
        return {"loss": loss, "lr": lr, "grad_norm": norm_value, **counts, **objective}

    def rehearse(self, batches: list[Batch]) -> None:
        """Use a step's memory without its effect: a lack of it shows now, not at hour nine."""
        unmoved = self.release.rehearsal() if self.release else nullcontext()
        with unmoved, torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            self._accumulate(batches)
        self.optimizer.zero_grad()

    def _accumulate(self, batches: list[Batch]) -> dict[str, Tensor]:
        """Gradients of the summed totals, left in the parameters; the sums themselves, over all ranks."""
        self.model.train()
        sums: dict[str, Tensor] = {}
        for batch in batches:
            batch = batch.to(self.device)
            loss = self.objective(self.model, batch)
            if self.release:
                assert len(batches) == 1, "what moved a weight cannot be added to"
                self.release.divisor = self._weight_of(loss)
            (loss.total * self.scale.value if self.scale else loss.total).backward()
            counts = {"tokens": (batch.docs >= 0).sum(), "learned": (batch.weights != 0).sum()}
            parts = {"total": loss.total.detach(), "weight": loss.weight, **counts, **loss.metrics}
            parts |= {f"{COUNT}{name}": count for name, count in loss.counts.items()}
            for name, value in parts.items():
                sums[name] = (
                    sums.get(name, 0.0) + value.detach().double()
                )  # counts are exact, sums lose nothing
        reduced = dist.all_reduce_sum(torch.stack(list(sums.values())))
        return dict(zip(sums, reduced.unbind(), strict=True))

    def _weight_of(self, loss: Loss) -> float:
        """What to divide a step of one micro-batch by, known before its gradients; refuses its loss."""
        sums = torch.stack([loss.total.detach().double(), loss.weight.double()])
        total, weight = dist.all_reduce_sum(sums).tolist()
        mean = total / (weight or 1.0)
        if not math.isfinite(mean) and self.release and not self.release.rehearsing:
            raise NonFiniteLossError(f"step {self.step + 1}: loss {mean}, found before the backward pass")
        return weight or 1.0

    def _not_finite(self, loss: float, norm: float) -> NonFiniteLossError:
        error = NonFiniteLossError(f"step {self.step + 1}: loss {loss}, gradient norm {norm}")
        error.spoiled = self.release is not None
        return error

    def _gradients(self) -> list[Tensor]:
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        return [p.grad for p in parameters if p.grad is not None]
