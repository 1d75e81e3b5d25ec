"""Quantized linear layers: their weights against plain PyTorch, bitsandbytes and torchao."""

import logging
import subprocess
import sys
import warnings
from itertools import product

import four_bits
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tutelage.errors import UserError
from tutelage.model import quantize
from tutelage.model.quantize import Quantization, QuantizedLinear, load_library

load_library()
logging.disable(logging.WARNING)
warnings.filterwarnings("ignore")
from bitsandbytes import functional as bnb  # noqa: E402
from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import to_nf4  # noqa: E402

logging.disable(logging.NOTSET)
ALL = [Quantization(kind="int8")]
ALL += [Quantization(kind=kind, double=double) for kind, double in product(("nf4", "fp4"), (False, True))]
each_kind = pytest.mark.parametrize("quantization", ALL, ids=lambda q: f"{q.kind}{' double' * q.double}")


def normal(*shape: int, std: float = 0.02, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Weights as models have them."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * std).to(dtype)


def with_outlier() -> torch.Tensor:
    weight = normal(64, 64)
    weight[3, 5] = 1e4
    return weight


def half_zero() -> torch.Tensor:
    weight = normal(300, 64)
    weight[::2] = 0
    return weight


WEIGHTS = {
    "normal": normal(576, 192),
    "bfloat16": normal(576, 192, dtype=torch.bfloat16),
    "float16": normal(64, 192, dtype=torch.float16),
    "several pieces": normal(1200, 1024),
    "all zero": torch.zeros(4, 64),
    "half zero": half_zero(),
    "an outlier": with_outlier(),
    "no multiple of a block": normal(7, 66),
    "an odd number": normal(5, 33),
    "one row": normal(1, 192),
    "less than a block": normal(1, 7),
}
each_weight = pytest.mark.parametrize("name", WEIGHTS)


@each_weight
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_codes_are_those_of_the_paper_and_of_bitsandbytes(kind, name):
    weight = WEIGHTS[name]
    ours = QuantizedLinear(weight, None, Quantization(kind=kind, double=False))
    codes = four_bits.unpacked(ours.codes, weight.numel())
    theirs, state = bnb.quantize_4bit(weight, quant_type=kind)
    assert torch.equal(codes, four_bits.unpacked(theirs, weight.numel()))
    assert torch.equal(ours.scales.view(torch.float32), state.absmax)
    expected, scales = four_bits.quantize(weight, kind)
    assert torch.equal(state.absmax.double(), scales)
    if kind == "nf4":
        assert torch.equal(codes, expected)
    else:  # it has two zeros, and bfloat16 weights may lie in the middle of two levels
        off = [
            (weight.flatten() - four_bits.dequantize(each, scales, kind)).abs() for each in (codes, expected)
        ]
        assert torch.allclose(*off, rtol=0, atol=1e-7 * float(scales.max()))


@pytest.mark.parametrize(("dtype", "agreement"), [(torch.float32, 0.999), (torch.bfloat16, 0.99)])
def test_nf4_codes_are_torchaos_too(dtype, agreement):
    """Where it differs from bitsandbytes: it divides and compares in the weight's own dtype."""
    weight = normal(512, 512, dtype=dtype)
    ours = QuantizedLinear(weight, None, Quantization(double=False))
    codes, expected = (four_bits.unpacked(each, weight.numel()) for each in (ours.codes, _torchao(weight)))
    assert agreement < (codes == expected).double().mean() <= 1


def _torchao(weight: torch.Tensor) -> torch.Tensor:
    return to_nf4(weight).quantized_data


@each_weight
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_dequantized_weights_are_those_of_the_paper(kind, double, name):
    weight = WEIGHTS[name]
    ours = QuantizedLinear(weight, None, Quantization(kind=kind, double=double))
    dequantized, codes = ours.dequantized(), four_bits.unpacked(ours.codes, weight.numel())
    _, scales = four_bits.quantize(weight, kind)
    if double:
        chosen = four_bits.double_quantized(scales, ours.scale_codes.long())
        off = [(scales - each).abs() for each in (chosen, four_bits.double_quantized(scales))]
        # bitsandbytes chooses among 256 levels by a ratio that is off by up to 3e-5.
        assert torch.allclose(*off, rtol=0, atol=3e-5 * float(scales.max()))
        scales = chosen
    expected = four_bits.dequantize(codes, scales, kind)
    largest = float(weight.abs().max())
    assert dequantized.shape == weight.shape
    assert torch.allclose(dequantized.double().flatten(), expected, rtol=1e-6, atol=1e-6 * largest)


@each_weight
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_double_quantization_is_that_of_bitsandbytes(kind, name):
    weight = WEIGHTS[name].float()
    expected = bnb.dequantize_4bit(*bnb.quantize_4bit(weight, quant_type=kind, compress_statistics=True))
    ours = QuantizedLinear(weight, None, Quantization(kind=kind)).dequantized()
    assert torch.allclose(ours, expected, rtol=1e-6, atol=1e-6 * float(weight.abs().max()))


@each_weight
def test_int8_is_within_half_a_step_of_every_weight(name):
    weight = WEIGHTS[name].float()
    layer = QuantizedLinear(weight, None, Quantization(kind="int8"))
    steps = layer.scales.view(torch.bfloat16).float()[:, None]
    assert torch.equal(layer.dequantized(), layer.codes * steps)
    # The largest of a row may be above 127 steps, since the step is a bfloat16 number: by 2^-9.
    assert ((layer.dequantized() - weight).abs() <= 0.501 * steps).all()


def test_int8_codes_are_bitsandbytes_where_its_scales_are_bfloat16_numbers():
    weight = normal(64, 200)
    weight[:, 0] = 127 * 2.0**-10
    codes, largest, _ = bnb.int8_vectorwise_quant(weight.clone())
    ours = QuantizedLinear(weight, None, Quantization(kind="int8"))
    assert torch.equal(ours.codes, codes)
    assert torch.allclose(ours.dequantized(), bnb.int8_vectorwise_dequant(codes, largest), rtol=1e-6)


@pytest.mark.parametrize(
    ("quantization", "error"),
    [
        (Quantization(kind="nf4", double=False), 0.0920),
        (Quantization(kind="nf4", double=True), 0.0920),
        (Quantization(kind="fp4", double=True), 0.1220),
        (Quantization(kind="int8"), 0.0083),
    ],
    ids=str,
)
def test_the_error_is_as_published(quantization, error):
    """Relative, of normal weights. NF4 at blocks of 64: 0.0920."""
    weight = normal(2048, 2048)
    dequantized = QuantizedLinear(weight, None, quantization).dequantized()
    assert float((dequantized - weight).norm() / weight.norm()) == pytest.approx(error, rel=0.005)


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
def test_forward_and_gradients_are_those_of_a_linear_layer_of_the_dequantized_weight(
    quantization, dtype, biased
):
    bias = nn.Parameter(normal(48, std=1, dtype=dtype)) if biased else None
    layer = QuantizedLinear(normal(48, 96, dtype=dtype), bias, quantization)
    x = normal(2, 5, 96, std=1, dtype=dtype)
    upstream = normal(2, 5, 48, std=1, dtype=dtype)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    out = layer(inputs[0])
    copied = None if bias is None else bias.detach().clone().requires_grad_()
    expected = F.linear(inputs[1], layer.dequantized(dtype), copied)
    out.backward(upstream)
    expected.backward(upstream)
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 1e-2}
    assert out.dtype == dtype
    assert torch.allclose(out, expected, **close)
    assert torch.allclose(inputs[0].grad, inputs[1].grad, **close)
    if bias is not None and copied is not None:
        assert torch.allclose(bias.grad, copied.grad, **close)


@each_kind
@pytest.mark.parametrize("shape", [(1, 1, 96), (16, 1, 96), (17, 96), (96,), (0, 96)])
def test_without_gradients_few_rows_are_multiplied_as_many_are(quantization, shape):
    """In bfloat16 on CPU int8 has a kernel for them."""
    layer = QuantizedLinear(
        normal(48, 96), nn.Parameter(normal(48, std=1, dtype=torch.bfloat16)), quantization
    )
    x = normal(*shape, std=1, dtype=torch.bfloat16)
    expected = F.linear(x.float(), layer.dequantized(), layer.bias.float())
    with torch.no_grad():
        out = layer(x)
        made = F.linear(x, layer.dequantized(torch.bfloat16), layer.bias)
    by_the_kernel = quantization.kind == "int8" and 0 < out.numel() <= 16 * 48
    assert torch.equal(out, made) == (not by_the_kernel)
    assert out.dtype == torch.bfloat16
    assert torch.allclose(out.float(), expected, rtol=1e-2, atol=5e-3)


def test_a_missing_library_is_named_with_what_to_do(monkeypatch):
    load_library.cache_clear()
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError) as caught:
        Quantization(kind="nf4")
    load_library.cache_clear()
    assert str(caught.value) == (
        "4-bit weights need bitsandbytes: pip install 'tutelage[quant]', or take int8"
    )
    assert Quantization(kind="int8").kind == "int8"


def test_the_library_is_loaded_quietly_and_fetches_no_code():
    """With AVX512-BF16 it imports `kernels`, to download a compiled one, or warns that this is missing."""
    program = (
        "import sys, types\n"
        "sys.modules['kernels'] = kept = types.ModuleType('kernels')\n"
        "def get_kernel(*args, **options): print('fetched', *args)\n"
        "kept.get_kernel = get_kernel\n"
        "from tutelage.model.quantize import Quantization\n"
        "Quantization()\n"
        "print(sys.modules['kernels'] is kept, 'bitsandbytes' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("True True\n", "")


def test_levels_are_those_of_bitsandbytes():
    theirs = bnb.create_dynamic_map()
    assert torch.allclose(torch.tensor(quantize._dynamic_levels()), theirs, rtol=2e-7, atol=0)
