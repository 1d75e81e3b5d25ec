"""One rule of attention, and every execution of it gives what the rule says."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask, flex_attention

from tutelage.model import attention
from tutelage.model.attention import attend, plan, visible
from tutelage.model.cache import KVCache
from tutelage.model.config import ModelConfig

WINDOWS = {None, 1, 3, 64, 1000}


def rows_of(*rows, length):
    """Positions and documents of rows, each a list of document lengths, padded to `length`."""
    positions, docs = torch.zeros(len(rows), length, dtype=torch.int64), torch.full((len(rows), length), -1)
    for row, lengths in enumerate(rows):
        start = 0
        for doc, n in enumerate(lengths):
            positions[row, start : start + n] = torch.arange(n)
            docs[row, start : start + n] = doc
            start += n
    return positions, docs


def rule_by_hand(q_pos, k_pos, q_doc, k_doc, window):
    """The rule for one pair, in words of one pair."""
    return q_doc == k_doc and k_pos <= q_pos and (window is None or q_pos - k_pos < window)


def by_the_rule(q, k, v, mask):
    """(B, H, T, C), (B, K, S, C), (B, K, S, C), (B, 1, T, S) -> (B, H, T, C), in the plainest words."""
    share = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.masked_fill(~mask, -1e9).softmax(-1) @ v


def random_heads(positions, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    B, T = positions.shape
    return [torch.randn(B, n, T, 8, generator=generator, dtype=dtype) for n in (4, 2, 2)]


@pytest.mark.parametrize("window", [None, 1, 2, 5])
def test_the_rule_is_what_it_says(window):
    positions, docs = rows_of([3, 1, 2], [6], length=7)
    mask = visible(positions, positions, docs, docs, window=window)
    assert mask.shape == (2, 1, 7, 7)
    for b in range(2):
        for q in range(7):
            for k in range(7):
                pair = positions[b, q], positions[b, k], docs[b, q], docs[b, k]
                assert bool(mask[b, 0, q, k]) == bool(rule_by_hand(*pair, window))
    assert mask.diagonal(dim1=-2, dim2=-1).all(), "everyone sees themselves, padding too: no row of -inf"


LAYOUTS = {
    "causal": rows_of([70], [70], length=70),
    "segments": rows_of([1, 40, 2, 9], [66], [3, 3], length=70),
    "one token each": rows_of([1, 1, 1], length=3),
    "a row of padding": rows_of([], [5], length=5),
    "all padding": rows_of([], [], length=5),
    "alike": rows_of([9, 10, 8, 7, 1], [10, 10, 3], [2, 2, 2], length=35),
    "padding first": (torch.tensor([[0, 0, 1, 2, 0]]), torch.tensor([[-1, 0, 0, 0, -1]])),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_executions_on_whole_documents_agree_with_the_rule(name):
    positions, docs = LAYOUTS[name]
    layout = plan(positions, docs, kv_used=None, windows=WINDOWS)
    assert layout.kind == ("causal" if name == "causal" else "segments")
    q, k, v = random_heads(positions)
    real = (docs >= 0)[:, None, :, None].expand_as(q)
    for window in WINDOWS:
        wanted = by_the_rule(q, k, v, visible(positions, positions, docs, docs, window=window))
        out = attend(q, k, v, layout, window)
        torch.testing.assert_close(out[real], wanted[real], atol=1e-5, rtol=1e-5)
        assert out.isfinite().all()


def test_rows_without_documents_are_one_document_each():
    positions = torch.arange(9).expand(2, -1)
    layout = plan(positions, None, kv_used=None, windows={None})
    assert layout.kind == "causal"
    shifted = plan(positions + 100, None, kv_used=None, windows={None})
    q, k, v = random_heads(positions)
    assert torch.equal(attend(q, k, v, layout, None), attend(q, k, v, shifted, None))


@pytest.mark.parametrize(
    ("positions", "docs"),
    [
        ([[0, 1, 2, 2, 3, 3]], [[0, 0, 0, 0, 0, 0]]),  # branches of one document
        ([[0, 1, 0, 1, 2, 3]], [[0, 0, 1, 1, 0, 0]]),  # a document that goes on after another
        ([[0, 2, 4, 6, 8, 10]], [[0, 0, 0, 0, 0, 0]]),  # gaps, which a window notices
        ([[5, 4, 3, 2, 1, 0]], [[0, 0, 0, 0, 0, 0]]),  # backwards
    ],
)
def test_what_is_not_whole_documents_is_masked_pair_by_pair(positions, docs):
    positions, docs = torch.tensor(positions), torch.tensor(docs)
    layout = plan(positions, docs, kv_used=None, windows=WINDOWS)
    assert layout.kind == "dense"
    q, k, v = random_heads(positions)
    for window in WINDOWS:
        wanted = by_the_rule(q, k, v, visible(positions, positions, docs, docs, window=window))
        torch.testing.assert_close(attend(q, k, v, layout, window), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_an_execution_can_be_insisted_on(monkeypatch):
    """Each gives what the rule says, on the same rows; flash is FlexAttention, here uncompiled."""
    monkeypatch.setattr(attention, "_compiled_flex", [flex_attention])
    positions, docs = LAYOUTS["alike"]
    q, k, v = random_heads(positions)
    real = (docs >= 0)[:, None, :, None].expand_as(q)
    for impl, kind in [("eager", "dense"), ("sdpa", "segments"), ("flash", "flex"), ("auto", "segments")]:
        layout = plan(positions, docs, kv_used=None, windows={None, 3}, impl=impl)
        assert layout.kind == kind
        for window in (None, 3):
            wanted = by_the_rule(q, k, v, visible(positions, positions, docs, docs, window=window))
            out = attend(q, k, v, layout, window)
            torch.testing.assert_close(out[real], wanted[real], atol=1e-5, rtol=1e-5)


def test_gradients_of_the_segments_are_those_of_the_rule():
    positions, docs = rows_of([1, 12, 4], [9], length=18)
    layout = plan(positions, docs, kv_used=None, windows={None, 3})
    real = (docs >= 0)[:, None, :, None]
    for window in (None, 3):
        mask = visible(positions, positions, docs, docs, window=window)
        ours = [x.requires_grad_() for x in random_heads(positions)]
        theirs = [x.requires_grad_() for x in random_heads(positions)]
        (attend(*ours, layout, window) * real).pow(2).sum().backward()
        (by_the_rule(*theirs, mask) * real).pow(2).sum().backward()
        for our, their in zip(ours, theirs, strict=True):
            torch.testing.assert_close(our.grad, their.grad, atol=1e-5, rtol=1e-4)


FLEX_ROWS = rows_of([1, 150, 2, 90], [290], [130, 130], [], length=300)  # several blocks of 128


def test_flex_attention_is_given_the_same_rule():
    positions, docs = FLEX_ROWS
    B, T = positions.shape
    layout = attention._flex(positions, docs, WINDOWS)
    for window in WINDOWS:
        wanted = visible(positions, positions, docs, docs, window=window)
        block_mask = layout.masks[window]
        assert torch.equal(create_mask(block_mask.mask_mod, B, 1, T, T, device="cpu"), wanted)
        kept = block_mask.to_dense().bool().repeat_interleave(128, 2).repeat_interleave(128, 3)[:, :, :T, :T]
        assert not (wanted & ~kept).any(), "a block that it skips holds a pair that sees each other"


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_attention_agrees_with_the_rule(monkeypatch):
    """Uncompiled, forward only: what a machine without CUDA can run of it."""
    monkeypatch.setattr(attention, "_compiled_flex", [flex_attention])
    positions, docs = FLEX_ROWS
    layout = attention._flex(positions, docs, {None, 64})
    q, k, v = random_heads(positions)
    for window in (None, 64):
        wanted = by_the_rule(q, k, v, visible(positions, positions, docs, docs, window=window))
        torch.testing.assert_close(attend(q, k, v, layout, window), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_flex_attention_trains_as_the_rule_says_on_a_gpu():
    positions, docs = (x.cuda() for x in FLEX_ROWS)
    layout = plan(positions, docs, kv_used=None, windows={None, 64})
    assert layout.kind == "flex"
    for window in (None, 64):
        mask = visible(positions, positions, docs, docs, window=window)
        ours = [x.repeat(1, 1, 1, 4).cuda().requires_grad_() for x in random_heads(positions)]
        theirs = [x.detach().clone().requires_grad_() for x in ours]
        out, wanted = attend(*ours, layout, window), by_the_rule(*theirs, mask)
        torch.testing.assert_close(out, wanted, atol=1e-3, rtol=1e-3)
        out.sum().backward()
        wanted.sum().backward()
        for our, their in zip(ours, theirs, strict=True):
            torch.testing.assert_close(our.grad, their.grad, atol=1e-3, rtol=1e-3)


def cache(rows=2, length=6):
    config = ModelConfig(vocab_size=9, dim=8, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=4, ffn_dim=8)
    return KVCache(config, rows, length, dtype=torch.float32)


def test_a_query_sees_the_cache_up_to_its_own_position():
    positions = torch.tensor([[0, 1], [3, 4]])
    layout = plan(positions, None, kv_used=5, windows={None, 2})
    assert layout.kind == "dense"
    assert layout.masks[None][:, 0].int().tolist() == [
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]],
        [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
    ]
    assert layout.masks[2][:, 0].int().tolist() == [
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]],
        [[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]],
    ]


def test_a_cache_keeps_what_was_written_at_its_position():
    kv, positions = cache(), torch.tensor([[0, 1], [3, 4]])
    kv.reserve(positions)
    k = torch.arange(16.0).view(2, 1, 2, 4) + 1
    keys, values = kv.write(1, k, -k, positions)
    assert keys.shape == (2, 1, 5, 4)
    assert torch.equal(keys[0, 0, :2], k[0, 0]) and torch.equal(keys[1, 0, 3:], k[1, 0])
    assert torch.equal(values, -keys) and not keys[0, 0, 2:].any() and not kv.keys[0].any()
    kv.keep(torch.tensor([1]))
    assert kv.keys.shape == (2, 1, 1, 6, 4) and torch.equal(kv.keys[1, 0, 0, 3:5], k[1, 0])


def test_a_cache_never_writes_past_its_end():
    kv = cache(length=6)
    assert kv.length == 6
    kv.reserve(torch.tensor([[5]]))
    with pytest.raises(AssertionError, match="position 6 in a cache of 6"):
        kv.reserve(torch.tensor([[6]]))
