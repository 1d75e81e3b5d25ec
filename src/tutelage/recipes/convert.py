"""Write a model in another layout: any that `generate` reads, for Hugging Face's programs or for llama2.c's.

    tutelage convert MODEL --output DIR --precision bf16
    tutelage convert MODEL --output DIR --format llama2c
    tutelage convert stories15M.bin --tokenizer tokenizer.bin --output DIR

Format hf is a directory that transformers, vLLM and this program load. Format llama2c is model.bin and
tokenizer.bin for `./run DIR/model.bin -z DIR/tokenizer.bin`, always float32; its program computes Llama's
arithmetic only, and with a SentencePiece vocabulary.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tutelage.errors import UserError

if TYPE_CHECKING:
    from tutelage.model.transformer import Transformer
    from tutelage.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertConfig:
    ckpt_paths: tuple[
        str, ...
    ]  # an HF directory, a run's --output_dir, a hub id, a .gguf or llama2.c file; then adapters to merge
    force: bool = False  # merge an adapter into a model that it was not trained on
    tokenizer: str | None = None  # directory or tokenizer.bin of the tokenizer; default: the model's own
    output: Path  # directory to write
    format: Literal["hf", "llama2c"] = "hf"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # of the weights; auto: as they are stored
    overwrite: bool = False  # replace a model that is already in output

    def __post_init__(self) -> None:
        problems = []
        if not self.ckpt_paths:
            problems.append("ckpt_paths names no model")
        if self.format == "llama2c" and self.precision not in ("auto", "fp32"):
            problems.append(f"precision is {self.precision}, but files of format llama2c hold fp32")
        if problems:
            raise UserError("\n  ".join(problems))


def run(config: ConvertConfig) -> None:
    """Load, write, and say how to go on."""
    import torch

    from tutelage.checkpoint.hf import load_config, load_model, save_model
    from tutelage.checkpoint.llama2c import refuse_other_arithmetic
    from tutelage.checkpoint.tokenizer import load_tokenizer
    from tutelage.recipes.chain import chain_of

    chain = chain_of(config.ckpt_paths)
    written = config.output / ("config.json" if config.format == "hf" else "model.bin")
    if written.exists() and not config.overwrite:
        raise UserError(f"{written} exists; give --overwrite to replace it, or another --output")
    tokenizer = load_tokenizer(config.tokenizer or chain.text)
    if config.format == "llama2c":
        refuse_other_arithmetic(load_config(chain.base))
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    model = load_model(
        chain.base, dtype=dtypes.get(config.precision), adapters=chain.adapters, force=config.force
    )
    if config.format == "llama2c":
        _write_llama2c(model, tokenizer, config.output)
        return
    tokenizer.save(config.output)
    save_model(model, model.config, config.output, dtype=model.head_weight.dtype)
    print(f"{config.output}: {model.config.n_parameters:,} parameters, {model.config.dtype}", file=sys.stderr)


def _write_llama2c(model: Transformer, tokenizer: Tokenizer, directory: Path) -> None:
    from tutelage.checkpoint.llama2c import write_llama2c
    from tutelage.checkpoint.llama2c_tokenizer import write_tokenizer_bin

    directory.mkdir(parents=True, exist_ok=True)
    write_tokenizer_bin(tokenizer, directory / "tokenizer.bin", vocab_size=model.config.vocab_size)
    write_llama2c(model.state_dict(), model.config, directory / "model.bin")
    print(
        f"{directory}: go on with `./run {directory}/model.bin -z {directory}/tokenizer.bin`, "
        "llama2.c's program",
        file=sys.stderr,
    )
