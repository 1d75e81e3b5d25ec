"""Blocks keep half of what autograd would keep for the backward pass, and the gradients are the same."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.model.config import ModelConfig
from tutelage.model.lean import gated_linear, rms_norm
from tutelage.model.transformer import Transformer, initialise_


def plain_norm(x: Tensor, weight: Tensor, eps: float, *, wide: bool) -> Tensor:
    """What autograd differentiates: the formula."""
    normal = x.float()
    normal = normal * torch.rsqrt(normal.pow(2).mean(-1, keepdim=True) + eps)
    return (normal * weight.float()).to(x.dtype) if wide else weight * normal.to(x.dtype)


def gradients(form: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """Of a sum with uneven weights, by every input."""
    leaves = [each.detach().clone().requires_grad_() for each in inputs]
    result = form(*leaves)
    weights = torch.linspace(-1, 2, result.numel()).reshape(result.shape)
    (result.float() * weights).sum().backward()
    return [result.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("shape", [(2, 5, 16), (1, 1, 16), (7, 16)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("wide", [False, True])
def test_the_norm_and_its_gradients_are_those_of_the_formula(shape, dtype, close, wide):
    torch.manual_seed(1)
    x, weight = torch.randn(shape).to(dtype) * 3, torch.rand(16).to(dtype) + 0.5
    ours = gradients(partial(rms_norm, eps=1e-5, wide=wide), x, weight)
    theirs = gradients(partial(plain_norm, eps=1e-5, wide=wide), x, weight)
    assert torch.equal(ours[0], theirs[0])
    for our, their in zip(ours[1:], theirs[1:], strict=True):
        assert (our - their).abs().max() <= close * their.abs().max()


def test_the_norm_of_zeros_has_a_finite_gradient():
    _, of_x, _ = gradients(partial(rms_norm, eps=1e-6), torch.zeros(2, 8), torch.ones(8))
    assert torch.isfinite(of_x).all()


def test_a_frozen_norm_weight_gets_no_gradient_and_its_input_does():
    x, weight = torch.randn(3, 8, requires_grad=True), torch.ones(8)
    rms_norm(x, weight, 1e-5).sum().backward()
    assert weight.grad is None
    assert x.grad is not None


class Other(nn.Linear):
    """A layer that is not a plain linear one, as one with adapters is not."""


@pytest.mark.parametrize("layer", [nn.Linear, Other])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_the_gated_layer_and_its_gradients_are_those_of_the_formula(layer, activation, dtype, close):
    torch.manual_seed(2)
    gate, up, down = torch.randn(2, 3, 12).to(dtype) * 4, torch.randn(2, 3, 12).to(dtype), layer(12, 6, False)
    down.to(dtype)
    act = F.silu if activation == "silu" else partial(F.gelu, approximate="tanh")
    ours = gradients(lambda gate, up: gated_linear(gate, up, down, activation), gate, up)
    of_weight, down.weight.grad = down.weight.grad, None
    theirs = gradients(lambda gate, up: down(act(gate) * up), gate, up)
    assert torch.equal(ours[0], theirs[0])
    for our, their in zip([*ours[1:], of_weight], [*theirs[1:], down.weight.grad], strict=True):
        assert (our - their).abs().max() <= close * their.abs().max()


def test_a_frozen_layer_gets_no_gradient_and_what_it_reads_does():
    gate, up, down = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4), nn.Linear(4, 2, False)
    down.requires_grad_(False)
    gated_linear(gate, up, down).sum().backward()
    assert down.weight.grad is None
    assert gate.grad is not None


def test_a_block_keeps_at_most_fifteen_numbers_for_every_one_of_the_residual():
    """Of a shape like Llama's, feed-forward 8/3 wide and heads not shared: its three norms' worth of inputs
    (the residual twice, what q, k, v and what gate, up read), q, k, v, the mixed heads, gate and up."""
    config = ModelConfig(vocab_size=61, dim=48, ffn_dim=128, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=12)
    model = Transformer(config).train()
    initialise_(model, seed=1)
    kept: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes() // 4
        return tensor

    tokens, positions = torch.randint(0, config.vocab_size, (2, 64)), torch.arange(64).expand(2, -1)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = model(tokens, positions.contiguous())
    wanted = 4 + 4 + 2 * 128 / 48
    assert sum(kept.values()) / hidden.numel() / config.n_layers < wanted + 1.7  # the rest: tables, last norm
