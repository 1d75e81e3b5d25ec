"""Activations that are formed again or wait elsewhere: no gradient changes, and what was promised is kept."""

import pytest
import torch
from test_objectives import ragged, tiny
from torch.utils._python_dispatch import TorchDispatchMode

from tutelage.data.pack import collate
from tutelage.model.transformer import Transformer, set_dropout
from tutelage.objectives.language import NextToken
from tutelage.train import surgery

BATCHES = {
    "one document": collate([ragged([48])], 48),
    "packed": collate([ragged([40, 17, 3]), ragged([30, 30, 1], seed=1)], 64),
}


class Counted(TorchDispatchMode):
    """How often each operation ran while it was open."""

    def __init__(self):
        super().__init__()
        self.times = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.times[func] = self.times.get(func, 0) + 1
        return func(*args, **(kwargs or {}))


def gradients(model: Transformer, batch, *, chance: float = 0.0) -> dict[str, torch.Tensor]:
    set_dropout(model, embed=chance, attn=chance, resid=chance, head=chance)
    model.train()
    torch.manual_seed(7)
    NextToken()(model, batch).total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def equal(one, other) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chance", [0.0, 0.3])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("policy", ["block", "matmul"])
def test_recomputed_gradients_are_the_same_bit_for_bit(policy, batch, chance, dtype):
    expected = gradients(tiny().to(dtype), BATCHES[batch], chance=chance)
    model = tiny().to(dtype)
    assert surgery.recompute(model, 1.0, policy) == [0, 1]
    assert equal(gradients(model, BATCHES[batch], chance=chance), expected)


@pytest.mark.parametrize("chance", [0.0, 0.3])
def test_compiled_blocks_recomputed_have_the_same_gradients_bit_for_bit(chance):
    found = []
    for ratio in (0.0, 1.0):
        torch._dynamo.reset()
        model = tiny()
        surgery.compile_blocks(model)
        surgery.recompute(model, ratio)
        found.append(gradients(model, BATCHES["packed"], chance=chance))
    assert equal(*found)


def test_one_policy_repeats_every_matmul_of_a_block_and_the_other_none():
    """Of seven matmuls in each of two blocks six: of the last one nothing is needed. Attention, one each.

    The gate's silu is formed anew in the backward pass of every policy, beside what checkpoints repeat.
    """
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    counts = {}
    for policy in (None, "block", "matmul"):
        model = tiny()
        if policy:
            surgery.recompute(model, 1.0, policy)
        with Counted() as counted:
            gradients(model, BATCHES["one document"])
        times = counted.times
        counts[policy] = (
            times[torch.ops.aten.mm.default],
            times[attention],
            times[torch.ops.aten.silu.default],
        )
    plain = counts[None]
    assert plain[1:] == (2, 4)
    assert counts["block"] == (plain[0] + 12, 4, 6)
    assert counts["matmul"] == (plain[0], 2, 6)


def kept_bytes(model: Transformer) -> int:
    """Of tensors that a forward pass leaves for the backward pass, each storage once."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        NextToken()(model, BATCHES["packed"])
    return sum(size for size, _ in kept.values())


def test_the_more_blocks_are_recomputed_the_less_is_kept():
    sizes = []
    for ratio in (0.0, 0.5, 1.0):
        model = tiny()
        surgery.recompute(model, ratio)
        sizes.append(kept_bytes(model))
    assert sizes[0] > sizes[1] > sizes[2]
    assert sizes[0] - sizes[1] == pytest.approx(sizes[1] - sizes[2], rel=0.1), "both blocks are alike"


def moved(monkeypatch) -> list[torch.Tensor]:
    """What goes to main memory from now on, though it is there already; small tensors too."""
    tensors = []
    send = surgery._to_main_memory
    monkeypatch.setattr(surgery, "SMALLEST", 64)

    def recorded(tensor):
        packed = send(tensor)
        if isinstance(packed, tuple):
            assert packed[1].data_ptr() != tensor.data_ptr() and packed[0] == tensor.device
            tensors.append(packed[1])
        return packed

    monkeypatch.setattr(surgery, "_to_main_memory", recorded)
    return tensors


@pytest.mark.parametrize("policy", [None, "block", "matmul"])
@pytest.mark.parametrize("chance", [0.0, 0.3])
def test_offloaded_gradients_are_the_same_bit_for_bit(monkeypatch, policy, chance):
    """Up to the device: what would leave it is copied, here to the same memory."""
    tensors = moved(monkeypatch)
    expected = gradients(tiny(), BATCHES["packed"], chance=chance)
    assert not tensors
    model = tiny()
    if policy:
        surgery.recompute(model, 1.0, policy)
    surgery.offload(model)
    assert equal(gradients(model, BATCHES["packed"], chance=chance), expected)
    hidden = (2, 64, 32)
    assert [t.shape for t in tensors if t.shape == hidden][:2] == [hidden, hidden], "what enters each block"


def test_weights_do_not_leave(monkeypatch):
    tensors = moved(monkeypatch)
    model = tiny()
    surgery.offload(model)
    gradients(model, BATCHES["packed"])
    shapes = {tuple(p.shape) for p in model.parameters() if p.ndim == 2}
    shapes |= {shape[::-1] for shape in shapes}
    assert tensors and not shapes & {tuple(t.shape) for t in tensors}


def test_what_draws_numbers_is_not_kept():
    """Attention weights that are dropped are drawn anew, in their turn: they are not among what is kept."""
    model = tiny()
    assert len(surgery._kept(model)) == 6
    model.attention_dropout = 0.1
    assert [str(operation) for operation in surgery._kept(model)] == ["aten.mm.default", "aten.addmm.default"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_offloads_to_pinned_memory_and_gets_back_what_it_sent():
    sent = torch.randn(1000, 100, device="cuda")
    packed = surgery._to_main_memory(sent)
    assert packed[1].is_pinned() and packed[1].device.type == "cpu"
    assert torch.equal(surgery._back(packed), sent)
