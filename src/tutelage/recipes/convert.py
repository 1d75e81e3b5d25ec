"""Write a model in another layout, any that `generate` reads, or the adapter that comes last.

    tutelage convert MODEL --output DIR --precision bf16
    tutelage convert MODEL --output FILE.gguf --format gguf --precision q8_0
    tutelage convert MODEL --output DIR --format llama2c
    tutelage convert stories15M.bin --tokenizer tokenizer.bin --output DIR
    tutelage convert MODEL --output DIR --format instructllama
    tutelage convert MODEL model_final.pth --output DIR --format peft

Format hf is a directory that transformers, vLLM and this program load. Format gguf is one file, or
DIR/model.gguf, for llama.cpp and what is built on it, in bounded memory. Format llama2c is model.bin and
tokenizer.bin for `./run DIR/model.bin -z DIR/tokenizer.bin`, always float32; its program computes Llama's
arithmetic only, and with a SentencePiece vocabulary. Format instructllama is model.pth and params.json, for
that program, which knows Llama 2 without grouped queries. Formats peft and torchllms write the adapter
alone, as adapter_model.safetensors and adapter_config.json, or as model_final.pth and lora_args.json.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tutelage.errors import UserError

if TYPE_CHECKING:
    from tutelage.model.transformer import Transformer
    from tutelage.recipes.chain import Chain
    from tutelage.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertConfig:
    ckpt_paths: tuple[
        str, ...
    ]  # an HF directory, a run's --output_dir, a hub id, a .gguf, llama2.c or .pth file; then adapters
    force: bool = False  # merge an adapter into a model that it was not trained on
    tokenizer: str | None = None  # directory or tokenizer.bin of the tokenizer; default: the model's own
    output: Path  # directory to write, or a file that ends in .gguf
    format: Literal["hf", "gguf", "llama2c", "instructllama", "peft", "torchllms"] = "hf"
    precision: Literal["auto", "fp32", "bf16", "fp16", "q8_0"] = "auto"  # of weights; auto: as stored
    fold: bool = False  # put role embeddings into the other weights: cannot be done, and says why
    overwrite: bool = False  # replace a model that is already in output

    def __post_init__(self) -> None:
        problems = []
        if not self.ckpt_paths:
            problems.append("ckpt_paths names no model")
        if self.format not in ("hf", "gguf", "instructllama") and self.precision not in ("auto", "fp32"):
            problems.append(f"precision is {self.precision}, but files of format {self.format} hold fp32")
        elif self.format != "gguf" and self.precision == "q8_0":
            problems.append("precision q8_0 is GGUF's; give --format gguf with it")
        if self.format != "gguf" and self.output.suffix == ".gguf":
            problems.append(f"output {self.output} is a .gguf file; give --format gguf with it")
        if self.fold:
            problems.append(
                "fold: role embeddings cannot go into other weights: what they add depends on whose the "
                "token is, the same token can be anybody's, and no weight of other programs knows whose it is"
            )
        if problems:
            raise UserError("\n  ".join(problems))


def run(config: ConvertConfig) -> None:
    """Load, write, and say how to go on."""
    import torch

    from tutelage.checkpoint.hf import save_model
    from tutelage.checkpoint.instructllama import refuse_what_it_cannot
    from tutelage.checkpoint.llama2c import refuse_other_arithmetic
    from tutelage.checkpoint.tokenizer import load_tokenizer
    from tutelage.model.roles import NOTE
    from tutelage.recipes.chain import chain_of, load_chain, shape_of
    from tutelage.recipes.merging import padded_as_trained

    chain = chain_of(config.ckpt_paths)
    written = config.output / _LAST_WRITTEN[config.format]
    if config.format == "gguf" and config.output.suffix == ".gguf":
        written = config.output
    if written.exists() and not config.overwrite:
        raise UserError(f"{written} exists; give --overwrite to replace it, or another --output")
    if config.format in ("peft", "torchllms"):
        _write_adapter(chain, config)
        return
    tokenizer = load_tokenizer(config.tokenizer or chain.text)
    if config.format == "gguf":
        _write_gguf(chain, tokenizer, config, written)
        return
    if config.format == "llama2c":
        refuse_other_arithmetic(shape_of(chain))
    if config.format == "instructllama":
        refuse_what_it_cannot(shape_of(chain))
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    model = load_chain(chain, dtype=dtypes.get(config.precision), force=config.force)
    if config.format == "llama2c":
        _write_llama2c(model, tokenizer, config.output)
        return
    if config.format == "instructllama":
        _write_instructllama(model, tokenizer, config.output)
        return
    tokenizer, shape = padded_as_trained(tokenizer, model.config)
    tokenizer.save(config.output)
    save_model(model, shape, config.output, dtype=model.head_weight.dtype)
    if model.config.role_embeddings:
        print(f"note: {NOTE}", file=sys.stderr)
    print(f"{config.output}: {model.config.n_parameters:,} parameters, {model.config.dtype}", file=sys.stderr)


_LAST_WRITTEN = {
    "hf": "config.json",
    "gguf": "model.gguf",
    "llama2c": "model.bin",
    "instructllama": "params.json",
    "peft": "adapter_config.json",
    "torchllms": "model_final.pth",
}


def _write_adapter(chain: Chain, config: ConvertConfig) -> None:
    import torch

    from tutelage.checkpoint.adapter import check_fits, check_trained_on, for_tied, shape_with
    from tutelage.checkpoint.hf import config_of, fingerprint_of, read_adapter
    from tutelage.checkpoint.note import note_of, read_note
    from tutelage.checkpoint.peft import write_peft
    from tutelage.checkpoint.torchllms_lora import write_torchllms
    from tutelage.recipes.chain import shape_of

    if not chain.adapters:
        raise UserError(f"format {config.format} writes an adapter; give one after the model")
    shape = config_of(chain.base, chain.adapters[:-1])
    stored, stamp = read_adapter(chain.adapters[-1], shape), fingerprint_of(chain.base, chain.adapters[:-1])
    shape = shape_with(shape, stored)
    check_fits(shape, stored)
    check_trained_on(stored, stamp, str(chain.base), force=config.force)
    if shape.tied:
        together = for_tied(stored)  # None: the adapter changes embedding and head apart
        shape, stored = (replace(shape, tied=False), stored) if together is None else (shape, together)
    if config.format == "torchllms":
        write_torchllms(stored, config.output / "model_final.pth", shape)
    else:
        write_peft(
            stored, config.output, config=shape, base=chain.name, fingerprint=stamp, dtype=torch.float32
        )
        note = read_note(chain.adapters[-1])
        note_of(shape_of(chain), chain.adapters[:-1], note.rounding).write(config.output)
    print(f"{config.output}: {len(stored.layers)} layers' adapters", file=sys.stderr)


def _write_gguf(chain: Chain, tokenizer: Tokenizer, config: ConvertConfig, path: Path) -> None:
    from tutelage.checkpoint.gguf_write import KINDS, write_gguf
    from tutelage.checkpoint.hf import open_source
    from tutelage.recipes.chain import shape_of

    shape, source = open_source(chain.base, chain.adapters, force=config.force)
    noted = shape_of(chain)
    shape = replace(shape, eos=noted.eos, pad=noted.pad, max_positions=noted.max_positions)
    stored = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    precision = config.precision
    if precision == "auto":
        precision = stored.get(str(source.dtype).removeprefix("torch."), "fp32")
    remarks = write_gguf(shape, source, tokenizer, path, KINDS[precision], name=Path(chain.name).name)
    for remark in remarks:
        print(f"note: {remark}", file=sys.stderr)
    print(f"{path}: {shape.n_parameters:,} parameters, {precision}", file=sys.stderr)


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


def _write_instructllama(model: Transformer, tokenizer: Tokenizer, directory: Path) -> None:
    from tutelage.checkpoint.instructllama import write_instructllama

    write_instructllama(model.state_dict(), model.config, directory / "model.pth")
    if tokenizer.sentencepiece is not None:
        (directory / "tokenizer.model").write_bytes(tokenizer.sentencepiece)
    else:
        print(
            "note: InstructLLaMA reads SentencePiece's tokenizer.model, and this model has none; the tokens "
            "it is to be given are those of the model's own tokenizer",
            file=sys.stderr,
        )
    print(f"{directory}/model.pth: {model.config.n_parameters:,} parameters", file=sys.stderr)
