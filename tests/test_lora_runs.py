"""Runs of the command line that train adapters: what they hold, leave, refuse, and how they go on."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import differences, leavings, material, refused, run, stored, watched
from transformers import AutoModelForCausalLM

from tutelage.checkpoint.hf import load_model
from tutelage.train.saver import newest

KINDS = {
    "lora": {},
    "dora": {"lora_dora": "true"},
    "pissa": {"lora_init": "pissa"},
    "rslora dropout": {"lora_rslora": "true", "lora_dropout": 0.1},
    "embedding": {"lora_embedding": "true"},
    "beside": {"lora_unfrozen_params": ".*norm.weight"},
    "ema": {"ema_decay": 0.9},
    "muon": {"optimizer": "muon"},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


def lora(made, out, **settings):
    return made.sft(out, **{"lora": "true", "lora_rank": 4, "train_steps": 6, "lr": 3e-2} | settings)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_pure"])
@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_and_resumed_is_unbroken(made, tmp_path, monkeypatch, kind, precision):
    watch = watched(monkeypatch)
    settings = KINDS[kind] | {"precision": precision}
    whole, broken = tmp_path / "a" / "out", tmp_path / "b" / "out"
    ended = run(*lora(made, whole, **settings))
    assert ended.code == 0, ended.err
    watch.signals = {3: 15}
    assert run(*lora(made, broken, **settings)).code == 143
    ended = run(*lora(made, broken, **settings), "--resume")
    assert ended.code == 0, ended.err
    assert not differences(leavings(whole), leavings(broken))
