"""The training loop: a step does not depend on how it is cut, stops before harm, and learns."""

import itertools
import math

import pytest
import torch
from test_objectives import ragged, tiny

from tutelage.data.batch import Sample
from tutelage.data.loader import Loader
from tutelage.data.pack import collate, empty
from tutelage.data.store import SampleStore
from tutelage.objectives.base import Loss
from tutelage.objectives.language import NextToken
from tutelage.train import optim, precision, surgery
from tutelage.train.evaluate import evaluate
from tutelage.train.trainer import NonFiniteLossError, Trainer, every


def trainer_of(model, source=(), *, objective=None, kind="fp32", lr=1e-2, clip=0.0, steps=10, hooks=()):
    weights = precision.masters(model, kind)
    optimizer = optim.adamw(weights, lr=lr, betas=(0.9, 0.999), eps=1e-8, wd=0.0)
    precision.follow(model, weights, optimizer)
    schedule = optim.schedule("constant", steps=steps, warmup=0)
    objective = objective or NextToken()
    return Trainer(
        model, objective, iter(source), optimizer, schedule, steps=steps, clip=clip, hooks=hooks
    ), weights


def gradient_of(model, batches, *, kind="fp32"):
    """The step's mean gradient, by name, and its report, without an update."""
    trainer, weights = trainer_of(model, kind=kind)
    seen = {}
    trainer.optimizer.step = lambda: seen.update(
        {n: p.grad.clone() for n, p in weights.items() if p.grad is not None}
    )
    report = trainer.train_step(batches)
    return seen, report


LENGTHS = [7, 3, 12, 2, 9, 5, 30, 4]


def cut(samples, *, micro, packed):
    """The samples as micro-batches of `micro` each: one row with all of them, or a row for every sample."""
    parts = [samples[i : i + micro] for i in range(0, len(samples), micro)]
    return [collate([part], 320) if packed else collate([[s] for s in part], 32) for part in parts]


@pytest.mark.parametrize("reduction", ["tokens", "sequences"])
@pytest.mark.parametrize(
    ("micro", "packed"), [(8, False), (4, False), (1, False), (8, True), (2, True), (1, True)]
)
def test_a_step_does_not_depend_on_how_it_is_cut(micro, packed, reduction):
    samples = ragged(LENGTHS)
    if reduction == "sequences":
        for s in samples:
            s.weights = [w / sum(s.weights[1:]) for w in s.weights]
    expected, whole = gradient_of(tiny(), cut(samples, micro=8, packed=True))
    found, report = gradient_of(tiny(), [*cut(samples, micro=micro, packed=packed), empty(1, 16)])
    assert report["loss"] == pytest.approx(whole["loss"], abs=1e-5)
    assert report["grad_norm"] == pytest.approx(whole["grad_norm"], abs=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5, msg=name)


def test_loss_reductions_by_hand():
    """Losses [[1, 2, 3], [4]]: over tokens 10 / 4 = 2.5, over sequences (2 + 4) / 2 = 3 (golden vector)."""
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0])

    def objective(model, batch):
        weights = batch.weights[batch.docs >= 0]
        return Loss((losses * weights).sum() + 0 * model.head_weight.sum(), weights.sum())

    store = SampleStore.of(
        [Sample([1, 2, 3, 4], [0.0, 1.0, 1.0, 1.0], [2] * 4), Sample([1, 2], [0.0, 1.0], [2] * 2)]
    )
    for reduction, expected in (("tokens", 2.5), ("sequences", 3.0)):
        loader = Loader(
            store, length=8, rows=2, accumulate=1, packed=False, seed=0, reduction=reduction, shuffle=False
        )
        trainer, _ = trainer_of(tiny(), loader, objective=objective)
        assert trainer.train_step(next(loader))["loss"] == pytest.approx(expected)


def test_clipping_shortens_the_gradient_and_reports_its_length_before():
    batches = cut(ragged(LENGTHS), micro=8, packed=True)
    free, report = gradient_of(tiny(), batches)
    length = math.sqrt(sum(float(g.pow(2).sum()) for g in free.values()))
    assert report["grad_norm"] == pytest.approx(length, rel=1e-5)
    for clip, share in ((length / 4, 0.25), (length * 2, 1.0), (0.0, 1.0)):
        trainer, weights = trainer_of(tiny(), clip=clip)
        seen = {}
        trainer.optimizer.step = lambda w=weights, s=seen: s.update({n: p.grad.clone() for n, p in w.items()})
        assert trainer.train_step(batches)["grad_norm"] == pytest.approx(length, rel=1e-5)
        for name, gradient in free.items():
            torch.testing.assert_close(seen[name], gradient * share, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_before_it_touches_a_weight(poison):
    model = tiny()

    def objective(model, batch):
        loss = NextToken()(model, batch)
        return Loss(loss.total * poison, loss.weight)

    trainer, _ = trainer_of(model, objective=objective)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(NonFiniteLossError, match=r"^step 1: loss (nan|inf), gradient norm (nan|inf)$"):
        trainer.train_step(cut(ragged(LENGTHS), micro=4, packed=True))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())


def test_a_rehearsal_leaves_no_trace():
    batches = cut(ragged(LENGTHS), micro=4, packed=True)
    runs = []
    for rehearse in (False, True):
        model = tiny()
        torch.manual_seed(5)
        trainer, weights = trainer_of(model, itertools.repeat(batches), steps=3)
        optim.allocate_state(trainer.optimizer)
        if rehearse:
            trainer.rehearse(batches)
        trainer.fit()
        runs.append((weights, torch.get_rng_state()))
    assert all(torch.equal(a, b) for a, b in zip(runs[0][0].values(), runs[1][0].values(), strict=True))
    assert torch.equal(runs[0][1], runs[1][1])


def test_allocated_state_is_that_of_a_fresh_optimizer():
    batches = cut(ragged(LENGTHS), micro=8, packed=True)
    (plain, first), (allocated, second) = (
        trainer_of(tiny(), itertools.repeat(batches), steps=3) for _ in range(2)
    )
    optim.allocate_state(allocated.optimizer)
    plain.fit()
    allocated.fit()
    assert all(torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))


def test_masters_add_up_what_bfloat16_would_lose():
    """lr 1e-5 moves weights of about 0.2 by a hundredth of their last bfloat16 bit; it must still add up."""
    batches = cut(ragged(LENGTHS), micro=8, packed=True)
    moved = {}
    for kind in ("fp32", "bf16", "bf16_pure"):
        model = tiny()
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        trainer, weights = trainer_of(model, itertools.repeat(batches), kind=kind, lr=1e-5, steps=50)
        if kind != "fp32":
            start = {name: p.bfloat16().float() if kind == "bf16_pure" else p for name, p in start.items()}
        trainer.fit()
        changes = [(weights[n].detach().float() - start[n]).abs().mean() for n in start if "norm" not in n]
        moved[kind] = torch.stack(changes).mean().item()
        assert model.head_weight.dtype == (torch.float32 if kind == "fp32" else torch.bfloat16)
    assert moved["bf16"] == pytest.approx(moved["fp32"], rel=0.1)
    assert moved["bf16_pure"] < 0.5 * moved["fp32"]


def test_the_model_is_always_its_masters_rounded():
    model = tiny()
    trainer, weights = trainer_of(
        model, itertools.repeat(cut(ragged(LENGTHS), micro=4, packed=True)), kind="bf16", steps=2
    )
    for _ in range(2):
        assert all(torch.equal(p, weights[name].bfloat16()) for name, p in model.named_parameters())
        trainer.fit()


def test_bf16_micro_batches_add_up_in_float32():
    samples = ragged([5] * 64)
    whole, _ = gradient_of(tiny(), cut(samples, micro=64, packed=True))
    pieces, _ = gradient_of(tiny(), cut(samples, micro=1, packed=True), kind="bf16")
    error = sum((pieces[n] - g).norm() ** 2 for n, g in whole.items()) ** 0.5
    assert error < 0.02 * sum(g.norm() ** 2 for g in whole.values()) ** 0.5
    assert all(g.dtype == torch.float32 for g in pieces.values())


@pytest.mark.parametrize(
    ("ratio", "chosen"), [(0.5, "101010101010"), (1 / 3, "010010010010"), (0, "0" * 12), (1, "1" * 12)]
)
def test_recomputed_blocks_are_evenly_spaced(ratio, chosen):
    from tutelage.model.config import ModelConfig
    from tutelage.model.transformer import Transformer

    config = ModelConfig(vocab_size=8, dim=8, n_layers=12, n_heads=2, n_kv_heads=2, head_dim=4, ffn_dim=8)
    blocks = surgery.recompute(Transformer(config), ratio)
    assert "".join("1" if i in blocks else "0" for i in range(12)) == chosen


@pytest.mark.parametrize(("ratio", "chosen"), [(2 / 3, "101101101101"), (1 / 4, "010001000100")])
def test_recomputed_blocks_of_the_other_golden_ratios(ratio, chosen):
    test_recomputed_blocks_are_evenly_spaced(ratio, chosen)


def test_recomputation_and_compilation_change_no_gradient():
    batches = cut(ragged(LENGTHS), micro=4, packed=True)
    expected, _ = gradient_of(tiny(), batches)
    recomputed = tiny()
    surgery.recompute(recomputed, 1.0)
    compiled, both = tiny(), tiny()
    surgery.compile_blocks(compiled)
    surgery.compile_blocks(both)
    surgery.recompute(both, 1.0)
    for model in (recomputed, compiled, both):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        found, _ = gradient_of(model, batches)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5, msg=name)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        assert bool(graphs) is (model is not recomputed)


def test_norms_and_biases_do_not_decay():
    names = {
        "model.layers.0.self_attn.q_proj.weight": True,
        "model.layers.0.self_attn.q_proj.bias": False,
        "model.layers.0.input_layernorm.weight": False,
        "model.embed_tokens.weight": True,
        "model.norm.weight": False,
    }
    for name, expected in names.items():
        shape = (2, 2) if "proj.weight" in name or "embed" in name else (2,)
        assert optim.decays(name, torch.zeros(shape)) is expected


def test_hooks_run_after_the_step_and_every_n_only():
    seen = []
    batches = cut(ragged(LENGTHS), micro=8, packed=True)
    trainer, _ = trainer_of(
        tiny(), itertools.repeat(batches), steps=7, hooks=[every(3, lambda t, m: seen.append(t.step))]
    )
    trainer.fit()
    assert seen == [3, 6] and trainer.step == 7


def test_evaluation_is_the_mean_over_everything_and_leaves_the_model_as_it_was():
    model = tiny()
    samples = ragged(LENGTHS)
    whole = NextToken()(model, collate([samples], 128))
    values = evaluate(model, NextToken(), [[b] for b in cut(samples, micro=3, packed=False)])
    assert values["loss"] == pytest.approx((whole.total / whole.weight).item(), abs=1e-5)
    assert values["perplexity"] == pytest.approx(math.exp(values["loss"]))
    assert model.training and all(p.grad is None for p in model.parameters())


def test_it_learns_to_count():
    """Each document counts up from a random number: after 60 steps the next one is all but certain."""
    draw = torch.Generator().manual_seed(0)

    def source():
        while True:
            starts = torch.randint(0, 40, (8,), generator=draw).tolist()
            yield [collate([[Sample(list(range(s, s + 12)), [1.0] * 12, [4] * 12) for s in starts]], 96)]

    for kind in ("fp32", "bf16"):
        trainer, _ = trainer_of(tiny(), source(), kind=kind, lr=1e-2, steps=60)
        losses = []
        trainer.hooks = [lambda t, m, losses=losses: losses.append(m["loss"])]
        trainer.fit()
        assert losses[0] > 3.5 and losses[-1] < 0.3, (kind, losses[-1])
