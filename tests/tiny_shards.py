"""Shards of made-up documents, built by the real builder."""

from pathlib import Path

import numpy as np
from tiny_tokenizer import tiny_tokenizer

from tutelage.data.shard_build import build
from tutelage.data.shards import TokenShards
from tutelage.data.sources import parse_sources

TOKENIZER = tiny_tokenizer()
WORDS = ["alpha", "beta", "x", "Grüße", "你好", "👋", " two  spaces", "42"]


def texts(count: int, seed: int = 0, longest: int = 40) -> list[str]:
    """Lines of 1 to `longest` words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, longest + 1))) for _ in range(count)]


def text_file(path: Path, lines: list[str]) -> str:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return f"text:{path}"


def built(directory: Path, *paths: str, **options) -> dict:
    return build(
        parse_sources(paths), options.pop("tokenizer", TOKENIZER), directory, tokenizer_name="tok", **options
    )


def shards(directory: Path, count: int, seed: int = 0, longest: int = 40) -> TokenShards:
    directory.mkdir(parents=True, exist_ok=True)
    built(directory / "shards", text_file(directory / "some.txt", texts(count, seed, longest)))
    return TokenShards(directory / "shards" / "train")
