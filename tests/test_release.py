"""Weights that move in the backward pass: the same steps bit for bit, with the gradients of one weight."""

import itertools
import math
from importlib.util import find_spec

import pytest
import torch
from test_objectives import ragged, tiny
from test_trainer import LENGTHS, cut
from tiny_runs import differences

from tutelage.objectives.base import Loss
from tutelage.objectives.language import NextToken
from tutelage.train import optim, precision, surgery
from tutelage.train.ema import EMA
from tutelage.train.release import GradientRelease
from tutelage.train.trainer import NonFiniteLossError, Trainer

BATCHES = cut(ragged(LENGTHS), micro=8, packed=True)
SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "wd": 0.1}


def trainer_of(model, *, release=True, kind="fp32", state=None, objective=None, steps=5, hooks=()):
    """A trainer with everything that follows a step, and its weights and averages by name."""
    weights = precision.masters(model, kind)
    if state is None:
        optimizer = optim.adamw(weights, **SETTINGS)
    else:
        optimizer = optim.narrow_adamw(weights, kind=state, seed=0, **SETTINGS)
    optim.allocate_state(optimizer)
    precision.follow(model, weights, optimizer)
    average = EMA(weights, decay=0.9)
    average.follow(optimizer)
    trainer = Trainer(
        model,
        objective or NextToken(),
        itertools.repeat(BATCHES),
        optimizer,
        optim.schedule("cosine", steps=steps, warmup=1),
        steps=steps,
        hooks=hooks,
        release=GradientRelease(model, weights, optimizer) if release else None,
    )
    return trainer, {**weights, **average.tensors()}


def trained(model, **settings):
    """What some steps after a rehearsal leave, weights, averages and state; and their reports."""
    reports = []
    trainer, weights = trainer_of(model, **settings, hooks=[lambda _, metrics: reports.append(metrics)])
    trainer.rehearse(BATCHES)
    trainer.fit()
    for report in reports:
        report.pop("seconds")
    left = {name: value.detach().clone() for name, value in weights.items()}
    left |= {f"model {name}": p.detach() for name, p in model.named_parameters()}
    for n, state in enumerate(trainer.optimizer.state.values()):
        left |= {f"{n} {key}": value for key, value in state.items()}
    return left, reports


@pytest.mark.parametrize("state", [None, "bf16", "8bit"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["fp32", "bf16", "bf16_pure"])
def test_released_steps_are_the_same_bit_for_bit(kind, tied, state):
    """Reports too, with the gradient's norm; a tied embedding, used twice, moves once."""
    if state == "8bit" and find_spec("bitsandbytes") is None:
        pytest.skip("needs bitsandbytes")
    expected, reports = trained(tiny(tied=tied), release=False, kind=kind, state=state)
    found, same = trained(tiny(tied=tied), kind=kind, state=state)
    assert same == reports and reports[0]["loss"] > reports[-1]["loss"]
    assert differences(expected, found) == []


def test_released_steps_of_recomputed_blocks_are_the_same_too():
    results = []
    for release in (False, True):
        model = tiny()
        surgery.recompute(model, 1.0)
        results.append(trained(model, release=release)[0])
    assert differences(*results) == []


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_there_is_never_more_than_one_gradient(kind):
    model = tiny()
    trainer, weights = trainer_of(model, kind=kind)
    alive, move = [], GradientRelease._move

    def watched(release, weight):
        alive.append(sum(p.grad is not None for p in (*model.parameters(), *release._groups)))
        move(release, weight)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GradientRelease, "_move", watched)
        trainer.train_step(BATCHES)
    n = len(list(model.parameters()))
    assert len(alive) == n, "each once"
    assert set(alive) == {2 if kind == "fp32" else 1}, "in float32 a weight is its own master"
    assert all(p.grad is None for p in (*model.parameters(), *weights.values()))


def test_frozen_weights_stay():
    model = tiny()
    frozen = model.model.layers[0].mlp.up_proj.weight
    frozen.requires_grad_(False)
    before = frozen.detach().clone()
    trained(model)
    assert torch.equal(frozen, before)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_before_any_weight_moves(poison):
    def objective(model, batch):
        loss = NextToken()(model, batch)
        return Loss(loss.total * poison, loss.weight)

    model = tiny()
    trainer, weights = trainer_of(model, objective=objective)
    before = {name: p.detach().clone() for name, p in weights.items()}
    trainer.rehearse(BATCHES)  # which only asks for memory
    with pytest.raises(
        NonFiniteLossError, match="step 1: loss (nan|inf), found before the backward"
    ) as error:
        trainer.train_step(BATCHES)
    assert not error.value.spoiled
    assert differences(before, {name: p.detach() for name, p in weights.items()}) == []


def test_a_gradient_that_is_no_number_is_found_and_said_to_have_spoiled_the_weights():
    def objective(model, batch):
        loss = NextToken()(model, batch)
        root = (model.model.norm.weight * 0).sum().sqrt()  # 0, with a slope of 0 times infinity
        return Loss(loss.total + root, loss.weight)

    trainer, _ = trainer_of(tiny(), objective=objective)
    with pytest.raises(NonFiniteLossError, match=r"^step 1: loss \d.*, gradient norm nan$") as error:
        trainer.train_step(BATCHES)
    assert error.value.spoiled


def test_what_needs_all_gradients_at_once_is_no_trainer():
    model = tiny()
    weights = precision.masters(model, "fp32")
    optimizer = optim.adamw(weights, **SETTINGS)
    release = GradientRelease(model, weights, optimizer)
    constant = optim.schedule("constant", steps=1, warmup=0)
    with pytest.raises(AssertionError, match="a gradient is gone before all are there"):
        Trainer(model, NextToken(), iter(()), optimizer, constant, steps=1, clip=1.0, release=release)
