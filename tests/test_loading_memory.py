"""Loading a model costs the memory of its weights and little more."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import oracle

from tutelage.checkpoint import hf
from tutelage.checkpoint.hf import save_model
from tutelage.model.config import ModelConfig

MEASURE = """
import sys, threading, time, torch
from tutelage.checkpoint.hf import load_model

def memory(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

load_model(sys.argv[2])  # a tiny one, so that what loading imports is not counted
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # forget the peak of the imports
before = memory("VmRSS:")
model = load_model(sys.argv[1], dtype=getattr(torch, sys.argv[3]))
weights = sum(p.numel() * p.element_size() for p in model.parameters())
print((memory("VmHWM:") - before) / weights, weights)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory by Linux's /proc")
@pytest.mark.parametrize(
    ("stored", "wanted", "shard_bytes"),
    [
        (torch.float32, "float32", 10**9),
        (torch.bfloat16, "float32", 10**9),
        (torch.float32, "bfloat16", 10**8),
    ],
)
def test_loading_takes_little_more_memory_than_the_weights(stored, wanted, shard_bytes, tmp_path):
    """The peak of the process's resident memory, file pages included, of which half is one tensor."""
    config = ModelConfig(
        vocab_size=80_000,
        dim=1024,
        n_layers=4,
        n_heads=8,
        n_kv_heads=8,
        head_dim=128,
        ffn_dim=4096,
        tied=True,
    )
    torch.manual_seed(0)
    shapes = hf.parameter_shapes(config)
    state = {name: torch.ones(shape, dtype=stored) for name, shape in shapes.items()}
    save_model(state, config, tmp_path / "large", dtype=stored, shard_bytes=shard_bytes)
    del state
    oracle("llama").save_pretrained(tmp_path / "tiny")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "large"), str(tmp_path / "tiny"), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ratio, weights = map(float, done.stdout.split())
    assert weights > 190e6
    print(f"peak {ratio:.3f} of the weights")
    assert 0.9 < ratio <= 1.3
