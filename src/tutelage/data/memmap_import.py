"""InstructLLaMA's pretraining data, tokens end to end in a file without a header, as pretokenized shards.

train.npy, validation.npy    uint16 or uint32, documents end with EOS; train_meta.json says which
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.data.shards import FORMAT, token_dtype
from tutelage.errors import UserError

if TYPE_CHECKING:
    from tutelage.text.tokenizer import Tokenizer

SHARD_TOKENS = 32 << 20  # about: a shard ends with a document
_TYPES = {"uint16": "<u2", "uint32": "<u4"}
_NUMPY = b"\x93NUMPY"


def memmaps_of(path: Path) -> list[Path]:
    """The .npy file, or those of a directory."""
    return [path] if path.suffix == ".npy" else sorted(path.glob("*.npy"))


def meta_of(path: Path) -> Path | None:
    """The JSON file that says what is in such a file, if there is one."""
    places = (path.with_name(f"{path.stem}_meta.json"), path.with_name("meta.json"))
    return next((place for place in places if place.is_file()), None)


def import_memmap(
    path: Path,
    meta: dict[str, Any],
    tokenizer: Tokenizer,
    directory: Path,
    *,
    tokenizer_name: str,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Write the tokens of a file as shards that pretraining reads, into a new folder; returns its meta.json.

    `meta` is what lies beside it. Refuses tokens that the tokenizer does not have. `progress` is told bytes
    read and bytes there are.
    """
    tokens = _tokens(path, meta, tokenizer)
    dtype, shards, done = token_dtype(tokenizer.size), [], 0
    for number, block in enumerate(_blocks(tokens, tokenizer.eos)):
        largest = int(block.max())
        if largest >= tokenizer.size:
            raise UserError(
                f"{path} has the token {largest:,}, and the vocabulary of {tokenizer_name} ends at "
                f"{tokenizer.size - 1:,}: it was made with another tokenizer"
            )
        ends = np.flatnonzero(block == tokenizer.eos) + 1 if tokenizer.eos is not None else np.zeros(0, int)
        offsets = np.unique(np.concatenate([[0], ends, [len(block)]])).astype("<i8")
        name = f"shard-{number:05d}"
        contents = {"tokens": block.astype(dtype).tobytes(), "offsets": offsets.tobytes()}
        for part, content in contents.items():
            (directory / f"{name}.{part}.bin").write_bytes(content)
        checksums = {part: zlib.crc32(content) for part, content in contents.items()}
        shards.append(
            {"name": name, "tokens": len(block), "documents": len(offsets) - 1, "checksums": checksums}
        )
        done += block.nbytes
        progress(done, tokens.nbytes)
    facts = {
        "tokenizer": tokenizer_name,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.size,
        "dtype": dtype,
        "sources": [str(path)],
        "documents": sum(shard["documents"] for shard in shards),
        "tokens": sum(shard["tokens"] for shard in shards),
    }
    digest = hashlib.sha256(json.dumps([tokenizer.fingerprint, shards]).encode()).hexdigest()[:32]
    made = {"format": FORMAT, "fingerprint": digest, **facts, "shards": shards}
    (directory / "meta.json").write_text(json.dumps(made, indent=1), encoding="utf-8")
    return made


def _tokens(path: Path, meta: dict[str, Any], tokenizer: Tokenizer) -> np.ndarray:
    """The file, mapped; refused where its size is not what its own meta.json says."""
    with path.open("rb") as file:
        start = file.read(len(_NUMPY))
    if not start:
        raise UserError(f"{path} is empty")
    if start == _NUMPY:  # saved by NumPy after all
        return _with_header(path)
    kind = str(meta.get("data_type") or ("uint16" if tokenizer.size < 1 << 16 else "uint32")).split(".")[-1]
    kind = kind.rstrip("'> ")
    if kind not in _TYPES:
        raise UserError(f"{path}: its meta.json says data_type {kind[:40]!r}; known are {', '.join(_TYPES)}")
    width, size = np.dtype(_TYPES[kind]).itemsize, path.stat().st_size
    wanted = meta.get("num_tokens", size // width)
    if size % width or size // width != wanted:
        raise UserError(
            f"{path} has {size:,} bytes, not those of the {wanted!r} tokens of {kind} that its meta.json says"
        )
    return np.memmap(path, _TYPES[kind], mode="r")


def _with_header(path: Path) -> np.ndarray:
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path} is damaged or no array of tokens") from error
    if tokens.ndim != 1 or tokens.dtype.kind != "u" or not len(tokens):
        raise UserError(f"{path} holds {tokens.dtype} of shape {tokens.shape}, not one line of tokens")
    return tokens


def _blocks(tokens: np.ndarray, eos: int | None) -> Iterator[np.ndarray]:
    """Stretches that end with a document, or, in one that is longer, anywhere."""
    start = 0
    while start < len(tokens):
        block = np.asarray(tokens[start : start + SHARD_TOKENS])
        if start + len(block) < len(tokens):
            ends = np.flatnonzero(block == eos)
            block = block[: int(ends[-1]) + 1] if len(ends) else block
        yield block
        start += len(block)
