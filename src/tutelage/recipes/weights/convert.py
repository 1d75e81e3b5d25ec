"""Write a model in another layout, any that `generate` reads, or the adapter that comes last.

    tutelage convert MODEL --output DIR --precision bf16
    tutelage convert MODEL --output FILE.gguf --format gguf --precision q8_0
    tutelage convert MODEL --output DIR --format meta --model_parallel 8 --verify
    tutelage convert MODEL --output DIR --format llama2c
    tutelage convert stories15M.bin --tokenizer tokenizer.bin --output DIR
    tutelage convert MODEL --output DIR --format instructllama
    tutelage convert MODEL model_final.pth --output DIR --format peft

Format hf is a directory that transformers, vLLM and this program load. Format gguf is one file, or
DIR/model.gguf, for llama.cpp and what is built on it. Format meta is consolidated.NN.pth and
params.json for Meta's program; torchllms has the same names, litgpt lit_model.pth and model_config.yaml.
Format llama2c is model.bin and tokenizer.bin for `./run DIR/model.bin -z DIR/tokenizer.bin`, llama2c_v2 in
int8 for `./runq`, llama2c_pt a ckpt.pt: Llama's arithmetic only, and a SentencePiece vocabulary. Format
instructllama is model.pth and params.json, for that program, which knows Llama 2 without grouped queries.
Formats peft and torchllms after an adapter write the adapter alone. Tensors are read and written a few
megabytes at a time, so a model of any size is converted in little memory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tutelage.errors import UserError
from tutelage.recipes.saying import say

if TYPE_CHECKING:
    from tutelage.recipes.stage.chain import Chain


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertConfig:
    ckpt_paths: tuple[
        str, ...
    ]  # an HF directory, a run's --output_dir, a hub id, a .gguf, .bin, .pt or .pth file; then adapters
    force: bool = False  # merge an adapter into a model that it was not trained on
    tokenizer: str | None = None  # directory or tokenizer.bin of the tokenizer; default: the model's own
    output: Path  # directory to write, or a file that ends in .gguf
    format: Literal[
        "hf",
        "gguf",
        "meta",
        "torchllms",
        "litgpt",
        "llama2c",
        "llama2c_v1",
        "llama2c_v2",
        "llama2c_pt",
        "instructllama",
        "peft",
    ] = "hf"
    precision: Literal["auto", "fp32", "bf16", "fp16", "q8_0"] = "auto"  # of weights; auto: as stored
    max_shard_size: str = "5GB"  # of a file of format hf
    model_parallel: int = 1  # devices that format meta cuts the model for
    fold: bool = False  # put role embeddings into the other weights: cannot be done, and says why
    verify: bool = False  # read the files back and compare what they answer, one block in memory at a time
    overwrite: bool = False  # replace a model that is already in output

    def __post_init__(self) -> None:
        problems = []
        if not self.ckpt_paths:
            problems.append("ckpt_paths names no model")
        if self.format in _FP32 and self.precision not in ("auto", "fp32"):
            problems.append(
                f"precision is {self.precision}, but files of format {self.format} hold {_FP32[self.format]}"
            )
        if bytes_in(self.max_shard_size) is None:
            problems.append(
                f"max_shard_size is {self.max_shard_size!r}, wanted a size like 5GB, 500MB or 2GiB"
            )
        if self.model_parallel < 1:
            problems.append(f"model_parallel is {self.model_parallel}, wanted a number from 1")
        if self.model_parallel > 1 and self.format != "meta":
            problems.append(f"model_parallel cuts files of format meta, and format is {self.format}")
        if self.verify and self.format == "peft":
            problems.append("verify compares models, and format peft is an adapter")
        if self.format != "gguf" and self.precision == "q8_0":
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


_FP32 = {"llama2c": "fp32", "llama2c_v1": "fp32", "llama2c_v2": "int8 and fp32", "peft": "fp32"}
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def bytes_in(size: str) -> int | None:
    """How many bytes `5GB` or `2GiB` are; None if it is no size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]I?B)?", size.strip().upper())
    found = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    return found or None


def run(config: ConvertConfig) -> None:
    """Load, write, and say how to go on."""
    import torch

    from tutelage.checkpoint.hub import local_path
    from tutelage.checkpoint.streamed import Checked
    from tutelage.checkpoint.tokenizer import load_tokenizer
    from tutelage.checkpoint.torchllms_lora import is_part
    from tutelage.model.roles import NOTE
    from tutelage.recipes.stage.chain import chain_of, open_chain
    from tutelage.recipes.weights.converting import FORMATS, Conversion, verified

    chain = chain_of(config.ckpt_paths)
    has_adapter = bool(chain.adapters) and not is_part(chain.adapters[-1])
    adapter_alone = config.format == "peft" or (config.format == "torchllms" and has_adapter)
    adapters = {"peft": "adapter_config.json", "torchllms": "model_final.pth"}
    last = adapters[config.format] if adapter_alone else FORMATS[config.format].last
    written = config.output if config.output.suffix == ".gguf" else config.output / last
    if written.exists() and not config.overwrite:
        raise UserError(f"{written} exists; give --overwrite to replace it, or another --output")
    if config.verify and config.output.resolve() == chain.base.resolve():
        raise UserError("verify compares with the model as it was, and output replaces that; give another")
    if adapter_alone:
        _write_adapter(chain, config)
        return
    shape, source = open_chain(chain, force=config.force)
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    shard_bytes = bytes_in(config.max_shard_size)
    assert shard_bytes is not None
    dtype = torch.float32 if config.format in _FP32 else dtypes.get(config.precision, source.dtype)
    tokenizer_path = local_path(config.tokenizer or chain.text)
    conversion = Conversion(
        source=Checked(source, dtype),
        shape=shape,
        tokenizer=load_tokenizer(tokenizer_path),
        tokenizer_path=tokenizer_path,
        name=chain.name,
        output=config.output,
        dtype=dtype,
        precision=config.precision,
        shard_bytes=shard_bytes,
        devices=config.model_parallel,
    )
    FORMATS[config.format].refuse(conversion)
    FORMATS[config.format].write(conversion)
    if config.verify:
        verified(conversion, config.format)
    if shape.role_embeddings and config.format == "hf":
        say(f"note: {NOTE}")
    narrow = "int8" if config.format == "llama2c_v2" else "q8_0" if config.precision == "q8_0" else None
    name = narrow or str(conversion.dtype).removeprefix("torch.")
    say(f"{config.output}: {shape.n_parameters:,} parameters, {name}")


def _write_adapter(chain: Chain, config: ConvertConfig) -> None:
    import torch

    from tutelage.checkpoint.adapter import check_fits, check_trained_on, for_tied, shape_with
    from tutelage.checkpoint.aside import Beside
    from tutelage.checkpoint.hf import config_of, fingerprint_of, read_adapter
    from tutelage.checkpoint.meta.write import refuse_for_torchllms
    from tutelage.checkpoint.note import note_of, read_note
    from tutelage.checkpoint.peft import write_peft
    from tutelage.checkpoint.torchllms_lora import write_torchllms
    from tutelage.recipes.stage.chain import shape_of

    if not chain.adapters:
        raise UserError(f"format {config.format} writes an adapter; give one after the model")
    shape = config_of(chain.base, chain.adapters[:-1])
    stored, stamp = read_adapter(chain.adapters[-1], shape), fingerprint_of(chain.base, chain.adapters[:-1])
    if not stored.layers:
        raise UserError(f"{stored.where} holds weights in full and no adapter; another format takes them in")
    shape = shape_with(shape, stored)
    check_fits(shape, stored)
    check_trained_on(stored, stamp, str(chain.base), force=config.force)
    if shape.tied:
        together = for_tied(stored)  # None: the adapter changes embedding and head apart
        shape, stored = (replace(shape, tied=False), stored) if together is None else (shape, together)
    if config.format == "torchllms":
        refuse_for_torchllms(shape)
        write_torchllms(stored, config.output / "model_final.pth", shape)
    else:
        rounding = read_note(chain.adapters[-1]).rounding
        write_peft(
            stored,
            config.output,
            config=shape,
            base=chain.name,
            fingerprint=stamp,
            dtype=torch.float32,
            beside=Beside(note_of(shape_of(chain), chain.adapters[:-1], rounding).write),
        )
    say(f"{config.output}: {len(stored.layers)} layers' adapters")
