"""Dropout: in training only, with the chances it was given, within the rule of attention, and resumable."""

import signal

import pytest
import torch
from test_attention import LAYOUTS
from test_objectives import ragged, tiny
from tiny_runs import differences, leavings, material, refused, run, watched

from tutelage.cli import configure
from tutelage.data.pack import collate
from tutelage.errors import UserError
from tutelage.model.attention import attend, plan, visible
from tutelage.model.transformer import set_dropout
from tutelage.objectives.language import NextToken
from tutelage.recipes import pretrain
from tutelage.train import surgery

ALL = {"embed": 0.3, "attn": 0.3, "resid": 0.3, "head": 0.3}


def batch():
    return collate([ragged([40, 17, 3]), ragged([30, 30, 1], seed=1)], 64)


def gradients(model, *, seed=7):
    """The loss and every gradient of one pass, drawn with this seed."""
    torch.manual_seed(seed)
    loss = NextToken()(model, batch())
    loss.total.backward()
    return {"loss": loss.total.detach(), **{name: p.grad for name, p in model.named_parameters()}}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("impl", ["auto", "eager"])
@pytest.mark.parametrize("name", ["causal", "segments", "alike"])
def test_attention_weights_are_dropped_by_chance_and_only_where_there_is_attention(name, impl, dtype):
    """Values are unit vectors and scores all 0, so that outputs are the weights: 0, or 1 / n scaled up."""
    positions, docs = LAYOUTS[name]
    B, T = positions.shape
    layout = plan(positions, docs, kv_used=None, windows={None, 5}, impl=impl, dropout=0.25)
    q = torch.zeros(B, 4, T, T, dtype=dtype, requires_grad=True)
    values = torch.eye(T, dtype=dtype).expand(B, 2, T, T)
    for window in (None, 5):
        torch.manual_seed(0)
        weights = attend(q, torch.zeros_like(values), values, layout, window).float()  # (B, H, T, T)
        seen = visible(positions, positions, docs, docs, window=window).expand_as(weights)
        real = (docs >= 0)[:, None, :, None] & seen
        assert not weights[(docs >= 0)[:, None, :, None] & ~seen].any(), "it looks where it must not"
        scaled = weights * seen.sum(-1, keepdim=True) * 0.75
        kept = scaled > 0.5
        torch.testing.assert_close(
            scaled[kept & real], torch.ones_like(scaled[kept & real]), rtol=0.02, atol=0
        )
        assert not weights[real & ~kept].any()
        share, n = kept[real].float().mean().item(), int(real.sum())
        assert abs(share - 0.75) < 4 * (0.25 * 0.75 / n) ** 0.5
        if n > 1000:
            assert (kept[:, 0] != kept[:, 1])[real[:, 0]].any(), "heads draw for themselves"


def test_everything_else_is_dropped_by_chance():
    """One kind at a time: what the first block sees, what a block adds, what the head sees."""
    for kind in ("embed", "resid", "head"):
        model = tiny().train()
        set_dropout(model, **dict.fromkeys(ALL, 0.0) | {kind: 0.4})
        seen = {}
        block = model.model.layers[0]
        block.register_forward_pre_hook(lambda _, given, s=seen: s.update(embed=given[0]))
        block.post_attention_layernorm.register_forward_pre_hook(
            lambda _, given, s=seen: s.update(middle=given[0])
        )
        data = batch()
        torch.manual_seed(1)
        seen["head"] = model(data.tokens, data.positions, data.docs)
        seen["resid"] = seen.pop("middle") - seen["embed"]
        real = data.docs >= 0
        for name, values in seen.items():
            share = (values[real] == 0).float().mean().item()
            assert share == pytest.approx(0.4 if name == kind else 0, abs=0.03), (kind, name)
        plain = tiny().train()(data.tokens, data.positions, data.docs)
        if kind == "head":
            kept = (seen["head"] != 0) & real[..., None]
            torch.testing.assert_close(seen["head"][kept], plain[kept] / 0.6)


def test_a_chance_of_0_changes_no_bit_and_draws_nothing():
    plain, zero = tiny(), tiny()
    set_dropout(zero, **dict.fromkeys(ALL, 0.0))
    found = []
    for model in (plain, zero):
        found.append(gradients(model.train()) | {"random": torch.get_rng_state()})
    assert differences(*found) == []
    torch.manual_seed(7)
    assert torch.equal(torch.get_rng_state(), found[0]["random"])


def test_evaluation_drops_nothing():
    plain, dropping = tiny().eval(), tiny()
    set_dropout(dropping, **ALL)
    assert differences(gradients(plain), gradients(dropping.eval())) == []
    assert differences(gradients(plain), gradients(dropping.train())) != []


def test_recomputed_blocks_drop_what_they_dropped():
    once, again = tiny(), tiny()
    for model in (once, again):
        set_dropout(model.train(), **ALL)
    assert surgery.recompute(again, 1.0) == [0, 1]
    first, second = gradients(once), gradients(again)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-6, atol=1e-6, msg=name)
    assert differences(first, gradients(tiny().train(), seed=7)) != []


def test_flash_attention_cannot_drop_and_says_so():
    positions, docs = LAYOUTS["segments"]
    with pytest.raises(UserError, match="^attention_impl flash has no dropout of attention weights"):
        plan(positions, docs, kv_used=None, windows={None}, impl="flash", dropout=0.1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


def test_a_run_with_dropout_interrupted_and_resumed_is_unbroken(made, tmp_path, monkeypatch):
    """InstructLLaMA's chances of 0.1 each, with validation between steps and recomputed blocks."""
    watch = watched(monkeypatch)
    settings = {f"dropout_{kind}": 0.1 for kind in ALL} | {"train_steps": 6, "selective_ac_ratio": 0.5}
    settings |= {"precision": "bf16", "val_data_paths": f"text:{made.place / 'text.txt'}", "val_freq": 2}
    whole, broken, plain = (tmp_path / name / "out" for name in ("whole", "broken", "plain"))
    assert run(*made.pretrain(whole, **settings)).code == 0
    watch.signals = {3: signal.SIGINT}
    assert run(*made.pretrain(broken, **settings)).code == 130
    assert run(*made.pretrain(broken, **settings), "--resume").code == 0
    assert differences(leavings(whole), leavings(broken)) == []
    none = settings | {f"dropout_{kind}": 0.0 for kind in ALL}
    assert run(*made.pretrain(plain, **none)).code == 0
    assert "checkpoint random.cpu.0" in differences(leavings(whole), leavings(plain))


def test_each_flag_sets_its_own_chance(made, tmp_path, monkeypatch):
    class Seen(Exception):
        pass

    def fit(config, stage, model, *_, **__):
        block, chances = model.model.layers[1], [model.model.dropout.p, model.attention_dropout]
        raise Seen(*chances, block.dropout.p, model.dropout.p)

    monkeypatch.setattr("tutelage.recipes.stage.fitting.fit", fit)
    chances = {"dropout_embed": 0.1, "dropout_attn": 0.2, "dropout_resid": 0.3, "dropout_head": 0.4}
    _, config = configure(made.pretrain(tmp_path, **chances))
    with pytest.raises(Seen) as seen:
        pretrain.run(config)
    assert seen.value.args == (0.1, 0.2, 0.3, 0.4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_drops_attention_weights_within_the_rule():
    positions, docs = (x.cuda() for x in LAYOUTS["segments"])
    layout = plan(positions, docs, kv_used=None, windows={None}, dropout=0.25)
    assert layout.kind == "dense"
    values = torch.eye(positions.shape[1], device="cuda").expand(*positions.shape[:1], 2, -1, -1)
    weights = attend(values.repeat_interleave(2, dim=1) * 0, values * 0, values, layout, None)
    seen = visible(positions, positions, docs, docs, window=None).expand_as(weights)
    assert not weights[~seen].any() and 0.7 < (weights[seen] > 0).float().mean() < 0.8


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"dropout_embed": 1}, "dropout_embed is 1.0, must be from 0 up to, not with, 1"),
        ({"dropout_head": -0.1}, "dropout_head is -0.1, must be from 0 up to, not with, 1"),
        (
            {"dropout_attn": 0.1, "attention_impl": "flash", "device": "auto"},
            "dropout_attn does not go with attention_impl flash; sdpa and eager have it",
        ),
    ],
)
def test_chances_that_cannot_be_are_refused(made, tmp_path, settings, says):
    assert says in refused(run(*made.pretrain(tmp_path, **settings)))
