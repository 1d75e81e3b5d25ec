"""Muon inside blocks and AdamW around them: one optimizer that is the two of torch, step by step."""

import copy
import itertools

import pytest
import torch
from test_objectives import ragged, tiny
from test_trainer import LENGTHS, cut
from tiny_runs import differences, leavings, material, refused, run, watched

from tutelage.data.batch import Sample
from tutelage.data.pack import collate
from tutelage.objectives.language import NextToken
from tutelage.recipes.sft import SFTConfig
from tutelage.recipes.stage.optimizing import optimizer_of
from tutelage.train import optim, precision
from tutelage.train.saver import Saver
from tutelage.train.trainer import Trainer

SETTINGS = {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-8, "wd": 0.1}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


def is_muons(name: str) -> bool:
    """Said anew here: the seven matrices of a block."""
    return name.split(".")[-2] in {*(f"{n}_proj" for n in ("q", "k", "v", "o", "gate", "up", "down"))} and (
        name.endswith(".weight")
    )


def theirs(model, muon_lr):
    """torch's Muon and AdamW over the same split."""
    names = dict(model.named_parameters())
    matrices = [p for name, p in names.items() if is_muons(name)]
    embeddings = [p for name, p in names.items() if p.ndim == 2 and not is_muons(name)]
    vectors = [p for p in names.values() if p.ndim == 1]
    assert len(matrices) == 7 * model.config.n_layers and vectors and embeddings
    groups = [{"params": embeddings, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=3e-3, betas=(0.8, 0.95), eps=1e-8)
    muon = torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    return adamw, muon


@pytest.mark.parametrize("muon_lr", [None, 1e-3])
def test_it_steps_as_torchs_two_optimizers_do_apart(muon_lr):
    """Under a schedule, clipped; the two are given the gradients of the one."""
    model = tiny()
    other = copy.deepcopy(model)
    weights = precision.masters(model, "fp32")
    optimizer = optim.MuonAdamW(weights, muon_lr=muon_lr, **SETTINGS)
    optim.allocate_state(optimizer)
    adamw, muon = theirs(other, muon_lr or 3e-3)
    factor = optim.schedule("linear", steps=5, warmup=2)
    batches = cut(ragged(LENGTHS), micro=4, packed=True)
    trainer = Trainer(model, NextToken(), itertools.repeat(batches), optimizer, factor, steps=5, clip=1.0)

    def follow(optimizer, *_):
        step = trainer.step
        for group, peak in [(g, 3e-3) for g in adamw.param_groups] + [
            (muon.param_groups[0], muon_lr or 3e-3)
        ]:
            group["lr"] = peak * factor(step)
        for name, p in other.named_parameters():
            p.grad = weights[name].grad.clone()
        adamw.step()
        muon.step()

    optimizer.register_step_pre_hook(follow)
    trainer.fit()
    for name, p in other.named_parameters():
        torch.testing.assert_close(weights[name], p, rtol=0, atol=1e-6, msg=name)
        assert p.ndim == 1 or not torch.equal(p, dict(tiny().named_parameters())[name]), "it was trained"


def test_allocated_state_is_that_of_a_fresh_optimizer():
    batches = cut(ragged(LENGTHS), micro=8, packed=True)
    runs = []
    for allocate in (False, True):
        model = tiny()
        weights = precision.masters(model, "fp32")
        optimizer = optim.MuonAdamW(weights, muon_lr=None, **SETTINGS)
        if allocate:
            optim.allocate_state(optimizer)
            assert all(not value.any() for state in optimizer.state.values() for value in state.values())
        constant = optim.schedule("constant", steps=3, warmup=0)
        Trainer(model, NextToken(), itertools.repeat(batches), optimizer, constant, steps=3).fit()
        runs.append({name: p.detach() for name, p in weights.items()})
    assert differences(*runs) == []


def test_a_checkpoint_holds_the_momentum_of_matrices_and_the_moments_of_the_rest(tmp_path):
    model = tiny()
    weights = precision.masters(model, "fp32")
    optimizer = optim.MuonAdamW(weights, muon_lr=None, **SETTINGS)
    optim.allocate_state(optimizer)
    held = {name for name in Saver(tmp_path, weights, optimizer)._tensors() if name.startswith("optimizer.")}
    wanted = {
        f"optimizer.{name}.{key}"
        for name in weights
        for key in (("momentum_buffer",) if is_muons(name) else ("step", "exp_avg", "exp_avg_sq"))
    }
    assert held == wanted


@pytest.mark.parametrize("kind", ["bf16", "bf16_pure"])
def test_a_muon_run_interrupted_and_resumed_is_unbroken(made, tmp_path, monkeypatch, kind):
    watch = watched(monkeypatch)
    whole, broken = tmp_path / "whole" / "out", tmp_path / "broken" / "out"
    settings = {"optimizer": "muon", "muon_lr": 0.02, "precision": kind, "train_steps": 5}
    assert run(*made.pretrain(whole, **settings)).code == 0
    watch.signals = {3: 2}
    assert run(*made.pretrain(broken, **settings)).code == 130
    assert run(*made.pretrain(broken, **settings), "--resume").code == 0
    assert differences(leavings(whole), leavings(broken)) == []


def test_a_run_is_not_resumed_with_the_other_optimizer(made, tmp_path):
    assert run(*made.pretrain(tmp_path, train_steps=2)).code == 0
    message = refused(run(*made.pretrain(tmp_path, train_steps=4, optimizer="muon"), "--resume"))
    assert "holds another model or optimizer than this run's" in message and "exp_avg" in message


def test_a_rate_for_muon_without_muon_is_refused(made, tmp_path):
    says = "muon_lr is given, but optimizer is adamw; --optimizer muon uses it"
    assert says in refused(run(*made.pretrain(tmp_path, muon_lr=0.1)))


def test_the_flags_make_the_optimizer():
    shared = {
        "ckpt_paths": ("m",),
        "train_data_paths": ("jsonl:d",),
        "lr": 0.1,
        "wd": 0.5,
        "optimizer": "muon",
    }
    for muon_lr, expected in ((None, [0.1, 0.1, 0.1]), (0.2, [0.1, 0.1, 0.2])):
        config = SFTConfig(**shared, muon_lr=muon_lr, betas=(0.7, 0.8))
        groups = optimizer_of(config, dict(tiny().named_parameters())).param_groups
        assert [group["lr"] for group in groups] == expected
        assert [group["weight_decay"] for group in groups] == [0.5, 0.0, 0.5]
        assert [group.get("betas") for group in groups] == [(0.7, 0.8), (0.7, 0.8), None]


def test_it_learns_to_count():
    """Each document counts up from a random number; 40 steps of Muon make the next one all but certain."""
    draw = torch.Generator().manual_seed(0)

    def source():
        while True:
            starts = torch.randint(0, 40, (8,), generator=draw).tolist()
            yield [collate([[Sample(list(range(s, s + 12)), [1.0] * 12, [4] * 12) for s in starts]], 96)]

    model = tiny()
    weights = precision.masters(model, "bf16")
    optimizer = optim.MuonAdamW(weights, muon_lr=None, **SETTINGS | {"lr": 1e-2})
    precision.follow(model, weights, optimizer)
    losses = []
    Trainer(
        model,
        NextToken(),
        source(),
        optimizer,
        optim.schedule("constant", steps=40, warmup=0),
        steps=40,
        hooks=[lambda _, metrics: losses.append(metrics["loss"])],
    ).fit()
    assert losses[0] > 3.5 and losses[-1] < 0.3, losses[-1]
