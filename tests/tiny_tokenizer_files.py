"""Tiny vocabularies in the files of GPT-2, of tiktoken and of Mistral."""

import base64
import json
from pathlib import Path

from tutelage.text.byte_level import spelling

BYTES = [bytes([byte]) for byte in range(256)]


def ranks(*words: bytes, skip: int = -1) -> bytes:
    """A file as tiktoken has it: all bytes, then `words`."""
    lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate([*BYTES, *words])]
    return b"".join(line for rank, line in enumerate(lines) if rank != skip)


def write_pair(
    folder: Path, *, names: tuple[str, str] = ("vocab.json", "merges.txt"), merges: str = ""
) -> Path:
    """GPT-2's two files with a vocabulary of bytes and four words more."""
    ids = {token: index for index, token in enumerate([*map(spelling, BYTES), "he", "ll", "hell", "hello"])}
    (folder / names[0]).write_text(json.dumps(ids))
    (folder / names[1]).write_text("#version: 0.2\n" + (merges or "h e\nl l\nhe ll\nhell o\n"))
    return folder


def write_tekken(folder: Path, *words: bytes, **changes: object) -> Path:
    """Mistral's file with 20 control tokens of their own and 12 to come, then bytes and `words`."""
    tokens = [*BYTES, *words]
    content = {
        "config": {
            "pattern": r"\s?\p{L}+|\S|\s+",
            "num_vocab_tokens": len(tokens),
            "default_vocab_size": len(tokens) + 32,
            "default_num_special_tokens": 32,
            "version": "v3",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for rank, token in enumerate(tokens)
        ],
        **changes,
    }
    (folder / "tekken.json").write_text(json.dumps(content))
    return folder
