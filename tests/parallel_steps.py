"""Training steps and words between processes, run by torchrun and in one process, for tests to compare.

torchrun --nproc_per_node 2 tests/parallel_steps.py OUT.safetensors CASE ...
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_objectives import ragged, tiny
from torch import Tensor
from torch.distributed.tensor import DTensor

from tutelage import dist
from tutelage.data.loader import Loader
from tutelage.data.store import SampleStore
from tutelage.errors import UserError
from tutelage.model.adapters import LoRASettings, add_lora_, settle_
from tutelage.objectives.language import NextToken
from tutelage.train import optim, parallel, precision, surgery
from tutelage.train.ema import EMA
from tutelage.train.evaluate import evaluate
from tutelage.train.freezing import Freezing, freeze_
from tutelage.train.trainer import Trainer

STEPS = 3
LENGTHS = [9, 3, 24, 2, 13, 5, 31, 4, 17, 2, 8, 6, 2, 29, 7, 3, 11, 19]  # of 18 documents


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A few steps; `micro` micro-batches each, shared among the processes."""

    documents: int = 18
    rows: int = 2
    micro: int = 4
    packed: bool = False
    tied: bool = False
    reduction: str = "tokens"
    kind: precision.Precision = "fp32"
    optimizer: str = "adamw"
    exact: bool = (
        False  # Muon in float32: torch's turns matrices in bfloat16, which rounds by how they are cut
    )
    recompute: float = 0.0
    compiled: bool = False
    lora: LoRASettings | None = None
    frozen: Freezing = field(default_factory=Freezing)
    roles: bool = False  # the model has role embeddings


CASES = {
    "plain": Case(),
    "one micro-batch a process of two": Case(micro=2),
    "packed": Case(packed=True, rows=1),
    "tied": Case(tied=True),
    "packed, tied, by sequence": Case(packed=True, rows=1, tied=True, reduction="sequences"),
    "by sequence": Case(reduction="sequences"),
    # The third step has one document: with two processes the second has none, with four the others too.
    "one document for two": Case(documents=5, rows=1, micro=2),
    "one document for four": Case(documents=9, rows=1, tied=True),
    "one packed row for two": Case(documents=8, rows=1, micro=2, packed=True),
    "muon": Case(optimizer="muon"),
    "muon, in float32": Case(optimizer="muon", exact=True),
    "recomputed": Case(recompute=0.5),
    "roles": Case(roles=True, tied=True, packed=True, rows=1),
    "roles, one document for two": Case(roles=True, documents=5, rows=1, micro=2, kind="bf16"),
    "bf16": Case(kind="bf16"),
    "bf16, tied": Case(kind="bf16", tied=True),
    "bf16_pure": Case(kind="bf16_pure"),
    "fp16": Case(kind="fp16"),
    "lora": Case(lora=LoRASettings(rank=4)),
    "lora, bf16, tied embedding": Case(lora=LoRASettings(rank=4, embedding=True), tied=True, kind="bf16"),
    "dora": Case(lora=LoRASettings(rank=4, dora=True, targets=("q_proj", "down_proj")), packed=True, rows=1),
    "pissa, recomputed": Case(lora=LoRASettings(rank=4, init="pissa"), recompute=0.5),
    "first block frozen": Case(frozen=Freezing(layers=1)),
    "head alone, bf16": Case(frozen=Freezing(parts="head"), kind="bf16"),
    "compiled": Case(compiled=True),
    "compiled, recomputed": Case(compiled=True, recompute=0.5, tied=True),
}


def steps(case: Case) -> dict[str, Tensor]:
    """What some steps see and leave, by name: numbers, gradients, weights, averages and validations."""
    with pytest.MonkeyPatch.context() as patch:
        if case.exact:
            patch.setattr(Tensor, "bfloat16", Tensor.clone)
        return _steps(case)


def _steps(case: Case) -> dict[str, Tensor]:
    world = dist.world_size()
    model = tiny(tied=case.tied, roles=case.roles)
    if case.lora:
        add_lora_(model, case.lora)
        model.model.norm.weight.requires_grad_(True)  # trained beside
    else:
        freeze_(model, case.frozen)
    if case.compiled:
        surgery.compile_blocks(model)
    surgery.recompute(model, case.recompute)
    if world > 1:
        weights = parallel.shard(model, case.kind, torch.device("cpu"))
    else:
        weights = precision.masters(model, case.kind)
    settings = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-3, "wd": 0.1}  # eps: no noise becomes a step
    if case.optimizer == "muon":
        optimizer = optim.MuonAdamW(weights, muon_lr=None, **settings)
    else:
        optimizer = optim.adamw(weights, **settings)
    optim.allocate_state(optimizer)
    settle_(model)
    precision.follow(model, weights, optimizer)
    average = EMA(weights, decay=0.9)
    average.follow(optimizer)
    seen: dict[str, Tensor] = {}
    step = [0]

    def note(*_: object) -> None:
        step[0] += 1
        seen.update(
            {f"gradient {step[0]} {n}": full(p.grad) for n, p in weights.items() if p.grad is not None}
        )

    optimizer.register_step_pre_hook(note)
    data = loader(case, world, training=True)
    held_out = loader(case, world, training=False)
    schedule = optim.schedule("linear", steps=STEPS, warmup=1)
    scale = precision.LossScale(patience=2) if case.kind == "fp16" else None
    trainer = Trainer(model, NextToken(), data, optimizer, schedule, steps=STEPS, clip=1.0, scale=scale)
    trainer.rehearse(data.longest())

    def report(trainer: Trainer, metrics: dict[str, float]) -> None:
        values = {**metrics, **{f"val {k}": v for k, v in evaluate(model, NextToken(), held_out).items()}}
        values.pop("seconds")
        seen.update({f"number {trainer.step} {name}": torch.tensor(value) for name, value in values.items()})
        seen.update({f"weight {trainer.step} {name}": full(p) for name, p in weights.items()})

    trainer.hooks = [report]
    trainer.fit()
    seen.update({f"average {name}": full(p) for name, p in average.weights().items()})
    with average.swapped(model):
        seen["number average loss"] = torch.tensor(evaluate(model, NextToken(), held_out)["loss"])
    return seen


def loader(case: Case, world: int, *, training: bool) -> Loader:
    """This process's share of the data."""
    assert case.micro % world == 0
    return Loader(
        SampleStore.of(ragged(LENGTHS[: case.documents] if training else LENGTHS[:7])),
        length=32,
        rows=case.rows,
        accumulate=case.micro // world if training else 1,
        packed=case.packed,
        seed=3,
        rank=dist.rank(),
        world=world,
        reduction=case.reduction,
        shuffle=training,
        epochs=None if training else 1,
    )


def full(tensor: Tensor) -> Tensor:
    """The whole of it, in float32, gathered where it is sharded."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().float().clone()


def words(failing: Callable[[], object]) -> str:
    """What something that must fail says."""
    try:
        failing()
    except UserError as error:
        return f"{error}{' (all)' if error.told_by_all else ''}"
    return "did not fail"


def on(rank: int, value: object = None) -> Callable[[], object]:
    """Work that fails on one process, as a mistake of the user, and gives each its number elsewhere."""

    def work() -> object:
        if dist.rank() == rank:
            raise UserError(f"rank {rank} cannot")
        return dist.rank() if value is None else value

    return work


def talk(place: Path) -> dict[str, object]:
    """What this process hears of the others."""
    left = place / "left"

    def leave() -> bool:
        """Whether it is there already; leaves it there."""
        found = left.exists()
        left.touch()
        return found

    return {
        "rank": dist.rank(),
        "world": dist.world_size(),
        "largest": dist.largest(10 - dist.rank()),
        "sum": dist.all_reduce_sum(torch.tensor([1.0, dist.rank()])).tolist(),
        "together": dist.together(on(-1)),
        "by rank zero": dist.by_rank_zero(on(1)),
        "found": dist.rank_zero_first(leave),
        "failures": [
            words(lambda: dist.together(on(1))),
            words(lambda: dist.together(on(0))),
            words(lambda: dist.rank_zero_first(on(0))),
            words(lambda: dist.rank_zero_first(on(1))),
            words(lambda: dist.by_rank_zero(on(0))),
        ],
    }


def main(out: Path, names: list[str]) -> None:
    """Write what the cases leave from rank 0, and from every rank what it hears."""
    dist.start()
    heard = talk(out.parent)
    (out.parent / f"heard-{dist.rank()}.json").write_text(json.dumps(heard))
    found = {f"{name}: {key}": value for name in names for key, value in steps(CASES[name]).items()}
    if dist.rank() == 0:
        save_file(found, out)
    dist.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
