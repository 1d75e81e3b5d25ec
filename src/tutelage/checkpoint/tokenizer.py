"""The tokenizer of a model, wherever it lies; weights and torch are left alone."""

import json
from functools import partial
from pathlib import Path

from tutelage.checkpoint.aside import Beside
from tutelage.checkpoint.gguf.file import header_of
from tutelage.checkpoint.gguf.tokenizer import tokenizer_parts
from tutelage.checkpoint.hub import local_path
from tutelage.checkpoint.llama2c.tokenizer import is_tokenizer_bin, read_tokenizer_bin
from tutelage.errors import UserError
from tutelage.text.tokenizer import Tokenizer
from tutelage.text.tokenizer_files import TOKENIZER_FILES, is_tokenizer_file


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of the model at `path`: a directory, a .gguf, .bin or .pt file, or a hub id.

    A file that holds nothing but a tokenizer may stand for itself.
    """
    path = local_path(path)
    if path.is_file() and is_tokenizer_file(path):
        return Tokenizer.load(path)
    if path.suffix == ".bin" and is_tokenizer_bin(path):
        return read_tokenizer_bin(path)
    if path.suffix in (".bin", ".pt", ".pth"):
        path = path.parent  # llama2.c and InstructLLaMA keep their tokenizers beside the model
    others = ("tokenizer.json", "tokenizer.model")
    if (path / "tokenizer.bin").exists() and not any((path / name).exists() for name in others):
        return read_tokenizer_bin(path / "tokenizer.bin")
    gguf = find_gguf(path)
    if gguf and not (path / "tokenizer.json").exists():
        return _of_gguf(gguf)
    return Tokenizer.load(path)


def beside_model(
    tokenizer: Tokenizer, directory: Path, *, read_from: Path | None, chat_template: str | None = None
) -> Beside:
    """The tokenizer's files beside a model in `directory`, in place of those of a model before it.

    In the directory that the tokenizer was read from nothing is another's."""
    own = read_from is not None and directory.resolve() in (read_from.resolve(), read_from.resolve().parent)
    return Beside(partial(tokenizer.save, chat_template=chat_template), () if own else TOKENIZER_FILES)


def find_gguf(path: Path) -> Path | None:
    """The GGUF file that `path` is, or that a directory without safetensors holds alone."""
    if path.is_file():
        if path.suffix == ".gguf":
            return path
        raise UserError(
            f"{path} is a file, but no .gguf, nor llama2.c's .bin or .pt, nor a .pth beside params.json; "
            "give the directory with config.json and the weights"
        )
    parts = sorted(path.glob("*-00001-of-*.gguf"))
    found = parts + sorted(set(path.glob("*.gguf")) - set(path.glob("*-of-*.gguf")))
    if not found or any(path.glob("*.safetensors")) or (path / "model.safetensors.index.json").exists():
        return None
    if len(found) > 1:
        raise UserError(
            f"{path} holds {len(found)} .gguf files; give one: {', '.join(f.name for f in found)}"
        )
    return found[0]


def _of_gguf(path: Path) -> Tokenizer:
    tokenizer_json, tokenizer_config = tokenizer_parts(header_of(path))
    return Tokenizer(json.dumps(tokenizer_json, ensure_ascii=False), tokenizer_config)
