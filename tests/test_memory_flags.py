"""Flags that save memory: whole runs with them resume exactly, and what does not go together is refused."""

import signal
from importlib.util import find_spec

import pytest
import torch
from killed_runs import end, killed_at_random, start
from tiny_runs import differences, leavings, material, metrics, refused, run, run_here, watched

from tutelage.cli import configure
from tutelage.recipes.stage import saving_memory

needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
ONE = {"gradient_accum_steps": 1, "clip_grad_norm": 0}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"), dim=96)  # matrices of more than 4,096 weights


RUNS = {
    "matmuls kept": {"selective_ac_ratio": 0.5, "ac_policy": "matmul"},
    "bf16 moments": {"optimizer_state": "bf16", "precision": "bf16"},
    "8-bit moments": {"optimizer_state": "8bit", "precision": "bf16", "ema_decay": 0.9},
    "released": {"gradient_release": True, **ONE},
    "adapters": {
        "lora": True,
        "gradient_release": True,
        **ONE,
        "optimizer_state": "bf16",
        "precision": "bf16",
        "selective_ac_ratio": 1,
        "ac_policy": "matmul",
    },
    "half frozen": {
        "frozen_layers": 1,
        "gradient_release": True,
        **ONE,
        "optimizer_state": "8bit",
        "ema_decay": 0.9,
    },
    "everything": {
        "gradient_release": True,
        **ONE,
        "optimizer_state": "bf16",
        "precision": "bf16_pure",
        "selective_ac_ratio": 1,
        "ac_policy": "matmul",
        "ema_decay": 0.9,
    },
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_interrupted_and_resumed_is_unbroken(made, tmp_path, monkeypatch, name):
    settings = RUNS[name] | {"train_steps": 5, "lr": 1e-3, "wd": 0.1}
    if settings.get("optimizer_state") == "8bit" and find_spec("bitsandbytes") is None:
        pytest.skip("needs bitsandbytes")
    watch = watched(monkeypatch)
    whole, broken = tmp_path / "whole" / "out", tmp_path / "broken" / "out"
    ended = run(*made.sft(whole, **settings))
    assert ended.code == 0, ended.err
    watch.signals = {3: signal.SIGINT}
    assert run(*made.sft(broken, **settings)).code == 130
    assert run(*made.sft(broken, **settings), "--resume").code == 0
    assert differences(leavings(whole), leavings(broken)) == []


def test_flags_that_must_change_nothing_change_nothing(made, tmp_path):
    """Recomputation and released gradients leave the weights and numbers of a run without them."""
    left = []
    for name, extra in {
        "plain": {},
        "saving": {"selective_ac_ratio": 1, "ac_policy": "matmul", "gradient_release": True},
    }.items():
        out = tmp_path / name / "out"
        assert run(*made.sft(out, train_steps=3, precision="bf16", **ONE, **extra)).code == 0
        left.append({n: v for n, v in leavings(out).items() if n != "model README.md"})
    assert differences(*left) == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"ac_policy": "matmul"}, "ac_policy matmul does nothing while selective_ac_ratio is 0"),
        (
            {"ac_policy": "matmul", "selective_ac_ratio": 1, "compile": True},
            "ac_policy matmul does not go with compile, which itself picks what to form again",
        ),
        (
            {"optimizer_state": "fp32", "precision": "bf16_pure"},
            "optimizer_state fp32 does not go with precision bf16_pure; leave one of them out",
        ),
        (
            {"optimizer_state": "bf16", "optimizer": "muon"},
            "optimizer_state bf16 is for optimizer adamw; muon's has no second moments",
        ),
        (
            {"optimizer_state": "paged_8bit"},
            "optimizer_state paged_8bit needs a GPU; on CPU there is nowhere to page to, 8bit is the same",
        ),
        (
            {"offload_activations": True},
            "offload_activations needs a GPU; on CPU activations are in main memory already",
        ),
        (
            {"gradient_release": True, "clip_grad_norm": 0},
            "gradient_release does not go with gradient_accum_steps 2, which adds gradients up; "
            "give --gradient_accum_steps 1",
        ),
        (
            {"gradient_release": True, "gradient_accum_steps": 1},
            "gradient_release does not go with clip_grad_norm 1.0, which needs all gradients at once; "
            "give --clip_grad_norm 0",
        ),
        (
            {"gradient_release": True, **ONE, "optimizer": "muon"},
            "gradient_release does not go with optimizer muon, which has two optimizers; "
            "give --optimizer adamw",
        ),
        (
            {"gradient_release": True, **ONE, "precision": "fp16"},
            "gradient_release does not go with precision fp16, which leaves steps out; give --precision bf16",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(made, tmp_path, settings, says):
    assert refused(run(*made.sft(tmp_path / "out", **settings))).endswith(says)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("settings", [{"optimizer_state": "paged_8bit"}, {"offload_activations": True}])
def test_what_needs_a_gpu_is_refused_where_auto_finds_none(made, tmp_path, settings):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    if "optimizer_state" in settings and find_spec("bitsandbytes") is None:
        pytest.skip("needs bitsandbytes")
    assert "needs a GPU" in refused(run(*made.sft(tmp_path / "out", device="auto", **settings)))


def test_a_missing_package_is_named_with_what_to_install(made, tmp_path, monkeypatch):
    monkeypatch.setattr(saving_memory, "find_spec", lambda name: None)
    assert refused(run(*made.sft(tmp_path / "out", optimizer_state="8bit"))).endswith(
        "optimizer_state 8bit needs a package that is missing: pip install 'tutelage[quant]'"
    )


def test_scales_of_blocks_are_refused_under_torchrun(made, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = made.sft(tmp_path / "out", optimizer_state="8bit")
    with pytest.raises(
        Exception, match="scales of blocks that are not cut over several processes; bf16 works"
    ):
        configure(words)


@pytest.mark.parametrize(("before", "after"), [({}, "bf16"), ({"optimizer_state": "bf16"}, "fp32")])
def test_a_run_is_not_resumed_with_other_moments(made, tmp_path, before, after):
    assert run(*made.sft(tmp_path, train_steps=2, **before)).code == 0
    message = refused(run(*made.sft(tmp_path, train_steps=4, optimizer_state=after), "--resume"))
    assert "holds another model or optimizer than this run's" in message and "exp_avg" in message


def test_a_run_may_be_resumed_with_gradients_released(made, tmp_path):
    whole, changed = tmp_path / "whole" / "out", tmp_path / "changed" / "out"
    settings = {"lr_scheduler": "constant", **ONE}
    assert run(*made.sft(whole, train_steps=4, **settings)).code == 0
    assert run(*made.sft(changed, train_steps=2, **settings)).code == 0
    assert run(*made.sft(changed, "--resume", train_steps=4, gradient_release=True, **settings)).code == 0
    assert metrics(whole) == metrics(changed)


def test_a_spoiled_step_is_told(made, tmp_path, monkeypatch):
    """The loss is a number, its gradient is not: what to do is said, and nothing of it is saved."""
    from tutelage.objectives.base import Loss
    from tutelage.objectives.language import NextToken

    right = NextToken.__call__

    def wrong(self, model, batch):
        loss = right(self, model, batch)
        return Loss(loss.total + (model.model.norm.weight * 0).sum().sqrt(), loss.weight)

    monkeypatch.setattr(NextToken, "__call__", wrong)
    message = refused(run(*made.sft(tmp_path / "out", gradient_release=True, **ONE)))
    assert "gradient norm nan; it moved the weights before it was seen, since --gradient_release" in message
    assert "they are spoiled. The step's rows: " in message
    assert "there is no good checkpoint before it" in message


@needs_bitsandbytes
def test_the_plan_counts_what_is_saved(made, tmp_path):
    """bf16 over float32 masters: 6 bytes a weight, 4 of gradients, 8 of moments."""

    def bytes_a_weight(**settings):
        shape = {"dim": 1024, "n_layers": 8, "n_heads": 8, "precision": "bf16"}
        said = run(*made.pretrain(tmp_path / "out", **shape, **settings), "--dry_run").err
        parameters = int(said.split(" parameters")[0].split()[-1].replace(",", ""))
        return float(said.split("optimizer take ")[1].split(" GiB")[0]) * 2**30 / parameters

    for settings, size in (
        ({}, 18),
        ({"optimizer_state": "bf16"}, 14),
        ({"optimizer_state": "8bit"}, 12),
        ({"gradient_release": True, **ONE}, 14),
    ):
        assert bytes_a_weight(**settings) == pytest.approx(size, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["8-bit moments", "everything"])
def test_killed_at_random_moments_a_run_ends_as_an_unbroken_one(made, tmp_path, name):
    if name == "8-bit moments" and find_spec("bitsandbytes") is None:
        pytest.skip("needs bitsandbytes")
    settings = RUNS[name] | {"train_steps": 14, "save_freq": 1, "lr": 1e-3, "template_config": "chatml"}
    log, whole, broken = tmp_path / "log", tmp_path / "whole" / "out", tmp_path / "broken" / "out"
    assert end(start(run_here, made.sft(whole, **settings), log=log, directory=whole)) == 0, log.read_text()
    words = made.sft(broken, "--resume", **settings)
    killed_at_random(
        lambda: start(run_here, words, log=log, directory=broken), kills=3, within=4, seed=3, log=log
    )
    assert differences(leavings(whole), leavings(broken)) == []
