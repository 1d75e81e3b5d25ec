"""The formats that `convert` writes models in: what each refuses, and how it is written."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tutelage.checkpoint.aside import Beside
from tutelage.checkpoint.gguf.write import KINDS, write_gguf
from tutelage.checkpoint.hf import save_model
from tutelage.checkpoint.instructllama import refuse_what_it_cannot, write_instructllama
from tutelage.checkpoint.litgpt.write import refuse_for_litgpt, write_litgpt
from tutelage.checkpoint.llama2c.tokenizer import write_tokenizer_bin
from tutelage.checkpoint.llama2c.write import (
    group_of,
    in_groups,
    refuse_other_arithmetic,
    write_checkpoint,
    write_llama2c,
)
from tutelage.checkpoint.meta.write import (
    refuse_for_meta,
    refuse_for_torchllms,
    write_meta,
    write_torchllms_model,
)
from tutelage.checkpoint.source import Source
from tutelage.checkpoint.tokenizer import beside_model
from tutelage.model.config import ModelConfig
from tutelage.recipes.saying import say
from tutelage.recipes.weights.merging import padded_as_trained
from tutelage.recipes.weights.verifying import verify
from tutelage.text.tokenizer import Tokenizer

_PIECES = "tokenizer.model"  # SentencePiece's


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """A model on its way to other files."""

    source: Source
    shape: ModelConfig
    tokenizer: Tokenizer
    tokenizer_path: Path  # where it was read from
    name: str  # of the model, for people
    output: Path  # a directory, or a file that ends in .gguf
    dtype: torch.dtype
    precision: str  # as it was asked for
    shard_bytes: int
    devices: int

    def with_tokenizer(self, tokenizer: Tokenizer | None = None) -> Beside:
        """Its files, for a model that is written in `output`."""
        return beside_model(tokenizer or self.tokenizer, self.output, read_from=self.tokenizer_path)

    def with_sentencepiece(self) -> Beside:
        """Its tokenizer.model, where it has one; else none of another model stays."""
        content, whole = self.tokenizer.sentencepiece, self.with_tokenizer()
        old = tuple(name for name in whole.old if name == _PIECES)
        return Beside(lambda folder: content and (folder / _PIECES).write_bytes(content), old)


@dataclass(frozen=True, slots=True)
class Format:
    """One of them."""

    last: str  # the file that is written last
    write: Callable[[Conversion], None]
    refuse: Callable[[Conversion], None] = lambda conversion: None  # before anything is written


def _hf(to: Conversion) -> None:
    tokenizer, shape = padded_as_trained(to.tokenizer, to.shape)
    beside = to.with_tokenizer(tokenizer)
    save_model(to.source, shape, to.output, dtype=to.dtype, shard_bytes=to.shard_bytes, beside=beside)


def _gguf(to: Conversion) -> None:
    path, kind = _gguf_path(to), to.precision
    if kind == "auto":
        kind = {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(to.dtype, "fp32")
    remarks = write_gguf(to.shape, to.source, to.tokenizer, path, KINDS[kind], name=Path(to.name).name)
    for remark in remarks:
        say(f"note: {remark}")


def _gguf_path(to: Conversion) -> Path:
    return to.output if to.output.suffix == ".gguf" else to.output / "model.gguf"


def _meta(to: Conversion) -> None:
    beside = to.with_sentencepiece()
    write_meta(to.source, to.shape, to.output, dtype=to.dtype, devices=to.devices, beside=beside)
    _say_if_it_has_none(to, "Meta's program reads tokenizer.model")


def _torchllms(to: Conversion) -> None:
    write_torchllms_model(to.source, to.shape, to.output, dtype=to.dtype, beside=to.with_tokenizer())


def _litgpt(to: Conversion) -> None:
    write_litgpt(to.source, to.shape, to.output, dtype=to.dtype, beside=to.with_tokenizer())


def _instructllama(to: Conversion) -> None:
    path, beside = to.output / "model.pth", to.with_sentencepiece()
    write_instructllama(to.source, to.shape, path, dtype=to.dtype, beside=beside)
    _say_if_it_has_none(to, "InstructLLaMA reads SentencePiece's tokenizer.model")


def _llama2c(to: Conversion, version: int) -> None:
    entries = partial(write_tokenizer_bin, to.tokenizer, vocab_size=to.shape.vocab_size)
    beside = Beside(lambda folder: entries(folder / "tokenizer.bin"))
    write_llama2c(to.source, to.shape, to.output / "model.bin", version=version, beside=beside)
    program = {0: "run", 2: "runq"}.get(version)
    if program:
        words = f"./{program} {to.output}/model.bin -z {to.output}/tokenizer.bin"
        say(f"{to.output}: go on with `{words}`, llama2.c's program")


def _llama2c_checkpoint(to: Conversion) -> None:
    write_checkpoint(to.source, to.shape, to.output, dtype=to.dtype, beside=to.with_sentencepiece())
    _say_if_it_has_none(to, "llama2.c reads SentencePiece's tokenizer.model")


def _say_if_it_has_none(to: Conversion, who: str) -> None:
    if to.tokenizer.sentencepiece is None:
        say(
            f"note: {who}, and this model has none; the tokens it is to be given are those of the model's "
            "own tokenizer"
        )


def _shape(refuse: Callable[[ModelConfig], None]) -> Callable[[Conversion], None]:
    return lambda to: refuse(to.shape)


def verified(to: Conversion, kind: str) -> None:
    """Read what was written in format `kind` and compare."""

    def rounded(rows: Tensor) -> Tensor:
        if kind == "llama2c_v2":
            return _in_int8(rows, to.shape)
        if kind == "gguf" and rows.ndim == 1:
            return rows.float()
        return _in_q8(rows) if to.precision == "q8_0" else rows.to(to.dtype)

    written = _gguf_path(to) if kind == "gguf" else to.output / _OPENED.get(kind, "")
    verify(to.source, to.shape, to.tokenizer, written, rounded=rounded)


def _in_q8(rows: Tensor) -> Tensor:
    import gguf
    from gguf import GGMLQuantizationType

    kind = GGMLQuantizationType.Q8_0
    return torch.from_numpy(gguf.dequantize(gguf.quantize(rows.float().numpy(), kind), kind))


def _in_int8(rows: Tensor, shape: ModelConfig) -> Tensor:
    if rows.ndim == 1:
        return rows
    numbers, scales = in_groups(rows, group_of(shape))
    return (numbers * scales[:, None]).view(rows.shape)


_OPENED = {  # by the name of a file, where others may lie beside it
    "meta": "consolidated.00.pth",
    "torchllms": "consolidated.00.pth",
    "litgpt": "lit_model.pth",
    "instructllama": "model.pth",
    "llama2c": "model.bin",
    "llama2c_v1": "model.bin",
    "llama2c_v2": "model.bin",
    "llama2c_pt": "ckpt.pt",
}
FORMATS = {
    "hf": Format("config.json", _hf),
    "gguf": Format("model.gguf", _gguf),
    "meta": Format("params.json", _meta, lambda to: refuse_for_meta(to.shape, to.devices)),
    "torchllms": Format("params.json", _torchllms, _shape(refuse_for_torchllms)),
    "litgpt": Format("model_config.yaml", _litgpt, _shape(refuse_for_litgpt)),
    "llama2c": Format("model.bin", partial(_llama2c, version=0), _shape(refuse_other_arithmetic)),
    "llama2c_v1": Format("model.bin", partial(_llama2c, version=1), _shape(refuse_other_arithmetic)),
    "llama2c_v2": Format("model.bin", partial(_llama2c, version=2), _shape(refuse_other_arithmetic)),
    "llama2c_pt": Format("ckpt.pt", _llama2c_checkpoint, _shape(refuse_other_arithmetic)),
    "instructllama": Format("params.json", _instructllama, _shape(refuse_what_it_cannot)),
}
