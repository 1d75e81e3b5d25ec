"""Muon, averages and dropout in two processes: what one process computes, and resumed bit for bit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import differences, leavings, material, run

pytestmark = pytest.mark.slow
SOURCE = Path(__file__).parent.parent / "src"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


def in_two_processes(words: list[str]) -> None:
    """The command under torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, "-m", "tutelage", *words], capture_output=True, text=True, env=environment, timeout=240
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [({"ema_decay": 0.5}, 1e-5), ({"optimizer": "muon"}, 5e-3)],  # Muon's matrix products are in bfloat16
)
def test_two_processes_train_as_one_does(made, tmp_path, settings, tolerance):
    settings |= {"train_steps": 4, "lr": 1e-2}
    assert run(*made.pretrain(tmp_path / "one", **settings)).code == 0
    in_two_processes(made.pretrain(tmp_path / "two", **settings, micro_batch_size_per_gpu=2))
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=tolerance, msg=name)


def test_two_processes_resumed_are_unbroken(made, tmp_path):
    settings = {"optimizer": "muon", "ema_decay": 0.5, "dropout_attn": 0.1, "dropout_resid": 0.1, "lr": 1e-2}
    settings |= {"precision": "bf16", "micro_batch_size_per_gpu": 2, "lr_scheduler": "constant"}
    whole, broken = tmp_path / "whole" / "out", tmp_path / "broken" / "out"
    in_two_processes(made.pretrain(whole, **settings, train_steps=5))
    in_two_processes(made.pretrain(broken, **settings, train_steps=3))
    in_two_processes(made.pretrain(broken, "--resume", **settings, train_steps=5))
    assert differences(leavings(whole), leavings(broken)) == []
