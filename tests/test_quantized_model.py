"""Models with quantized layers: moved, copied, compiled, planned without memory, loaded piece by piece."""

import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from tiny_models import oracle, positions_of, random_tokens
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from tutelage.checkpoint.hf import load_model, save_model
from tutelage.checkpoint.source import parameter_shapes
from tutelage.model.config import ModelConfig
from tutelage.model.quantize import Quantization, QuantizedLinear, quantize_
from tutelage.model.transformer import Transformer, initialise_
from tutelage.train import precision
from tutelage.train.ema import EMA
from tutelage.train.surgery import compile_blocks, recompute

KINDS = [
    Quantization(kind="int8"),
    Quantization(kind="nf4"),
    Quantization(kind="fp4", double=False),
]
each_kind = pytest.mark.parametrize("quantization", KINDS, ids=lambda q: q.kind)
CONFIG = ModelConfig(
    vocab_size=61,
    dim=64,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    ffn_dim=160,
    qkv_bias=True,
    tied=True,
)


def quantized(quantization: Quantization, config: ModelConfig = CONFIG) -> Transformer:
    model = Transformer(config)
    initialise_(model, seed=0)
    quantize_(model, quantization)
    return model


def layers(model: Transformer) -> dict[str, QuantizedLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}


def same_layers(model: Transformer, other: Transformer) -> bool:
    """Whether all that is stored of all quantized layers is the same, bit for bit."""
    stored = [dict(layer.named_buffers()) for each in (model, other) for layer in layers(each).values()]
    half = len(stored) // 2
    pairs = zip(stored[:half], stored[half:], strict=True)
    return half > 0 and all(
        a.keys() == b.keys()
        and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)
        for a, b in pairs
    )


def loss(model: Transformer, rows: int = 2) -> Tensor:
    tokens = random_tokens(rows, 24)
    return model.unembed(model(tokens, positions_of(tokens))).square().mean()


@each_kind
def test_every_linear_layer_of_the_blocks_is_quantized_and_nothing_else(quantization):
    model = quantized(quantization)
    assert len(layers(model)) == 7 * CONFIG.n_layers
    assert not any(isinstance(module, nn.Linear) for module in model.model.layers.modules())
    names = set(parameter_shapes(CONFIG))
    left = {name for name in names if not name.endswith("proj.weight")}
    assert dict(model.named_parameters()).keys() == left == model.state_dict().keys()
    assert all(parameter.is_floating_point() for parameter in model.parameters())


@each_kind
def test_no_dtype_that_a_model_is_given_changes_a_quantized_weight(quantization):
    model = quantized(quantization)
    before = deepcopy(model)
    for change in (nn.Module.bfloat16, nn.Module.half, nn.Module.double, nn.Module.float):
        change(model)
        assert same_layers(model, before)
    for name in ("fp32", "bf16", "bf16_pure", "fp16"):
        masters = precision.masters(model, name)
        assert same_layers(model, before), name
        assert masters.keys() == dict(model.named_parameters()).keys()
        expected = precision.compute_dtype(name)
        assert {parameter.dtype for parameter in model.parameters()} == {expected}


@each_kind
def test_a_copy_is_equal_and_a_move_takes_everything_along(quantization):
    model = quantized(quantization)
    expected = loss(model)
    assert torch.equal(loss(deepcopy(model)), expected)
    moved = deepcopy(model).to("meta")
    tensors = [*moved.parameters(), *moved.buffers()]
    assert len(tensors) > 21 and all(tensor.is_meta for tensor in tensors)
    assert torch.equal(loss(model.to("cpu")), expected)


@each_kind
@pytest.mark.parametrize("change", [compile_blocks, lambda model: recompute(model, 1.0)])
def test_compiled_or_recomputed_it_gives_what_it_gave(quantization, change: Callable[[Transformer], object]):
    torch.compiler.reset()
    model = quantized(quantization)
    plain = deepcopy(model)
    change(model)
    for each in (model, plain):
        loss(each).backward()
    assert torch.allclose(loss(model), loss(plain), rtol=1e-5)
    for ours, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours.grad, expected.grad, rtol=1e-4, atol=1e-6)


def saved_for_backward(model: Transformer) -> int:
    """Bytes that a forward pass keeps, without those that the model itself holds."""
    held = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = loss(model, rows=1)
    assert total.requires_grad
    return sum(kept.values())


@each_kind
@pytest.mark.parametrize("compiled", [False, True])
def test_no_dequantized_weight_waits_for_the_backward_pass(quantization, compiled):
    """Rows are few and weights large: a single dequantized weight would be seen."""
    torch.compiler.reset()
    config = ModelConfig(
        vocab_size=61, dim=512, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=128, ffn_dim=1024, tied=True
    )
    model = quantized(quantization, config)
    plain = Transformer(config)
    if compiled:
        compile_blocks(model)
        compile_blocks(plain)
    weight = 4 * config.dim**2
    assert saved_for_backward(model) < saved_for_backward(plain) + weight / 2


@each_kind
def test_it_runs_without_memory_under_fake_tensors(quantization):
    """As a plan of memory does, which quantizes too."""
    with FakeTensorMode():
        model = quantized(quantization)
        model.attention_impl = "eager"  # the others look at the positions
        total = loss(model)
        total.backward()
        assert total.shape == ()
        assert model.model.embed_tokens.weight.grad.shape == (61, 64)
    assert sum(tensor.numel() for tensor in model.buffers()) > 0
    assert loss(quantized(quantization)).isfinite()  # nothing fake was left in a table


@each_kind
def test_on_a_gpu_shapes_and_operations_are_the_same(quantization):
    """By fake tensors: there one kernel may make the weight and multiply."""
    with FakeTensorMode(), FlopCounterMode(display=False) as counter, torch.no_grad():
        layer = QuantizedLinear(torch.empty(96, 64, device="cuda"), None, quantization)
        out = layer(torch.empty(2, 5, 64, device="cuda"))
        weight = layer.dequantized()
    assert out.is_cuda and out.shape == (2, 5, 96)
    assert weight.is_cuda and weight.shape == (96, 64)
    assert counter.get_total_flops() == 2 * 10 * 64 * 96


@each_kind
def test_an_average_of_the_weights_passes_over_quantized_ones(quantization):
    model = quantized(quantization)
    average = EMA(precision.masters(model, "fp32"), decay=0.9)
    average.update()
    average.copy_into(model)
    assert average.weights().keys() == dict(model.named_parameters()).keys()


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_loading_quantized_is_loading_then_quantizing(quantization, name, dtype, tmp_path):
    oracle(name).save_pretrained(tmp_path)
    loaded = load_model(tmp_path, dtype=dtype, quantization=quantization)
    expected = load_model(tmp_path, dtype=dtype)
    quantize_(expected, quantization)
    assert same_layers(loaded, expected)
    assert loaded.config == expected.config
    assert loaded.state_dict().keys() == expected.state_dict().keys()
    for key, tensor in expected.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[key])
    assert torch.equal(loss(loaded), loss(expected))


MEASURE = """
import sys, torch
from tutelage.checkpoint.hf import load_model
from tutelage.model.quantize import Quantization

def memory(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

quantization = Quantization(kind=sys.argv[3])
load_model(sys.argv[2], quantization=quantization)  # a tiny one, so that imports and tables are not counted
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # forget the peak so far
before = memory("VmRSS:")
model = load_model(sys.argv[1], dtype=torch.bfloat16, quantization=quantization)
held = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
largest = max(layer.in_features * layer.out_features for layer in model.model.layers[0].mlp.children()) * 2
print(memory("VmHWM:") - before, held, largest)
"""


def measured(command: list[str]) -> tuple[int, ...]:
    return tuple(map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory by Linux's /proc")
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_loading_holds_one_matrix_in_full(kind, tmp_path):
    """The peak of resident memory: the quantized model, one matrix, and what quantizing takes."""
    config = ModelConfig(
        vocab_size=1000,
        dim=1024,
        n_layers=12,
        n_heads=8,
        n_kv_heads=8,
        head_dim=128,
        ffn_dim=4096,
        tied=True,
    )
    state = {
        name: torch.ones(shape, dtype=torch.bfloat16) for name, shape in parameter_shapes(config).items()
    }
    full = sum(tensor.nbytes for tensor in state.values())
    save_model(state, config, tmp_path / "large", dtype=torch.bfloat16)
    del state
    oracle("llama").save_pretrained(tmp_path / "tiny")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "large"), str(tmp_path / "tiny"), kind]
    peak, held, largest = min(measured(command) for _ in range(2))  # pages of libraries may come back in one
    sizes = {"peak": peak, "held": held, "one matrix": largest, "in full": full}
    print(kind, {name: f"{size / 1e6:.0f} MB" for name, size in sizes.items()})
    assert full > 400e6
    assert held < (0.27 if kind == "nf4" else 0.51) * full + 5e6
    assert 0.9 * held < peak < held + largest + 40e6


class Adapted(QuantizedLinear):
    """A layer with a low-rank path beside it, put into an existing one by changing its class."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.down.T @ self.up.T


@each_kind
def test_adapters_learn_on_a_quantized_base(quantization):
    """As in QLoRA: all else is frozen, and the base is bit for bit what it was."""
    model = quantized(quantization).requires_grad_(False)
    for layer in layers(model).values():
        layer.__class__ = Adapted
        layer.down = nn.Parameter(torch.randn(4, layer.in_features) * 0.1)
        layer.up = nn.Parameter(torch.zeros(layer.out_features, 4))
    before = deepcopy(model)
    masters = precision.masters(model, "bf16")
    trained = [parameter for parameter in masters.values() if parameter.requires_grad]
    assert len(trained) == 2 * len(layers(model))
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    precision.follow(model, masters, optimizer)
    losses = []
    for _ in range(20):
        losses.append(loss(model))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]
    assert same_layers(model, before)
