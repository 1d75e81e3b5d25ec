"""Adapters that share a base, and the base model itself, which preference losses need beside them."""

import copy

import pytest
import torch
from peft_models import logits_of, shuffle_
from tiny_models import oracle, ours, random_tokens
from torch.nn import functional as F

from tutelage.model.adapters import (
    LoRASettings,
    adapter,
    add_lora_,
    settle_,
    trained_beside,
    use_adapter,
    without_adapters,
)
from tutelage.train.surgery import recompute


@pytest.mark.parametrize(
    "settings", [{}, {"dora": True}, {"init": "pissa"}, {"embedding": True, "head": True}]
)
def test_without_adapters_the_model_is_the_base(settings):
    base = ours(oracle("llama tied"))
    model = add_lora_(copy.deepcopy(base), LoRASettings(rank=4, **settings))
    settle_(model)
    shuffle_(model)
    tokens = random_tokens(2, 9)
    changed, expected = logits_of(model, tokens), logits_of(base, tokens)
    with without_adapters(model):
        torch.testing.assert_close(logits_of(model, tokens), expected, atol=1e-4, rtol=1e-5)
    assert torch.equal(logits_of(model, tokens), changed) and not torch.allclose(changed, expected, atol=0.1)


def test_what_is_trained_beside_is_its_old_self_in_the_reference():
    base = ours(oracle("llama"))
    model = add_lora_(copy.deepcopy(base), LoRASettings(rank=4))
    model.model.norm.weight.requires_grad_(True)
    first = trained_beside(model)
    assert list(first) == ["model.norm.weight"]
    shuffle_(model)
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    tokens = random_tokens(1, 9)
    changed = logits_of(model, tokens)
    with without_adapters(model, first):
        assert torch.equal(logits_of(model, tokens), logits_of(base, tokens))
    assert torch.equal(logits_of(model, tokens), changed)
    with pytest.raises(AssertionError, match="nobody kept"), without_adapters(model):
        pass


def test_several_adapters_share_one_base_and_switch_without_copies():
    model = ours(oracle("llama tied"))
    one = shuffle_(add_lora_(copy.deepcopy(model), LoRASettings(rank=4)), seed=1)
    two = shuffle_(
        add_lora_(copy.deepcopy(model), LoRASettings(rank=2, alpha=1, targets=("v_proj",))), seed=2
    )
    shuffle_(add_lora_(model, LoRASettings(rank=4), name="policy"), seed=1)
    shuffle_(add_lora_(model, LoRASettings(rank=2, alpha=1, targets=("v_proj",)), name="value"), seed=2)
    tokens = random_tokens(2, 9)
    pointers = [p.data_ptr() for p in model.parameters()]
    for name, alone in (("policy", one), ("value", two), ("policy", one)):
        use_adapter(model, name)
        assert torch.equal(logits_of(model, tokens), logits_of(alone, tokens))
        learning = {key.rsplit(".", 1)[-1] for key, p in model.named_parameters() if p.requires_grad}
        assert learning == {name}
    with adapter(model, "value"):
        assert torch.equal(logits_of(model, tokens), logits_of(two, tokens))
    assert torch.equal(logits_of(model, tokens), logits_of(one, tokens))
    assert pointers == [p.data_ptr() for p in model.parameters()]


def test_pissa_leaves_other_adapters_the_base_as_it_was():
    base = ours(oracle("llama"))
    model = add_lora_(copy.deepcopy(base), LoRASettings(rank=4, init="pissa"), name="policy")
    settle_(model)
    shuffle_(model)
    add_lora_(model, LoRASettings(rank=4), name="value")
    tokens = random_tokens(2, 9)
    torch.testing.assert_close(logits_of(model, tokens), logits_of(base, tokens), atol=1e-4, rtol=1e-4)


def test_a_name_that_no_adapter_has_is_an_error():
    model = add_lora_(ours(oracle("llama")), LoRASettings(rank=4))
    with pytest.raises(ValueError, match="no adapter is named valeu; there are default"):
        use_adapter(model, "valeu")
    with pytest.raises(ValueError, match="no adapter is named valeu"), adapter(model, "valeu"):
        pass


@pytest.mark.parametrize("policy", ["block", "matmul"])
def test_what_is_computed_again_has_the_adapter_it_had(policy):
    """A policy's and a value's losses have one backward pass, after both have been switched."""

    def gradients(ratio):
        model = add_lora_(ours(oracle("llama")), LoRASettings(rank=4), name="policy")
        add_lora_(model, LoRASettings(rank=4), seed=1, name="value")
        shuffle_(model)
        for p in (p for name, p in model.named_parameters() if ".lora_" in name):
            p.requires_grad_(True)
        recompute(model, ratio, policy)
        tokens, total = random_tokens(2, 9), 0.0
        for name in ("policy", "value"):
            with adapter(model.train(), name):
                total = total + F.cross_entropy(logits_of(model, tokens).flatten(0, 1), tokens.flatten())
        total.backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for one, other in zip(gradients(0.0), gradients(1.0), strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_the_reference_may_run_between_forward_and_backward():
    """As in DPO: the policy's forward, the reference's, then the policy's backward."""
    model = add_lora_(ours(oracle("llama")), LoRASettings(rank=4))
    model.model.norm.weight.requires_grad_(True)
    first, tokens = trained_beside(model), random_tokens(1, 9)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    loss = logits_of(model, tokens).square().mean()
    loss.backward()
    expected = model.model.norm.weight.grad.clone()
    model.zero_grad()
    loss = logits_of(model, tokens).square().mean()
    with without_adapters(model, first), torch.no_grad():
        logits_of(model, tokens)
    loss.backward()
    assert torch.equal(model.model.norm.weight.grad, expected)


def test_adapters_in_float32_run_on_a_model_in_bfloat16():
    model = add_lora_(ours(oracle("llama")).bfloat16(), LoRASettings(rank=4))
    assert logits_of(shuffle_(model), random_tokens(1, 5)).isfinite().all()
