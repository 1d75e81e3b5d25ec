"""Documents that fork: a row with one prompt and K answers gives what K rows with prompt and answer give."""

from dataclasses import replace

import pytest
import torch
from forked_rows import FORKED, Forked, forked
from hypothesis import given
from hypothesis import strategies as st
from test_attention import by_the_rule, random_heads
from tiny_models import oracle, ours, random_tokens
from torch.nn.attention.flex_attention import create_mask, flex_attention

from tutelage.model import attention
from tutelage.model.attention import attend, plan, visible

WINDOWS = {None, 1, 3, 10, 1000}


def laid(case: Forked, impl="auto", windows=WINDOWS, dropout=0.0):
    return plan(
        case.positions,
        case.docs,
        branches=case.branches,
        kv_used=None,
        windows=windows,
        impl=impl,
        dropout=dropout,
    )


def alone(case: Forked, q, k, v, window):
    """Every path attends by itself, and is put where its own positions lie: (B, H, T, C)."""
    B, H, T, C = q.shape
    flat = [x.transpose(1, 2).reshape(B * T, -1, C) for x in (q, k, v)]
    out = 0 * flat[0] + 0 * (k.sum() + v.sum())  # of no document a zero gradient, not none
    for path, trunk in zip(case.paths, case.trunks, strict=True):
        places = torch.arange(len(path))[None]
        mask = visible(places, places, 0 * places, 0 * places, window=window)
        mixed = by_the_rule(*(x[path].transpose(0, 1)[None] for x in flat), mask)[0].transpose(0, 1)
        shared = trunk if (case.branches.flatten()[path] == 1).any() else 0  # one branch brings the trunk
        own = path[trunk - shared :]
        out = out.index_copy(0, own, mixed[trunk - shared :])
    return out.view(B, T, H, C).transpose(1, 2)


def test_the_rule_is_what_it_says():
    """Whatever the positions: branches may begin before their trunk ends."""
    draw = torch.Generator().manual_seed(0)
    positions, docs, branches = (torch.randint(0, n, (2, 60), generator=draw) for n in (40, 2, 4))
    mask = visible(positions, positions, docs, docs, window=15, branches=(branches, branches))
    assert mask.shape == (2, 1, 60, 60)
    rows = [x.tolist() for x in (positions, docs, branches)]
    for b in range(2):
        for q in range(60):
            for k in range(60):
                (q_pos, k_pos), (q_doc, k_doc), (q_branch, k_branch) = [(x[b][q], x[b][k]) for x in rows]
                seen = q_doc == k_doc and 0 <= q_pos - k_pos < 15 and k_branch in (0, q_branch)
                assert bool(mask[b, 0, q, k]) == seen
    assert mask.diagonal(dim1=-2, dim2=-1).all(), "everyone sees themselves: no row of -inf"


@pytest.mark.parametrize("impl", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FORKED)
def test_attention_and_its_gradients_are_those_of_separate_documents(name, impl):
    case = FORKED[name]
    layout = laid(case, impl)
    assert layout.kind == ("dense" if impl == "eager" else "segments")
    check(case, layout, WINDOWS)


def check(case, layout, windows):
    for window in windows:
        heads = [x.requires_grad_() for x in random_heads(case.positions)]
        others = [x.requires_grad_() for x in random_heads(case.positions)]
        out, wanted = attend(*heads, layout, window) * case.real, alone(case, *others, window)
        torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)
        (out.sin().sum() + (out**2).sum()).backward()
        (wanted.sin().sum() + (wanted**2).sum()).backward()
        for one, other in zip(heads, others, strict=True):
            torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4)


FORKS = st.tuples(st.integers(0, 40), st.lists(st.integers(1, 30), max_size=4).map(tuple)).filter(
    lambda fork: fork[0] + len(fork[1]) > 0
)


@given(st.lists(st.lists(FORKS, max_size=4), min_size=1, max_size=3), st.sampled_from([None, 1, 7, 20]))
def test_so_are_those_of_any_rows(rows, window):
    length = max(1, max(sum(trunk + sum(answers) for trunk, answers in row) for row in rows)) + 2
    case = forked(*rows, length=length)
    layout = laid(case, windows={window})
    assert layout.kind == "segments"
    check(case, layout, {window})


def test_bfloat16_gradients_are_as_close_to_exact_ones_as_those_of_separate_documents():
    """The blocks of queries in the backward pass end at 256; with 300 of a branch there are two."""
    for case in (*FORKED.values(), forked([(40, (300, 290)), (100, (3, 3))], length=740)):
        exact = [x.requires_grad_() for x in random_heads(case.positions)]
        upstream = torch.randn(exact[0].shape, generator=torch.Generator().manual_seed(2)) * case.real
        (alone(case, *exact, None) * upstream).sum().backward()
        shared = [x.bfloat16().requires_grad_() for x in random_heads(case.positions)]
        (attend(*shared, laid(case), None) * upstream).sum().backward()
        apart = [x.bfloat16().requires_grad_() for x in random_heads(case.positions)]
        flat = [x.transpose(1, 2).flatten(0, 1) for x in (*apart, upstream)]
        for path, trunk in zip(case.paths, case.trunks, strict=True):
            q, k, v, slope = (x[path].transpose(0, 1)[None] for x in flat)
            own = torch.arange(len(path)) >= (0 if (case.branches.flatten()[path] == 1).any() else trunk)
            layout = plan(torch.arange(len(path))[None], None, kv_used=None, windows={None})
            (attend(q, k, v, layout, None) * slope * own[:, None]).sum().backward(retain_graph=True)
        for one, other, wanted in zip(shared, apart, exact, strict=True):
            error = (one.grad.float() - wanted.grad).norm()
            other_error = (other.grad.float() - wanted.grad).norm() if other.grad is not None else 0.0
            assert error <= 1.1 * other_error <= 0.02 * wanted.grad.norm()


@pytest.mark.parametrize("impl", ["auto", "eager"])
@pytest.mark.parametrize("name", ["llama", "qwen2 window", "mistral window"])
def test_the_model_gives_what_transformers_gives_for_each_answer(name, impl):
    """Hidden states and gradients; windows of 8 are shorter than the trunks."""
    case = FORKED["mixed"]
    theirs = oracle(name)
    model = ours(theirs)
    model.attention_impl = impl
    tokens = random_tokens(*case.positions.shape)
    hidden = model(tokens, case.positions, case.docs, branches=case.branches).flatten(0, 1)
    slopes = 0.02 * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3))
    total = other_total = torch.zeros(())
    for path, trunk in zip(case.paths, case.trunks, strict=True):
        wanted = theirs.model(tokens.flatten()[path][None]).last_hidden_state[0]
        torch.testing.assert_close(hidden[path], wanted, atol=1e-5, rtol=1e-5)
        total = total + (hidden[path[trunk:]] * slopes[path[trunk:]]).sum()
        other_total = other_total + (wanted[trunk:] * slopes[path[trunk:]]).sum()
    total.backward()
    other_total.backward()
    grads = {key: p.grad for key, p in theirs.named_parameters() if p.grad is not None}
    found = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == grads.keys()
    for key, grad in found.items():
        torch.testing.assert_close(grad, grads[key], atol=1e-5, rtol=1e-4, msg=key)


@pytest.mark.parametrize("change", ["branch goes on elsewhere", "trunk in two pieces", "gap"])
def test_what_is_not_a_trunk_and_branches_is_masked_pair_by_pair(change):
    case = FORKED["a pair"]
    positions, branches = case.positions.clone(), case.branches.clone()
    if change == "branch goes on elsewhere":
        positions[branches == 2] += 1
    elif change == "trunk in two pieces":
        branches[0, -3:] = 0
    else:
        positions[0, 35:] += 2
    case = replace(case, positions=positions, branches=branches)
    layout = laid(case)
    assert layout.kind == "dense"
    q, k, v = random_heads(positions)
    rows = positions, positions, case.docs, case.docs
    for window in WINDOWS:
        wanted = by_the_rule(q, k, v, visible(*rows, window=window, branches=(branches, branches)))
        torch.testing.assert_close(attend(q, k, v, layout, window), wanted, atol=1e-5, rtol=1e-5)


def test_rows_where_nothing_forks_are_laid_out_as_ever():
    """One document a row stays one causal call, and packed ones keep their buckets."""
    whole = torch.arange(9).expand(2, -1)
    zeros = torch.zeros_like(whole)
    assert plan(whole, zeros, branches=zeros, kv_used=None, windows={None}).kind == "causal"
    case = forked([(70, ()), (65, ()), (9, ()), (8, ())], [(3, ())], length=160)
    plain = plan(case.positions, case.docs, kv_used=None, windows={None})
    for one, other in zip(laid(case).buckets, plain.buckets, strict=True):
        assert one.offset == other.offset == 0
        assert all(torch.equal(getattr(one, x), getattr(other, x)) for x in ("index", "kept", "places"))


def test_branches_of_like_shape_share_a_call_that_asks_little_of_their_trunks():
    """Trunks of 60 and 57, of 50 and 48, and the four trunks themselves."""
    buckets = laid(FORKED["alike"]).buckets
    assert [(len(bucket.index), bucket.offset) for bucket in buckets] == [(4, 48), (4, 48), (4, 0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("impl", ["sdpa", "eager"])
def test_attention_weights_of_branches_are_dropped_by_chance_and_only_where_there_is_attention(impl, dtype):
    """Values are unit vectors and scores all 0, so that outputs are the weights: 0, or 1 / n scaled up."""
    case = FORKED["alike"]
    B, T = case.positions.shape
    layout = laid(case, impl, dropout=0.25)
    q = torch.zeros(B, 4, T, T, dtype=dtype, requires_grad=True)
    values = torch.eye(T, dtype=dtype).expand(B, 2, T, T)
    rows = case.positions, case.positions, case.docs, case.docs
    for window in (None, 10):
        torch.manual_seed(0)
        weights = attend(q, torch.zeros_like(values), values, layout, window).float()  # (B, H, T, T)
        seen = visible(*rows, window=window, branches=(case.branches, case.branches)).expand_as(weights)
        assert not weights[case.real & ~seen].any(), "it looks where it must not"
        scaled = (weights * seen.sum(-1, keepdim=True) * 0.75)[case.real & seen]
        kept = scaled > 0.5
        torch.testing.assert_close(scaled[kept], torch.ones_like(scaled[kept]), rtol=0.02, atol=0)
        assert abs(kept.float().mean().item() - 0.75) < 4 * (0.25 * 0.75 / kept.numel()) ** 0.5


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("name", FORKED)
def test_flex_attention_is_given_the_same_rule(name, monkeypatch):
    """The mask it asks, the blocks it skips, and (uncompiled, forward only) what it gives."""
    monkeypatch.setattr(attention, "_compiled_flex", [flex_attention])
    case = FORKED[name]
    B, T = case.positions.shape
    layout = laid(case, "flash", windows={None, 10})
    assert layout.kind == "flex"
    rows = case.positions, case.positions, case.docs, case.docs
    heads = random_heads(case.positions)
    for window in (None, 10):
        wanted = visible(*rows, window=window, branches=(case.branches, case.branches))
        block_mask = layout.masks[window]
        assert torch.equal(create_mask(block_mask.mask_mod, B, 1, T, T, device="cpu"), wanted)
        kept = block_mask.to_dense().bool().repeat_interleave(128, 2).repeat_interleave(128, 3)[:, :, :T, :T]
        assert not (wanted & ~kept).any(), "a block that it skips holds a pair that sees each other"
        out = attend(*heads, layout, window)
        torch.testing.assert_close(out, by_the_rule(*heads, wanted), atol=1e-5, rtol=1e-5)
