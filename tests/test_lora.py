"""Adapters give what PEFT's give for the same matrices, and what they must not change they do not."""

import copy

import peft
import pytest
import torch
from peft_models import KINDS, by_peft, ours_with, saved_by_peft, saved_by_us
from tiny_models import oracle, ours, positions_of, random_tokens

from tutelage.errors import UserError
from tutelage.model.adapters import (
    LoRASettings,
    adapter,
    add_lora_,
    merge_,
    settle_,
    targets_of,
    trained_beside,
    use_adapter,
    without_adapters,
)

FAMILIES = ("llama", "llama tied", "qwen2", "mistral head_dim")


def logits_of(model, tokens):
    return model.unembed(model(tokens, positions_of(tokens)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_equal_those_of_peft(family, kind, tmp_path):
    theirs = by_peft(family, **KINDS[kind])
    model = ours_with(family, saved_by_peft(theirs, tmp_path))
    tokens = random_tokens(2, 12)
    expected, found = theirs(tokens).logits, logits_of(model, tokens)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    (expected * direction).mean().backward()
    (found * direction).mean().backward()
    wanted = {_ours(name): p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert grads.keys() == wanted.keys()
    for name, gradient in grads.items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-5, rtol=1e-5, msg=name)


def _ours(name):
    name = name.removeprefix("base_model.model.").replace("modules_to_save.default.", "")
    return name.replace(".default.weight", ".default").replace("lora_magnitude_vector", "lora_magnitude")
