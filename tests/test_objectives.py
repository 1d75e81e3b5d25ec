"""Next-token loss and log-probabilities: what they are, must not depend on, and never hold."""

import pytest
import torch
from torch.nn import functional as F

from tutelage.data.batch import Batch, Sample
from tutelage.data.pack import collate
from tutelage.model.config import ModelConfig
from tutelage.model.transformer import Transformer, initialise_
from tutelage.objectives import base
from tutelage.objectives.base import linear_cross_entropy, token_logps
from tutelage.objectives.language import NextToken

VOCABULARY = 61


def tiny(*, tied: bool = False, seed: int = 0, roles: bool = False) -> Transformer:
    config = ModelConfig(
        vocab_size=VOCABULARY,
        dim=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        ffn_dim=48,
        tied=tied,
        role_embeddings=roles,
        role_embeddings_init="gaussian:0.2",
    )
    model = Transformer(config)
    initialise_(model, seed=seed, std=0.2)
    return model


def ragged(lengths: list[int], *, seed: int = 0) -> list[Sample]:
    draw = torch.Generator().manual_seed(seed)
    samples = []
    for n in lengths:
        tokens = torch.randint(0, VOCABULARY, (n,), generator=draw).tolist()
        weights = torch.randint(0, 2, (n,), generator=draw).float().tolist()
        samples.append(Sample(tokens, weights[:-1] + [1.0], [(n + place) % 5 for place in range(n)]))
    return samples


def naive(model: Transformer, batch: Batch) -> torch.Tensor:
    logits = model.unembed(model(batch.tokens, batch.positions, batch.docs))
    losses = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
    return (losses * batch.weights.flatten()).sum()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("chunk", [1 << 25, 7 * VOCABULARY * 16])
def test_fused_loss_and_gradients_are_those_of_plain_cross_entropy(tied, chunk, monkeypatch):
    monkeypatch.setattr(base, "CHUNK_ELEMENTS", chunk)
    batch = collate([ragged([9, 4, 2]), ragged([30, 3], seed=1)], 40)
    model, twin = tiny(tied=tied), tiny(tied=tied)
    loss = NextToken()(model, batch)
    loss.total.backward()
    expected = naive(twin, batch)
    expected.backward()
    torch.testing.assert_close(loss.total, expected, rtol=1e-6, atol=1e-5)
    assert loss.weight == batch.weights.sum()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-5, msg=name)


def test_cross_entropy_of_three_tokens_by_hand():
    """Logits (0, 0), (ln 3, 0) and (0, ln 3); target 0 each time: p = 1/2, 3/4, 1/4.

    With weights 1, 2 and 0.5: ln 2 + 2 ln(4/3) + 0.5 ln 4 = 0.6931 + 0.5754 + 0.6931 = 1.9617.
    The slope of the loss by the first logit is weight · (p − 1): −0.5, −0.5, −0.375.
    """
    third = torch.log(torch.tensor(3.0)).item()
    hidden = torch.tensor([[0.0, 0.0], [third, 0.0], [0.0, third]], requires_grad=True)
    total = linear_cross_entropy(
        hidden, torch.eye(2), torch.zeros(3, dtype=torch.long), torch.tensor([1.0, 2.0, 0.5])
    )
    total.backward()
    torch.testing.assert_close(total, torch.tensor(1.9617), rtol=0, atol=1e-4)
    torch.testing.assert_close(hidden.grad[:, 0], torch.tensor([-0.5, -0.5, -0.375]))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logps_and_their_gradients_are_those_of_log_softmax(temperature):
    batch = collate([ragged([9, 4]), ragged([12], seed=1)], 12)
    model, twin = tiny(), tiny()
    upstream = torch.randn(batch.weights.shape, generator=torch.Generator().manual_seed(3)) * (
        batch.weights != 0
    )
    logps = token_logps(model, batch, temperature=temperature)
    (logps * upstream).sum().backward()
    logits = twin.unembed(twin(batch.tokens, batch.positions, batch.docs)) / temperature
    expected = logits.log_softmax(-1).gather(2, batch.targets[..., None])[..., 0]
    (expected * upstream).sum().backward()
    learned = batch.weights != 0
    torch.testing.assert_close(logps[learned], expected[learned], rtol=1e-6, atol=1e-5)
    assert not logps[~learned].any()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-5, msg=name)


def test_a_batch_without_a_learned_token_gives_zero_and_zero_gradients():
    batch = collate([[Sample([1, 2, 3], [0.0, 0.0, 0.0], [0, 0, 0])]], 8)
    model = tiny()
    loss = NextToken()(model, batch)
    loss.total.backward()
    assert loss.total == 0 and loss.weight == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_training_never_holds_the_logits_of_a_batch():
    """The largest tensor that one step makes stays far below positions x vocabulary."""
    vocabulary, positions = 50_000, 4096
    hidden = torch.randn(positions, 8, requires_grad=True)
    head = torch.randn(vocabulary, 8, requires_grad=True)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max(
                [largest] + [t.numel() for t in torch.utils._pytree.tree_leaves(out) if hasattr(t, "numel")]
            )
            return out

    with Watch():
        total = linear_cross_entropy(
            hidden, head, torch.zeros(positions, dtype=torch.long), torch.ones(positions)
        )
        total.backward()
    assert largest <= base.CHUNK_ELEMENTS + vocabulary < positions * vocabulary / 5


def test_bfloat16_loss_stays_near_float32():
    batch = collate([ragged([30, 30]), ragged([40], seed=1)], 64)
    model = tiny()
    exact = NextToken()(model, batch).total
    rounded = NextToken()(model.bfloat16(), batch).total
    wide = NextToken(fp32_logits=True)(model, batch).total
    assert exact.dtype == rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=2e-2, atol=0)
    torch.testing.assert_close(wide, exact, rtol=2e-2, atol=0)


def test_compiled_loss_is_the_same():
    batch = collate([ragged([20, 20])], 64)
    model = tiny()
    torch.testing.assert_close(NextToken(compiled=True)(model, batch).total, NextToken()(model, batch).total)
