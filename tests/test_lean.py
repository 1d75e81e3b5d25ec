"""Blocks keep half of what autograd would keep for the backward pass, and the gradients are the same."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.model.config import ModelConfig
from tutelage.model.lean import formed_anew, rms_norm, silu_gated
from tutelage.model.transformer import Transformer, initialise_


def plain_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """What autograd differentiates: the formula."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def gradients(form: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """Of a sum with uneven weights, by every input."""
    leaves = [each.detach().clone().requires_grad_() for each in inputs]
    result = form(*leaves)
    weights = torch.linspace(-1, 2, result.numel()).reshape(result.shape)
    (result.float() * weights).sum().backward()
    return [result.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("shape", [(2, 5, 16), (1, 1, 16), (7, 16)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_the_norm_and_its_gradients_are_those_of_the_formula(shape, dtype, close):
    torch.manual_seed(1)
    x, weight = torch.randn(shape).to(dtype) * 3, torch.rand(16).to(dtype) + 0.5
    ours = gradients(partial(rms_norm, eps=1e-5), x, weight)
    theirs = gradients(partial(plain_norm, eps=1e-5), x, weight)
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


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_the_gated_unit_and_its_gradients_are_those_of_the_formula(dtype, close):
    torch.manual_seed(2)
    gate, up = torch.randn(4, 12).to(dtype) * 4, torch.randn(4, 12).to(dtype)
    ours = gradients(silu_gated, gate, up)
    theirs = gradients(lambda gate, up: F.silu(gate) * up, gate, up)
    assert torch.equal(ours[0], theirs[0])
    for our, their in zip(ours[1:], theirs[1:], strict=True):
        assert (our - their).abs().max() <= close * their.abs().max()


def test_what_a_layer_would_keep_is_formed_anew_and_the_weight_gets_the_same_gradient():
    torch.manual_seed(3)
    layer, x = nn.Linear(6, 4), torch.randn(2, 3, 6, requires_grad=True)
    layer(x.exp()).pow(2).sum().backward()
    wanted = layer.weight.grad, x.grad
    layer.weight.grad = x.grad = None
    made, result = [], x.exp()

    def form() -> Tensor:
        made.append(1)
        return x.detach().exp()

    with formed_anew(result, form):
        out = layer(result)
    assert not made
    out.pow(2).sum().backward()
    assert len(made) == 1
    assert torch.equal(layer.weight.grad, wanted[0])
    assert torch.equal(x.grad, wanted[1])


def test_a_part_of_the_result_and_other_tensors_are_kept_as_they_are():
    x, other = torch.randn(4, 6, requires_grad=True), torch.randn(2, 6, requires_grad=True)
    result = x.exp()

    def form() -> Tensor:
        raise AssertionError("nothing kept was all of the result")

    with formed_anew(result, form):
        out = result[:2] * other
    out.sum().backward()
    assert torch.equal(other.grad, result[:2].detach())


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
