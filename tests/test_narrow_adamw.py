"""AdamW with narrow moments: the arithmetic of the wide one and of bitsandbytes, rounded as promised."""

import copy
import itertools
from importlib.util import find_spec

import pytest
import torch
from test_objectives import ragged, tiny
from test_trainer import LENGTHS, cut
from tiny_runs import differences
from torch import nn

from tutelage.data.batch import Sample
from tutelage.data.pack import collate
from tutelage.objectives.language import NextToken
from tutelage.train import narrow_adamw, optim, precision
from tutelage.train.narrow_adamw import NarrowAdamW, round_by_chance_
from tutelage.train.saver import Saver
from tutelage.train.trainer import Trainer

SETTINGS = {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-8}
needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
KINDS = ["bf16", pytest.param("8bit", marks=needs_bitsandbytes)]


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """A matrix of some stretches and a rest, one with a broken block, and a vector too small for scales."""
    draw = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(*s, generator=draw).to(dtype)) for s in [(1000, 20), (75, 77), (8,)]]


def given_gradients(step: int, *lists: list[nn.Parameter]) -> None:
    for n, alike in enumerate(zip(*lists, strict=True)):
        gradient = torch.randn(alike[0].shape, generator=torch.Generator().manual_seed(step * 10 + n)) * 0.01
        for p in alike:
            p.grad = gradient.to(p.dtype)


@pytest.fixture
def small_stretches(monkeypatch):
    monkeypatch.setattr(narrow_adamw, "STRETCH", 4096)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bf16_moments_are_those_of_torchs_adamw_rounded(small_stretches, dtype):
    """Step by step from the same moments: torch's are then set to the rounded ones."""
    ours = parameters(dtype)
    theirs = [nn.Parameter(p.detach().float()) for p in ours]
    one = NarrowAdamW([{"params": ours, "weight_decay": 0.1}], kind="bf16", **SETTINGS)
    other = torch.optim.AdamW(theirs, weight_decay=0.1, **SETTINGS)
    for step in range(4):
        given_gradients(step, ours, theirs)
        for p, q in zip(ours, theirs, strict=True):
            q.grad = p.grad.float()
        one.step()
        other.step()
        for p, q in zip(ours, theirs, strict=True):
            assert p.dtype == dtype
            torch.testing.assert_close(
                p, q.to(dtype), rtol=1e-6 if dtype == torch.float32 else 8e-3, atol=1e-7
            )
            mine, exact = one.state[p], other.state[q]
            assert mine["exp_avg"].dtype == mine["exp_avg_sq"].dtype == torch.bfloat16
            torch.testing.assert_close(mine["exp_avg"], exact["exp_avg"].bfloat16(), rtol=8e-3, atol=0)
            off = (mine["exp_avg_sq"].float() - exact["exp_avg_sq"]).abs()
            assert (off <= exact["exp_avg_sq"] * 2**-7).all(), "one of the two neighbours"
            exact["exp_avg"].copy_(mine["exp_avg"])
            exact["exp_avg_sq"].copy_(mine["exp_avg_sq"])
            q.data.copy_(p)


@needs_bitsandbytes
def test_8_bit_steps_are_those_of_bitsandbytes(small_stretches):
    """Bit for bit, though a stretch at a time; vectors have float32 moments there too."""
    import bitsandbytes

    ours, theirs = parameters(), parameters()
    one = NarrowAdamW([{"params": ours, "weight_decay": 0.1}], kind="8bit", **SETTINGS)
    other = bitsandbytes.optim.AdamW8bit(theirs, weight_decay=0.1, **SETTINGS)
    for step in range(5):
        given_gradients(step, ours, theirs)
        one.step()
        other.step()
    for p, q in zip(ours[:2], theirs[:2], strict=True):
        assert torch.equal(p, q)
        mine, exact = one.state[p], other.state[q]
        names = {"exp_avg": "state1", "exp_avg_sq": "state2", "scale": "absmax1", "scale_sq": "absmax2"}
        for name, same in names.items():
            assert torch.equal(mine[name].flatten(), exact[same].flatten()), name
    torch.testing.assert_close(ours[2], theirs[2], rtol=1e-6, atol=0)
    assert one.state[ours[2]]["exp_avg"].dtype == torch.float32


def test_rounding_by_chance_is_right_in_the_mean_and_always_to_a_neighbour():
    """1 + 2^-9 lies a quarter of the way from 1 to the next bfloat16, 1 + 2^-7: a quarter of all go up."""
    wide = torch.full((100_000,), 1 + 2.0**-9)
    narrow = torch.empty(100_000, dtype=torch.bfloat16)
    round_by_chance_(narrow, wide, torch.Generator().manual_seed(0))
    assert set(narrow.tolist()) == {1.0, 1 + 2.0**-7}
    assert (narrow > 1).float().mean().item() == pytest.approx(0.25, abs=0.005)
    exact = torch.tensor([0.0, 1.0, -2.5, 2.0**-126, -0.0])
    for seed in range(20):
        found = torch.empty(5, dtype=torch.bfloat16)
        round_by_chance_(found, exact, torch.Generator().manual_seed(seed))
        assert torch.equal(found.float(), exact)


def test_a_second_moment_falls_when_gradients_do():
    """To a hundredth; rounded to the nearest it would stay 6 times too large: 0.999 is half a digit away."""
    p = nn.Parameter(torch.zeros(512))
    optimizer = NarrowAdamW(
        [{"params": [p], "weight_decay": 0.0}], kind="bf16", lr=0.0, betas=(0.9, 0.999), eps=1e-8
    )
    exact, draw = torch.zeros(512), torch.Generator().manual_seed(0)
    for step in range(2500):
        p.grad = torch.randn(512, generator=draw) * (1.0 if step < 500 else 0.1)
        optimizer.step()
        exact.lerp_(p.grad**2, 0.001)
    assert (optimizer.state[p]["exp_avg_sq"].float().mean() / exact.mean()).item() == pytest.approx(
        1, abs=0.05
    )


def trained(kind, *, steps=60, allocate=True, seed=0):
    """A model that has learned to count up from a random number, its losses, weights and optimizer."""
    draw = torch.Generator().manual_seed(0)

    def source():
        while True:
            starts = torch.randint(0, 40, (8,), generator=draw).tolist()
            yield [collate([[Sample(list(range(s, s + 12)), [1.0] * 12, [4] * 12) for s in starts]], 96)]

    model = tiny()
    weights = precision.masters(model, "bf16")
    settings = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "wd": 0.01}
    if kind == "fp32":
        optimizer = optim.adamw(weights, **settings)
    else:
        optimizer = optim.narrow_adamw(weights, kind=kind, seed=seed, **settings)
    if allocate:
        optim.allocate_state(optimizer)
    precision.follow(model, weights, optimizer)
    schedule = optim.schedule("cosine", steps=steps, warmup=5)
    losses = []
    trainer = Trainer(model, NextToken(), source(), optimizer, schedule, steps=steps, clip=1.0)
    trainer.hooks = [lambda _, metrics: losses.append(metrics["loss"])]
    trainer.fit()
    return losses, weights, optimizer


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_as_float32_moments_do(kind):
    wide, narrow = trained("fp32")[0], trained(kind)[0]
    assert wide[0] > 3.5 and sum(wide[-10:]) < 4
    assert sum(narrow[-10:]) == pytest.approx(sum(wide[-10:]), rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_allocated_state_is_that_of_a_fresh_optimizer(kind):
    runs = [trained(kind, steps=4, allocate=allocate)[1] for allocate in (False, True)]
    assert differences(*({name: p.detach() for name, p in run.items()} for run in runs)) == []


def test_chance_is_the_seeds_and_nobody_elses():
    runs = [{n: p.detach() for n, p in trained("bf16", steps=6, seed=seed)[1].items()} for seed in (0, 0, 1)]
    assert differences(runs[0], runs[1]) == [] and differences(runs[0], runs[2])
    before = torch.get_rng_state()
    p = nn.Parameter(torch.ones(5000))
    p.grad = torch.ones(5000)
    NarrowAdamW([{"params": [p], "weight_decay": 0.0}], kind="bf16", **SETTINGS).step()
    assert torch.equal(torch.get_rng_state(), before)


def state_bytes(optimizer) -> int:
    return sum(value.nbytes for state in optimizer.state.values() for value in state.values())


@pytest.mark.parametrize(("kind", "share"), [("fp32", 1), ("bf16", 0.5), ("8bit", 0.254)])
def test_states_take_the_share_that_is_promised(kind, share):
    if kind == "8bit" and find_spec("bitsandbytes") is None:
        pytest.skip("needs bitsandbytes")
    p = nn.Parameter(torch.zeros(1000, 512))
    optimizer = (
        optim.adamw({"a": p}, wd=0.0, **SETTINGS)
        if kind == "fp32"
        else optim.narrow_adamw({"a": p}, kind=kind, wd=0.0, seed=0, **SETTINGS)
    )
    optim.allocate_state(optimizer)
    assert state_bytes(optimizer) / (8 * p.numel()) == pytest.approx(share, abs=0.001)


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_decay_and_vectors_do_not(kind):
    weights = {n: p for n, p in tiny().named_parameters()}
    optimizer = optim.narrow_adamw(weights, kind=kind, wd=0.5, seed=0, **SETTINGS)
    before = copy.deepcopy(weights)
    for p in weights.values():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in weights.items():
        kept = 1.0 if p.ndim == 1 else 1 - 3e-3 * 0.5
        torch.testing.assert_close(p, before[name] * kept, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_holds_every_moment_by_name_and_gives_it_back(tmp_path, kind):
    batches = cut(ragged(LENGTHS), micro=8, packed=True)

    def part(first, last, checkpoint=None):
        model = tiny()
        weights = precision.masters(model, "bf16")
        optimizer = optim.narrow_adamw(weights, kind=kind, wd=0.1, seed=5, **SETTINGS)
        optim.allocate_state(optimizer)
        saver = Saver(tmp_path / f"{first}-{last}", weights, optimizer)
        schedule = optim.schedule("cosine", steps=6, warmup=2)
        trainer = Trainer(model, NextToken(), itertools.repeat(batches), optimizer, schedule, steps=last)
        if checkpoint is not None:
            trainer.step = saver.load(checkpoint)["step"]
        precision.follow(model, weights, optimizer)
        trainer.fit()
        held = {n: v.clone() for n, v in saver._tensors().items() if not n.startswith("random")}
        return saver.save(last, {}), held

    whole, parts = part(0, 6)[1], part(3, 6, part(0, 3)[0])[1]
    assert differences(whole, parts) == []
    dtypes = {str(value.dtype) for name, value in whole.items() if ".exp_avg" in name}
    assert dtypes == {"torch.bfloat16"} if kind == "bf16" else "torch.float32" in dtypes
