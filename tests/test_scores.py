"""Scales and caps of attention scores are the same in every execution, forward and backward."""

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from tutelage.model import attention
from tutelage.model.attention import attend, plan, visible
from tutelage.model.causal import Scores

LENGTHS = [1, 40, 2, 9]
SCORES = {
    "a scale": Scores(scale=0.7),
    "a cap": Scores(cap=1.5),
    "both": Scores(scale=0.7, cap=1.5),
}


def by_hand(q, k, v, mask, scores):
    """(B, H, T, C), (B, K, S, C), (B, K, S, C), (B, 1, T, S) -> (B, H, T, C), in the plainest words."""
    share = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
    found = q @ k.transpose(-1, -2) * (scores.scale or q.shape[-1] ** -0.5)
    if scores.cap:
        found = scores.cap * torch.tanh(found / scores.cap)
    return found.masked_fill(~mask, -torch.inf).softmax(-1) @ v


def heads(rows, length, dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(rows, n, length, 8, generator=draw).to(dtype).requires_grad_() for n in (4, 2, 2)]


def rows_of(name):
    """Positions and documents that are given to this execution."""
    if name == "causal":
        return torch.arange(52).expand(2, -1), torch.zeros(2, 52, dtype=torch.int64)
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    return positions, torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))[None]


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("kind", ["causal", "segments", "dense", "flex"])
@pytest.mark.parametrize("window", [None, 3])
def test_every_execution_scales_and_caps(kind, scores, window, monkeypatch):
    monkeypatch.setattr(attention, "_compiled_flex", [flex_attention])
    positions, docs = rows_of(kind)
    impl = {"dense": "eager", "flex": "flash"}.get(kind, "auto")
    layout = plan(positions, docs, kv_used=None, windows={window}, impl=impl)
    assert layout.kind == kind
    ours, theirs = heads(*positions.shape), heads(*positions.shape)
    if kind == "flex":  # no backward pass on CPU
        ours = [x.detach() for x in ours]
    found = attend(*ours, layout, window, scores)
    wanted = by_hand(*theirs, visible(positions, positions, docs, docs, window=window), scores)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    if kind != "flex":
        found.square().sum().backward()
        wanted.square().sum().backward()
        for our, their in zip(ours, theirs, strict=True):
            torch.testing.assert_close(our.grad, their.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
def test_branches_of_a_document_see_its_trunk_scaled_and_capped_too(scores):
    """A trunk of 20 positions and branches of 5 and 7: queries of a branch alone, keys of both."""
    positions = torch.cat([torch.arange(20), torch.arange(20, 25), torch.arange(20, 27)])[None]
    branches = torch.repeat_interleave(torch.arange(3), torch.tensor([20, 5, 7]))[None]
    docs = torch.zeros_like(positions)
    layout = plan(positions, docs, branches=branches, kv_used=None, windows={None})
    assert layout.kind == "segments" and any(bucket.offset for bucket in layout.buckets)
    q, k, v = (x.detach() for x in heads(1, 32))
    mask = visible(positions, positions, docs, docs, window=None, branches=(branches, branches))
    torch.testing.assert_close(
        attend(q, k, v, layout, None, scores), by_hand(q, k, v, mask, scores), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
def test_bf16_on_cpu_has_a_backward_pass_of_its_own_and_scales_too(scores):
    positions, docs = rows_of("causal")
    layout = plan(positions, docs, kv_used=None, windows={None})
    ours = heads(*positions.shape, dtype=torch.bfloat16)
    theirs = [x.detach().float().requires_grad_() for x in ours]
    found = attend(*ours, layout, None, scores)
    wanted = by_hand(*theirs, visible(positions, positions, docs, docs, window=None), scores)
    torch.testing.assert_close(found.float(), wanted, atol=0.03, rtol=0.03)
    found.float().square().sum().backward()
    wanted.square().sum().backward()
    for our, their in zip(ours, theirs, strict=True):
        assert (our.grad.float() - their.grad).norm() < 0.02 * their.grad.norm()


def test_weights_of_capped_scores_are_dropped_in_training():
    """With p = 1/2 and values of one, the mean stays and the places differ."""
    positions = torch.arange(52).expand(2, -1)
    layout = plan(positions, None, kv_used=None, windows={None}, dropout=0.5)
    q, k, v = heads(2, 52)
    torch.manual_seed(0)
    mixed = attend(q, k, torch.ones_like(v), layout, None, Scores(cap=1.5))
    assert mixed.std() > 0.05 and abs(mixed.mean().item() - 1) < 0.05


def test_a_cap_bends_what_a_cache_has_too():
    """Three new positions after 49 that are cached see what they see without a cache."""
    positions = torch.arange(52).expand(2, -1)
    q, k, v = (x.detach() for x in heads(2, 52))
    whole = attend(q, k, v, plan(positions, None, kv_used=None, windows={7}), 7, Scores(cap=1.5))
    layout = plan(positions[:, 49:], None, kv_used=52, windows={7})
    torch.testing.assert_close(attend(q[:, :, 49:], k, v, layout, 7, Scores(cap=1.5)), whole[:, :, 49:])
