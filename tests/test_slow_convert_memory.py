"""Converting takes the same memory whatever the size of the model: 4 GB of it here, in files of 1 GB."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_chat import byte_tokenizer

from tutelage.checkpoint.adapter import LowRank, StoredAdapter
from tutelage.checkpoint.hf import save_model
from tutelage.checkpoint.peft import write_peft
from tutelage.checkpoint.source import parameter_shapes
from tutelage.model.config import ModelConfig

pytestmark = pytest.mark.slow
BOUND = 300e6  # bytes above what converting a tiny model takes
MEASURE = """
import resource, sys
from tutelage import cli
cli.main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


class Made:
    """Weights that no memory holds: a stretch of noise, again and again, from another place."""

    def __init__(self, config: ModelConfig) -> None:
        self.where, self.problems, self.shapes = "made up", [], parameter_shapes(config)
        self.dtype = torch.bfloat16
        self._noise = torch.randn(2**23, generator=torch.Generator().manual_seed(0)).mul(0.02).bfloat16()

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        shape = self.shapes[name]
        if len(shape) == 1:
            return torch.ones(stop - start)
        first, count = start * 7919 % 2**22, (stop - start) * shape[1]
        return self._noise[first : first + count].view(stop - start, shape[1])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(a large one with an adapter, a tiny one)"""
    root = tmp_path_factory.mktemp("large")
    shape = {"n_heads": 16, "n_kv_heads": 4, "eos": (2,), "bos": 1, "max_positions": 4096, "tied": False}
    large = ModelConfig(
        **shape, vocab_size=64_000, dim=4096, n_layers=9, head_dim=256, ffn_dim=11_008, norm_eps=1e-5
    )
    tiny = ModelConfig(**shape, vocab_size=512, dim=64, n_layers=1, head_dim=4, ffn_dim=64, norm_eps=1e-5)
    for name, config in (("large", large), ("tiny", tiny)):
        save_model(Made(config), config, root / name, dtype=torch.bfloat16, shard_bytes=10**9)
        byte_tokenizer().save(root / name)
    layers = {
        f"model.layers.{i}.self_attn.q_proj": LowRank(torch.randn(8, 4096), torch.randn(4096, 8), 0.1)
        for i in range(large.n_layers)
    }
    stored = StoredAdapter("made up", layers, {})
    write_peft(stored, root / "adapter", config=large, base="large", fingerprint=None, dtype=torch.float32)
    size = sum(path.stat().st_size for path in (root / "large").glob("*.safetensors"))
    assert size > 4e9 and len(list((root / "large").glob("*.safetensors"))) >= 4
    yield root, size
    for path in [*root.rglob("*.safetensors"), *root.rglob("*.pth"), *root.rglob("*.bin")]:
        path.unlink()


def peak(*words: object) -> int:
    command = [sys.executable, "-c", MEASURE, "convert", *map(str, words), "--overwrite"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


@pytest.mark.parametrize(
    "words",
    [
        ["--precision", "fp16", "--verify"],
        ["--format", "meta", "--model_parallel", "4"],
        ["--format", "litgpt"],
        ["--format", "torchllms"],
        ["meta"],  # back from it
        ["adapter"],  # merged
    ],
)
def test_the_peak_does_not_grow_with_the_model(words, models, capsys):
    root, size = models
    large, out = [root / "large"], root / "out"
    if words == ["meta"]:
        assert peak(root / "large", "--output", root / "meta", "--format", "meta") > 0
        large, words = [root / "meta", "--tokenizer", root / "large"], []
    if words == ["adapter"]:
        large, words = [root / "large", root / "adapter"], []
    small = peak(root / "tiny", "--output", root / "small", *words)
    used = peak(*large, "--output", out, *words)
    for path in Path(out).glob("*.[spb]*"):
        path.unlink()
    with capsys.disabled():
        print(
            f"\n{words}: {used / 1e6:.0f} MB for {size / 1e9:.1f} GB, {small / 1e6:.0f} MB for a tiny model"
        )
    bound = BOUND + ("--verify" in words) * 4 * 150e6  # verified, one block and its copy in float32
    assert used - small < bound
