"""Put adapters into the weights of their model, and prove it on the way."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tutelage.checkpoint.hf import load_model, read_adapter, save_model
from tutelage.checkpoint.note import read_note
from tutelage.checkpoint.rounded import is_quantized
from tutelage.model.config import ModelConfig
from tutelage.model.roles import NOTE
from tutelage.model.transformer import Transformer
from tutelage.recipes.chain import Chain, load_chain, put_on_
from tutelage.recipes.preparing import say
from tutelage.text.padding import NOTE as NO_PAD
from tutelage.text.padding import padded_with, scoring_pad
from tutelage.text.pieces import Encoded
from tutelage.text.template import Template
from tutelage.text.tokenizer import Tokenizer
from tutelage.train.export import given_by, logits_of

QUESTIONS = ("What is the capital of France?", "Write a short story about a rabbit.", "Grüße! 你好 👋")
TOLERANCE = 1e-3  # of logits in float32, whose sums the merge takes in another order


def merge(
    chain: Chain,
    directory: Path,
    shape: ModelConfig,
    probes: Sequence[Encoded],
    *,
    dtype: torch.dtype,
    force: bool = False,
) -> None:
    """Write the model with its adapters in it as an HF directory, sums in float32, rounded once to `dtype`.

    Compared on `probes`: the merged weights in float32 with the adapter beside its base, and the files with
    both. Refused if the first two differ. `shape` is what config.json shall say.
    """
    rounding = read_note(chain.adapters[-1]).rounding
    exact = _logits(load_chain(chain, dtype=torch.float32, force=force), probes)
    beside = load_model(
        chain.base,
        dtype=lambda name: rounding.dtype if rounding and is_quantized(name) else torch.float32,
        adapters=chain.adapters[:-1],
        force=force,
        quantization=rounding and rounding.quantization,
    )
    put_on_(beside, read_adapter(chain.adapters[-1], beside.config))
    error, given = _worst(exact, _logits(beside, probes)), given_by(shape)
    if not error <= TOLERANCE:
        raise RuntimeError(
            f"the merged weights give other {given} than the adapter does: they differ by {error:.3g}"
        )
    del beside  # the memory of a model
    model = load_chain(chain, dtype=dtype, force=force)
    save_model(model, replace(shape, tied=model.config.tied), directory, dtype=dtype)
    rounded = _logits(load_model(directory, dtype=torch.float32), probes)
    if rounding:
        unquantized = load_model(
            chain.base, dtype=torch.float32, adapters=chain.adapters, force=force, as_trained=False
        )
        say(
            f"the adapter was trained on {rounding.quantization.kind} weights and is merged into what they "
            f"stand for; in the weights before they were quantized it would give {given} "
            f"{_worst(exact, _logits(unquantized, probes)):.2g} away from what was trained"
        )
    if model.config.role_embeddings:
        say(f"note: {NOTE}")
    flips = ""
    if shape.head == "lm":
        total = sum(len(probe.tokens) for probe in probes)
        others = sum(int((a.argmax(-1) != b.argmax(-1)).sum()) for a, b in zip(exact, rounded, strict=True))
        flips = f", and {others} of {total} likeliest tokens are others"
    say(
        f"{directory}: merged; in float32 {given} differ from the adapter's by {error:.2g}; "
        f"as {_name(dtype)} on disk by {_worst(exact, rounded):.2g}{flips}"
    )


def ready_to_score(
    tokenizer: Tokenizer, template: Template | None, shape: ModelConfig
) -> tuple[Tokenizer, ModelConfig]:
    """Both with a pad token under which transformers finds where conversations end; says if there is none."""
    pad = scoring_pad(tokenizer, template)
    if pad is None:
        say(f"note: {NO_PAD}")
        return tokenizer, replace(shape, pad=None)
    return padded_with(tokenizer, pad), replace(shape, pad=pad)


def padded_as_trained(tokenizer: Tokenizer, shape: ModelConfig) -> tuple[Tokenizer, ModelConfig]:
    """Both with the pad token that a finished judge has: under another, ends would be found elsewhere."""
    if shape.head == "lm":
        return tokenizer, shape
    pad = tokenizer.pad if shape.pad is None else shape.pad
    if pad is None or pad not in tokenizer.control.values():
        return ready_to_score(tokenizer, None, shape)
    return padded_with(tokenizer, pad), replace(shape, pad=pad)


def _logits(model: Transformer, probes: Sequence[Encoded]) -> list[Tensor]:
    model.eval()
    return [logits_of(model, probe) for probe in probes]


def _worst(one: list[Tensor], other: list[Tensor]) -> float:
    return float(torch.stack([(a - b).abs().max() for a, b in zip(one, other, strict=True)]).max())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
