"""Put adapters into the weights of their model, and prove it on the way."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tutelage.checkpoint.adapter import attach_
from tutelage.checkpoint.hf import load_model, read_adapter, save_model
from tutelage.model.config import ModelConfig
from tutelage.model.transformer import Transformer
from tutelage.recipes.chain import Chain
from tutelage.recipes.preparing import say
from tutelage.text.pieces import Encoded
from tutelage.train.export import logits_of

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
    exact = _logits(load_model(chain.base, dtype=torch.float32, adapters=chain.adapters, force=force), probes)
    beside = load_model(chain.base, dtype=torch.float32, adapters=chain.adapters[:-1], force=force)
    attach_(beside, read_adapter(chain.adapters[-1], beside.config))
    error = _worst(exact, _logits(beside, probes))
    if not error <= TOLERANCE:
        raise RuntimeError(
            f"the merged weights give other logits than the adapter does: they differ by {error:.3g}"
        )
    del beside  # the memory of a model
    model = load_model(chain.base, dtype=dtype, adapters=chain.adapters, force=force)
    save_model(model, replace(shape, tied=model.config.tied), directory, dtype=dtype)
    rounded = _logits(load_model(directory, dtype=torch.float32), probes)
    total = sum(len(probe.tokens) for probe in probes)
    flips = sum(int((a.argmax(-1) != b.argmax(-1)).sum()) for a, b in zip(exact, rounded, strict=True))
    say(
        f"{directory}: merged; in float32 logits differ from the adapter's by {error:.2g}; as {_name(dtype)} "
        f"on disk by {_worst(exact, rounded):.2g}, and {flips} of {total} likeliest tokens are others"
    )


def _logits(model: Transformer, probes: Sequence[Encoded]) -> list[Tensor]:
    model.eval()
    return [logits_of(model, probe) for probe in probes]


def _worst(one: list[Tensor], other: list[Tensor]) -> float:
    return float(torch.stack([(a - b).abs().max() for a, b in zip(one, other, strict=True)]).max())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
