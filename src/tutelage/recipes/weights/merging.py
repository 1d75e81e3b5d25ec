"""Put adapters into the weights of their model, and prove it on the way."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tutelage.checkpoint.aside import Beside
from tutelage.checkpoint.by_block import logits_by_block
from tutelage.checkpoint.hf import load_model, open_source, read_adapter, save_model
from tutelage.checkpoint.note import read_note
from tutelage.checkpoint.rounded import is_quantized
from tutelage.checkpoint.source import Source
from tutelage.model.config import ModelConfig
from tutelage.model.roles import NOTE
from tutelage.recipes.saying import say
from tutelage.recipes.stage.chain import Chain, open_chain, put_on_
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
    beside: Beside,
    force: bool = False,
) -> None:
    """Write the model with its adapters in it as an HF directory, sums in float32, rounded once to `dtype`.

    Compared on `probes`: the merged weights in float32 with the adapter beside its base, and the files with
    both. Refused if the first two differ. `shape` is what config.json shall say, `beside` what comes with
    the weights. The adapter beside its base is a whole model in float32; everything else is computed and
    written piece by piece.
    """
    rounding = read_note(chain.adapters[-1]).rounding
    config, source = open_chain(chain, force=force)
    exact = _by_block(config, source, probes)
    adapted = load_model(
        chain.base,
        dtype=lambda name: rounding.dtype if rounding and is_quantized(name) else torch.float32,
        adapters=chain.adapters[:-1],
        force=force,
        quantization=rounding and rounding.quantization,
    )
    put_on_(adapted, read_adapter(chain.adapters[-1], adapted.config))
    adapted.eval()
    error = _worst(exact, torch.cat([logits_of(adapted, probe)[0] for probe in probes]))
    given = given_by(shape)
    if not error <= TOLERANCE:
        raise RuntimeError(
            f"the merged weights give other {given} than the adapter does: they differ by {error:.3g}"
        )
    del adapted  # the memory of a model
    save_model(source, replace(shape, tied=config.tied), directory, dtype=dtype, beside=beside)
    rounded = _by_block(*open_source(directory), probes)
    if rounding:
        unquantized = _by_block(
            *open_source(chain.base, chain.adapters, force=force, as_trained=False), probes
        )
        say(
            f"the adapter was trained on {rounding.quantization.kind} weights and is merged into what they "
            f"stand for; in the weights before they were quantized it would give {given} "
            f"{_worst(exact, unquantized):.2g} away from what was trained"
        )
    if config.role_embeddings:
        say(f"note: {NOTE}")
    flips = ""
    if shape.head == "lm":
        others = int((exact.argmax(-1) != rounded.argmax(-1)).sum())
        flips = f", and {others} of {len(exact)} likeliest tokens are others"
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


def _by_block(config: ModelConfig, source: Source, probes: Sequence[Encoded]) -> Tensor:
    """(T, V) of all probes, in float32."""
    return logits_by_block(
        config, source, [probe.tokens for probe in probes], [probe.roles for probe in probes]
    )


def _worst(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
