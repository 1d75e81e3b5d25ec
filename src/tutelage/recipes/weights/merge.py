"""Put adapters into the weights of their model: a Hugging Face directory that needs no adapter any more.

    tutelage merge MODEL ADAPTER --output DIR --precision bf16
    tutelage merge OUT --output DIR

Any number of adapters may follow the model, in the order in which they were trained; a run's --output_dir, or
an adapter alone, brings the model that it was trained on. Sums are formed in float32 and rounded once. The
result is compared with the adapter beside its model, and the rounding is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tutelage.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeConfig:
    ckpt_paths: tuple[str, ...]  # a model, then adapters: PEFT directories, runs, or torchllms' .pth
    output: Path  # directory to write
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # of the weights; auto: as the model's are
    force: bool = False  # merge an adapter into a model that it was not trained on
    overwrite: bool = False  # replace a model that is already in output

    def __post_init__(self) -> None:
        if not self.ckpt_paths:
            raise UserError("ckpt_paths names no model")


def run(config: MergeConfig) -> None:
    """Check, merge, prove, and say how to go on."""
    import torch

    from tutelage.checkpoint.hf import stored_dtype
    from tutelage.checkpoint.tokenizer import beside_model, load_tokenizer
    from tutelage.data.encode import Encoder
    from tutelage.recipes.stage.chain import chain_of, shape_of
    from tutelage.recipes.weights.merging import QUESTIONS, merge, padded_as_trained

    chain = chain_of(config.ckpt_paths, adapters_first=True)
    if not chain.adapters:
        raise UserError(
            f"{config.ckpt_paths[0]} is a model without an adapter, so there is nothing to merge; give the "
            "adapter after it. `tutelage convert` writes a model as it is"
        )
    written = config.output / "config.json"
    if written.exists() and not config.overwrite:
        raise UserError(f"{written} exists; give --overwrite to replace it, or another --output")
    tokenizer, shape = padded_as_trained(load_tokenizer(chain.text), shape_of(chain))
    encoder = Encoder(None, tokenizer)
    probes = [encoder.prompt(question) for question in QUESTIONS]
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    merge(
        chain,
        config.output,
        shape,
        probes,
        dtype=dtypes.get(config.precision) or stored_dtype(chain.base),
        beside=beside_model(tokenizer, config.output, read_from=chain.text),
        force=config.force,
    )
