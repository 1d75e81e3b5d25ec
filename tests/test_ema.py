"""The running average of the weights: its golden ramp, torch's arithmetic, and where it is used."""

import copy
import itertools
import math
import signal

import pytest
import torch
from safetensors.torch import load_file
from test_objectives import ragged, tiny
from test_trainer import LENGTHS, cut
from tiny_runs import differences, leavings, material, metrics, refused, run, stored, watched

from tutelage.errors import UserError
from tutelage.objectives.language import NextToken
from tutelage.train import optim, precision
from tutelage.train.ema import EMA, decay_at
from tutelage.train.saver import Saver
from tutelage.train.trainer import Trainer


@pytest.mark.parametrize(
    ("step", "expected"), [(1, 0.0005), (100, 0.048766), (2000, 0.632057), (20000, 0.999855)]
)
def test_the_ramp_at_the_golden_steps(step, expected):
    assert decay_at(step, 0.9999) == pytest.approx(expected, abs=1e-6)


def averaged(kind, *, steps=5):
    """A model trained for some steps, its masters, its optimizer and the average that followed."""
    model = tiny()
    weights = precision.masters(model, kind)
    optimizer = optim.adamw(weights, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, wd=0.0)
    optim.allocate_state(optimizer)
    ema = EMA(weights, decay=0.9)
    precision.follow(model, weights, optimizer)
    ema.follow(optimizer)
    constant = optim.schedule("constant", steps=steps, warmup=0)
    batches = cut(ragged(LENGTHS), micro=8, packed=True)
    source = itertools.repeat(batches)
    Trainer(model, NextToken(), source, optimizer, constant, steps=steps).fit()
    return model, weights, optimizer, ema


@pytest.mark.parametrize("kind", ["fp32", "bf16", "bf16_pure"])
def test_it_is_the_average_that_torch_computes(kind, monkeypatch):
    """With a ramp of 3 steps, so that a few steps show it; in float32 whatever the weights are kept in."""
    monkeypatch.setattr("tutelage.train.ema.RAMP", 3)
    start = tiny()
    if kind == "bf16_pure":
        start = start.bfloat16()
    history = []

    class Weights(torch.nn.Module):
        def __init__(self, values):
            super().__init__()
            self.list = torch.nn.ParameterList(values)

    def average(old, new, n):
        kept = 0.9 * (1 - math.exp(-float(n) / 3))
        return kept * old + (1 - kept) * new

    oracle = torch.optim.swa_utils.AveragedModel(
        Weights([p.detach().float() for p in start.parameters()]), avg_fn=average
    )
    oracle.n_averaged.fill_(1)  # the start counts as an average already
    _, weights, optimizer, ema = averaged(kind, steps=0)
    optimizer.register_step_post_hook(
        lambda *_: history.append([p.detach().float().clone() for p in weights.values()])
    )
    for step in range(6):
        for p in weights.values():
            p.grad = torch.full_like(p, 0.5 - step % 3)
        optimizer.step()
    for values in history:
        oracle.update_parameters(Weights(values))
    for mine, theirs in zip(ema.weights().values(), oracle.module.list, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-5, atol=1e-6)


def test_it_follows_every_step_and_changes_none():
    _, weights, _, ema = averaged("bf16", steps=4)
    assert int(ema.tensors()["ema.updates"]) == 4
    plain = tiny()
    masters = precision.masters(plain, "bf16")
    other = optim.adamw(masters, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, wd=0.0)
    precision.follow(plain, masters, other)
    constant = optim.schedule("constant", steps=4, warmup=0)
    source = itertools.repeat(cut(ragged(LENGTHS), micro=8, packed=True))
    Trainer(plain, NextToken(), source, other, constant, steps=4).fit()
    assert (
        differences(
            {name: p.detach() for name, p in weights.items()},
            {name: p.detach() for name, p in masters.items()},
        )
        == []
    )


@pytest.mark.parametrize("kind", ["fp32", "bf16", "bf16_pure"])
def test_the_model_has_the_averages_inside_and_its_own_weights_after(kind, monkeypatch):
    monkeypatch.setattr("tutelage.train.ema.RAMP", 1)
    model, weights, _, ema = averaged(kind)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for failing in (False, True):
        try:
            with ema.swapped(model):
                for name, p in model.named_parameters():
                    assert torch.equal(p, ema.weights()[name].to(p.dtype)), name
                    assert not torch.equal(p, before[name]), name
                if failing:
                    raise KeyError
        except KeyError:
            assert failing
        assert differences(before, {name: p.detach() for name, p in model.named_parameters()}) == []


def test_what_is_not_trained_is_not_averaged():
    model = tiny()
    model.head_weight.requires_grad_(False)
    ema = EMA(dict(model.named_parameters()), decay=0.9)
    assert "ema.lm_head.weight" not in ema.tensors() and len(ema.tensors()) == len(list(model.parameters()))
    with torch.no_grad():
        model.head_weight.add_(1)
    assert torch.equal(ema.weights()["lm_head.weight"], model.head_weight)
    with ema.swapped(model):
        assert torch.equal(ema.weights()["lm_head.weight"], model.head_weight)


def test_a_checkpoint_brings_the_average_back_and_is_refused_without_one(tmp_path):
    _, weights, optimizer, ema = averaged("bf16")
    path = Saver(tmp_path, weights, optimizer, extra=ema.tensors()).save(5, {})
    saved = copy.deepcopy(ema.tensors())
    _, weights, optimizer, other = averaged("bf16", steps=2)
    Saver(tmp_path, weights, optimizer, extra=other.tensors()).load(path)
    assert differences(saved, other.tensors()) == []
    with pytest.raises(UserError, match=r"another model or optimizer than this run's: extra\.ema\.lm_head"):
        Saver(tmp_path, weights, optimizer).load(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_a_run_validates_and_exports_the_average_and_trains_on_without_it(made, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("tutelage.train.ema.RAMP", 1)
    settings = {"precision": kind, "train_steps": 6, "val_data_paths": made.held_out, "val_freq": 2}
    plain, out = tmp_path / "plain", tmp_path / "average"
    assert run(*made.sft(plain, **settings)).code == 0
    ended = run(*made.sft(out, **settings, ema_decay=0.9))
    assert ended.code == 0, ended.err
    held = [stored(where / "checkpoints" / "step-0000006") for where in (plain, out)]
    raw = [{n: v for n, v in tensors.items() if n.startswith(("model.", "optim"))} for tensors in held]
    assert differences(*raw) == []
    assert int(held[1]["extra.ema.updates"]) == 6
    result = load_file(out / "model" / "model.safetensors")
    for name, value in result.items():
        assert torch.equal(value, held[1][f"extra.ema.{name}"].to(value.dtype)), name
    rows = list(zip(metrics(plain), metrics(out), strict=True))
    assert all(one["loss"] == other["loss"] for one, other in rows)
    assert [one["val_loss"] != other["val_loss"] for one, other in rows if "val_loss" in one] == [True] * 3
    again = tmp_path / "again"
    settings |= {"ckpt_paths": out, "lr": 0.0, "train_steps": 1}
    assert run(*made.sft(again, **settings)).code == 0
    assert metrics(again)[-1]["val_loss"] == pytest.approx(rows[-1][1]["val_loss"], rel=1e-4)


def test_an_averaged_run_interrupted_and_resumed_is_unbroken(made, tmp_path, monkeypatch):
    watch = watched(monkeypatch)
    settings = {"ema_decay": 0.5, "train_steps": 6, "precision": "bf16", "val_data_paths": made.held_out}
    whole, broken = tmp_path / "whole" / "out", tmp_path / "broken" / "out"
    assert run(*made.sft(whole, **settings)).code == 0
    watch.signals = {3: signal.SIGINT}
    assert run(*made.sft(broken, **settings)).code == 130
    assert run(*made.sft(broken, **settings), "--resume").code == 0
    assert differences(leavings(whole), leavings(broken)) == []
    assert run(*made.sft(broken, **settings), "--resume").code == 0  # finished: the result is made again
    assert differences(leavings(whole), leavings(broken)) == []


def test_a_decay_that_would_never_forget_is_refused(made, tmp_path):
    says = "ema_decay is 1.0, must be from 0 up to, not with, 1"
    assert says in refused(run(*made.sft(tmp_path, ema_decay=1)))
