"""Quantized linear layers beside plain ones: error, memory and time, ours and the libraries' own.

python -m benchmarks.quantized
python -m benchmarks.quantized --model MODEL --text FILE

The second form measures a whole model instead: its size, its perplexity on the text and how fast it writes.
LLM.int8 is bitsandbytes' Linear8bitLt. Needs torchao beside bitsandbytes. Times are CPU seconds of the
process, so take one thread (OMP_NUM_THREADS=1).
"""

import argparse
import logging
import math
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.allocation import keep_memory
from tutelage.checkpoint.hf import load_model
from tutelage.checkpoint.tokenizer import load_tokenizer
from tutelage.infer.engine import generate
from tutelage.infer.sampling import Sampling
from tutelage.model.quantize import Quantization, QuantizedLinear, quantizable
from tutelage.model.transformer import Transformer

SHAPES = ((576, 1536), (2048, 2048))  # of SmolLM2's down_proj, and of a model of a billion
ROWS = (1, 64, 512, 2048)
KINDS: dict[str, Quantization | None] = {
    "bf16": None,
    "nf4": Quantization(kind="nf4", double=False),
    "nf4, double": Quantization(kind="nf4"),
    "fp4, double": Quantization(kind="fp4"),
    "int8": Quantization(kind="int8"),
}
THRESHOLDS = (0.0, 6.0)  # of LLM.int8: none, and that of its paper
WINDOWS, WINDOW = 8, 512  # positions that perplexity is measured over at a time


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help="a model directory, GGUF file or hub id")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--only", nargs="+", help="of the rows of the second table; bf16 is always there")
    parser.add_argument("--rounds", type=int, default=9)
    words = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if words.model:
        measure_model(words.model, words.text.read_text(encoding="utf-8"), words.only)
    else:
        for out, into in SHAPES:
            measure_layer(out, into, rounds=words.rounds)


def measure_layer(out: int, into: int, *, rounds: int) -> None:
    """A table of every contestant: error and bits a weight, milliseconds forward, and with backward."""
    torch.manual_seed(0)
    weight = (torch.randn(out, into) * 0.02).bfloat16()
    field = contestants(weight)
    print(f"\n{out} x {into}: forward and backward, forward alone (ms)\n")
    columns = [f"{n} rows" for n in ROWS]
    print(f"| | error | bits a weight | {' | '.join(columns)} |\n|---|---|---|{'---|' * len(columns)}")
    times: dict[str, list[str]] = {name: [] for name in field}
    for n in ROWS:
        x, upstream = torch.randn(n, into).bfloat16(), torch.randn(n, out).bfloat16()
        both = {name: partial(_there_and_back, layer, x, upstream) for name, (layer, _, _) in field.items()}
        ahead = {name: partial(_ahead, layer, x) for name, (layer, _, _) in field.items()}
        seconds = zip(field, _taking_turns(both, rounds), _taking_turns(ahead, rounds), strict=True)
        for name, there_and_back, forward in seconds:
            times[name].append(f"{there_and_back * 1e3:.2f}, {forward * 1e3:.2f}")
    for name, (_, dequantized, stored) in field.items():
        error = float((dequantized.float() - weight.float()).norm() / weight.float().norm())
        bits = stored * 8 / weight.numel()
        print(f"| {name} | {error:.4f} | {bits:.2f} | {' | '.join(times[name])} |", flush=True)


def contestants(weight: Tensor) -> dict[str, tuple[Callable[[Tensor], Tensor], Tensor, int]]:
    """By name: what multiplies with the weight, the weight it multiplies with, and the bytes it stores."""
    from bitsandbytes import functional as library
    from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import linear_nf4, to_nf4

    field: dict[str, tuple[Callable[[Tensor], Tensor], Tensor, int]] = {}
    for name, quantization in KINDS.items():
        if quantization is None:
            field["plain bf16"] = (lambda x: F.linear(x, weight)), weight, weight.nbytes
        else:
            layer = QuantizedLinear(weight, None, quantization)
            stored = sum(buffer.nbytes for buffer in layer.buffers())
            field[f"ours, {name}"] = layer, layer.dequantized(), stored
    for double in (False, True):
        codes, state = library.quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
        stored = sum(tensor.nbytes for tensor in state.as_dict().values() if isinstance(tensor, Tensor))
        field[f"bitsandbytes matmul_4bit, nf4{', double' * double}"] = (
            partial(_matmul_4bit, codes, state),
            library.dequantize_4bit(codes, state),
            stored + codes.nbytes,
        )
    for threshold in THRESHOLDS:
        layer = _llm_int8(nn.Parameter(weight), None, threshold)
        layer(torch.ones(1, weight.shape[1]).bfloat16())
        codes, scales = layer.state.CB, layer.state.SCB
        made = codes.float() * scales[:, None] / 127
        field[f"LLM.int8, outliers from {threshold:g}"] = layer, made, codes.nbytes + scales.nbytes
    nf4 = to_nf4(weight)
    inner = (nf4.quantized_data, nf4.quantized_scalers, nf4.quantization_factor, nf4.scaler_mean)
    stored = sum(tensor.nbytes for tensor in inner)
    field["torchao linear_nf4, double"] = partial(linear_nf4, weight=nf4), nf4.get_original_weight(), stored
    return field


def _matmul_4bit(codes: Tensor, state: object, x: Tensor) -> Tensor:
    import bitsandbytes

    return bitsandbytes.matmul_4bit(x, codes, quant_state=state)


def _llm_int8(weight: Tensor, bias: nn.Parameter | None, threshold: float):
    """It quantizes the input too, but for columns with a value from the threshold on; 0: for none.

    Not in training on CPU, where it does as ours does; so here it believes that it is not trained.
    """
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    out, into = weight.shape
    layer = Linear8bitLt(into, out, bias is not None, has_fp16_weights=False, threshold=threshold)
    layer.weight = Int8Params(weight.detach().half(), requires_grad=False, has_fp16_weights=False)
    layer.bias = bias
    return layer.to("cpu").eval()


def _there_and_back(layer: Callable[[Tensor], Tensor], x: Tensor, upstream: Tensor) -> None:
    layer(x.detach().requires_grad_()).backward(upstream)


def _ahead(layer: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with torch.no_grad():
        layer(x)


def _taking_turns(runs: dict[str, Callable[[], None]], rounds: int) -> list[float]:
    """The median CPU seconds of each."""
    seconds: list[list[float]] = [[] for _ in runs]
    for number in range(1 + rounds):  # the first warms up
        for kept, run in zip(seconds, runs.values(), strict=True):
            started = time.process_time()
            run()
            if number:
                kept.append(time.process_time() - started)
    return [statistics.median(each) for each in seconds]


def measure_model(path: str, text: str, only: list[str] | None) -> None:
    """A table of every kind: megabytes, perplexity, how far the next token's odds move, tokens a second."""
    tokenizer = load_tokenizer(path)
    tokens = torch.tensor(tokenizer.encode(text)[: WINDOWS * WINDOW])
    prompt = tokens[:64].tolist()
    reference: Tensor | None = None
    print("| | MB | perplexity | KL from bf16 | likeliest token agrees | tokens/s, 1 row | 8 rows |")
    print("|---|---|---|---|---|---|---|")
    makers = {name: partial(_loaded, path, quantization) for name, quantization in KINDS.items()}
    for threshold in THRESHOLDS:
        makers[f"LLM.int8, outliers from {threshold:g}"] = partial(_loaded_llm_int8, path, threshold)
    for name, make in makers.items():
        if only and name not in ("bf16", *only):
            continue
        model = make()
        held = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
        logps = _logps(model, tokens)
        reference = logps if reference is None else reference
        nll = -logps[:-1].gather(1, tokens[1 : len(logps), None]).mean()
        kl = (reference.exp() * (reference - logps)).sum(-1).mean()
        agree = (reference.argmax(-1) == logps.argmax(-1)).double().mean()
        speeds = [f"{_speed(model, prompt, rows):.1f}" for rows in (1, 8)]
        words = [name, f"{held / 1e6:.0f}", f"{math.exp(nll):.2f}", f"{kl:.4f}", f"{agree:.3f}", *speeds]
        print(f"| {' | '.join(words)} |", flush=True)


def _loaded(path: str, quantization: Quantization | None) -> Transformer:
    return load_model(path, dtype=torch.bfloat16, quantization=quantization).eval()


def _loaded_llm_int8(path: str, threshold: float) -> Transformer:
    model = _loaded(path, None)
    for name in quantizable(model):
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        model.set_submodule(name, _llm_int8(linear.weight, linear.bias, threshold))
    return model


@torch.inference_mode()
def _logps(model: Transformer, tokens: Tensor) -> Tensor:
    """(windows · WINDOW, V): of the token after each position, which sees its own window only."""
    rows = tokens[: len(tokens) // WINDOW * WINDOW].view(-1, WINDOW)
    positions = torch.arange(WINDOW)[None]
    return torch.cat([model.unembed(model(row[None], positions))[0].log_softmax(-1) for row in rows])


def _speed(model: Transformer, prompt: list[int], rows: int) -> float:
    seconds = []
    for _ in range(3):
        started = time.process_time()
        generate(model, [prompt] * rows, Sampling(temperature=0), max_new_tokens=24, stop=set())
        seconds.append(time.process_time() - started)
    return rows * 24 / statistics.median(seconds)


if __name__ == "__main__":
    keep_memory()
    main()
