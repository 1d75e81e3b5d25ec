"""Steps over documents that fork: the loss, and what runs a model otherwise, give what separate rows give."""

from dataclasses import replace

import pytest
import torch
from forked_rows import FORKED, Forked, forked
from test_objectives import tiny

from tutelage.config import load
from tutelage.data.batch import Batch
from tutelage.model.transformer import Transformer, set_dropout
from tutelage.objectives.language import NextToken
from tutelage.recipes.estimating import built, shape_of
from tutelage.recipes.plan import PlanPretrainConfig
from tutelage.train import surgery
from tutelage.train.plan import Estimate, estimate


def batches(case: Forked) -> tuple[Batch, list[Batch]]:
    """The forked rows, and a batch of each path in which only its own positions count."""
    draw = torch.Generator().manual_seed(4)
    shape = case.positions.shape
    tokens, targets = (torch.randint(0, 61, shape, generator=draw) for _ in range(2))
    roles = torch.randint(0, 5, shape, generator=draw)
    weights = torch.rand(shape, generator=draw) * (case.docs >= 0) * (case.branches > 0)
    whole = Batch(tokens, targets, weights, case.positions, case.docs, roles, case.branches)
    apart = []
    for path, trunk in zip(case.paths, case.trunks, strict=True):
        fields = [x.flatten()[path][None] for x in (tokens, targets, weights)]
        fields[2] = fields[2] * (torch.arange(len(path)) >= trunk)
        places = torch.arange(len(path))[None]
        apart.append(Batch(*fields, places, 0 * places, roles.flatten()[path][None]))
    return whole, apart


def gradients(model: Transformer, *every: Batch) -> dict[str, torch.Tensor]:
    model.train()
    torch.manual_seed(7)
    for batch in every:
        NextToken()(model, batch).total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", FORKED)
def test_a_loss_over_forked_rows_has_the_gradients_of_separate_ones_roles_included(name):
    whole, apart = batches(FORKED[name])
    found, wanted = gradients(tiny(roles=True), whole), gradients(tiny(roles=True), *apart)
    assert found.keys() >= wanted.keys()
    for key, grad in found.items():
        torch.testing.assert_close(
            grad, wanted.get(key, torch.zeros(())).expand_as(grad), atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chance", [0.0, 0.3])
@pytest.mark.parametrize("policy", ["block", "matmul"])
def test_recomputed_gradients_of_forked_rows_are_the_same_bit_for_bit(policy, chance, dtype):
    whole, _ = batches(FORKED["mixed"])
    found = []
    for ratio in (0.0, 1.0):
        model = tiny().to(dtype)
        set_dropout(model, embed=chance, attn=chance, resid=chance, head=chance)
        surgery.recompute(model, ratio, policy)
        found.append(gradients(model, whole))
    assert all(torch.equal(grad, found[1][name]) for name, grad in found[0].items())


@pytest.mark.slow
def test_compiled_blocks_have_the_gradients_of_forked_rows():
    torch._dynamo.reset()
    model = tiny()
    surgery.compile_blocks(model)
    for name in ("mixed", "a pair"):  # compiled for one shape, then used on another
        whole, _ = batches(FORKED[name])
        wanted = gradients(tiny(), whole)
        model.zero_grad()
        for key, grad in gradients(model, whole).items():
            torch.testing.assert_close(grad, wanted[key], atol=1e-5, rtol=1e-4, msg=key)


def planned(batch: Batch, *, gpu: bool, pairs: float) -> Estimate:
    flags = "--model stories260K --precision fp32"
    config = load("plan pretrain", PlanPretrainConfig, flags.split())
    shape = shape_of(config)
    return estimate(
        lambda objective, source: built(config, shape, objective, source),
        NextToken(), batch, accumulate=1, gpu=gpu, pairs=pairs,
    )  # fmt: skip


@pytest.mark.parametrize("gpu", [False, True])
def test_a_plan_of_forked_rows_counts_their_trunks_once(gpu):
    """Eight pairs of which 96 of 128 positions are prompt: 160 positions a pair, where two rows have 256."""
    shared, _ = batches(forked(*[[(96, (32, 32))]] * 8, length=160))
    apart, _ = batches(forked(*[[(96, (32,))]] * 16, length=128))
    pairs = 8.0 * (96 * 97 / 2 + 2 * (32 * 96 + 32 * 33 / 2))
    one = planned(shared, gpu=gpu, pairs=pairs)
    other = planned(replace(apart, branches=None), gpu=gpu, pairs=16.0 * 128 * 129 / 2)
    assert one.parts["batch"] == 8 * 160 * (6 * 8 + 4)
    assert other.parts["batch"] == 16 * 128 * (5 * 8 + 4)
    assert one.flops == pytest.approx(other.flops * 160 / 256, rel=0.1)
    # On CPU every branch has keys and values of its trunk beside its own.
    share = 0.65 if gpu else 0.8
    assert one.parts["activations"] < share * other.parts["activations"]
