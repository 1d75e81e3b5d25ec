"""The arithmetic of a step, as PyTorch counts it, and the speed of devices."""

import time
from dataclasses import replace

import pytest
import torch
from tiny_models import CONFIGS, positions_of, random_tokens
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tutelage.model.adapters import LoRASettings, add_lora_
from tutelage.model.config import ModelConfig
from tutelage.model.presets import PRESETS
from tutelage.model.quantize import Quantization, quantize_
from tutelage.model.transformer import Transformer
from tutelage.train import flops
from tutelage.train.flops import flops_per_token, peak_flops
from tutelage.train.freezing import Freezing, freeze_


@pytest.mark.parametrize("name", ["llama", "llama tied", "qwen2", "mistral head_dim"])
def test_a_step_has_the_operations_that_pytorch_counts(name):
    """PyTorch counts every pair of positions, seen or not, so the context is the whole row here."""
    config = ModelConfig.from_hf(CONFIGS[name].to_dict())
    model, tokens = Transformer(config), random_tokens(3, 20)
    model.attention_impl = "eager"
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.unembed(model(tokens, positions_of(tokens))).sum().backward()
    assert flops_per_token(model, 20) * tokens.numel() == counter.get_total_flops()


@pytest.mark.parametrize(
    ("settings", "per_step"),
    [
        (Freezing(layers=1), 0),
        (Freezing(parts="head"), 0),
        (Freezing(parts="embeddings"), 0),
        (Freezing(parts="blocks"), 0),
        (Freezing(trained=(r".*\.v_proj\.weight",)), 0),
        (Freezing(trained=(r".*layers\.1\.post_attention_layernorm\.weight",)), 0),
        (Freezing(query_value_only=True), 0),
        (LoRASettings(rank=3), 0),
        (LoRASettings(rank=3, targets=("q_proj", "down_proj")), 0),
        (LoRASettings(rank=3, targets=(r"layers\.1\..*",), embedding=True), 0),
        (LoRASettings(rank=3, targets=("o_proj",), head=True), 6 * 61 * 3 * 32),  # the head's weight is made
    ],
    ids=str,
)
def test_what_is_frozen_takes_fewer_operations_as_pytorch_counts_them(settings, per_step):
    config = ModelConfig.from_hf(CONFIGS["llama"].to_dict())
    model, tokens = Transformer(config), random_tokens(3, 20)
    everything = flops_per_token(model, 20)
    if isinstance(settings, Freezing):
        freeze_(model, settings)
    else:
        add_lora_(model, settings)
    model.attention_impl = "eager"
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.unembed(model(tokens, positions_of(tokens))).sum().backward()
    assert flops_per_token(model, 20) * tokens.numel() + per_step == counter.get_total_flops()
    assert everything / 3 < flops_per_token(model, 20) < everything


def test_weights_in_fewer_bits_take_the_operations_of_frozen_ones():
    config = ModelConfig.from_hf(CONFIGS["llama"].to_dict())
    frozen, quantized = Transformer(config), Transformer(config)
    quantize_(quantized, Quantization(kind="int8"))
    for model in (frozen, quantized):
        add_lora_(model, LoRASettings(rank=3))
    assert flops_per_token(frozen, 20) == flops_per_token(quantized, 20)


def test_a_window_is_all_that_a_layer_sees():
    config = PRESETS["mistral-7b"]
    some = without_weights(replace(config, windows=(100,) * 8 + (None,) * 24))
    plain = without_weights(replace(config, windows=None))
    attention = flops_per_token(plain, 1000) - flops_per_token(plain, 0)
    assert attention == 12 * 32 * 4096 * 1000
    assert flops_per_token(some, 1000) - flops_per_token(some, 0) == attention * (8 * 0.1 + 24) / 32
    assert flops_per_token(some, 50) == flops_per_token(plain, 50)


def test_a_large_model_takes_six_operations_a_weight():
    config = PRESETS["llama3.1-8b"]
    embedding = config.vocab_size * config.dim
    assert flops_per_token(without_weights(config), 0) == pytest.approx(
        6 * (config.n_parameters - embedding), rel=1e-3
    )


def without_weights(config):
    with torch.device("meta"):
        return Transformer(config)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756.5e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("AMD Instinct MI300X", 1307.4e12),
        ("NVIDIA A10G", None),  # not an A10
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("Tesla T4", None),  # it has no bfloat16
    ],
)
def test_gpus_are_known_by_their_whole_names(name, expected):
    assert flops.data_sheet_flops(name) == expected


def test_a_cpu_is_measured_once_and_quickly():
    flops._measured.cache_clear()  # runs in this process have measured already
    device, random = torch.device("cpu"), torch.get_rng_state()
    started = time.perf_counter()
    peaks = [peak_flops(device, dtype) for dtype in (torch.float32, torch.bfloat16)]
    between = time.perf_counter()
    assert [peak_flops(device, dtype) for dtype in (torch.float32, torch.bfloat16)] == peaks
    assert time.perf_counter() - between < 0.3 < between - started < 10
    assert torch.equal(torch.get_rng_state(), random), "a run draws what it would have drawn"
    assert all(1e9 < peak < 1e15 for peak in peaks), peaks


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_no_faster_than_its_data_sheet():
    device = torch.device("cuda")
    peak, measured = peak_flops(device, torch.bfloat16), flops._measured(device, torch.bfloat16)
    assert 0.3 * peak < measured <= 1.05 * peak
