"""Pretokenized documents on disk, memory-mapped: what `tutelage data build pretrain` writes.

DIR/meta.json                    what it was made of and how much it is, written last
DIR/shard-00000.tokens.bin       tokens end to end, uint16 or uint32 by the size of the vocabulary
DIR/shard-00000.offsets.bin      int64: document i is tokens[offsets[i] : offsets[i + 1]]
DIR/shard-00000.json             counts, and a checksum of each of the two
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.data.cache import Shard
from tutelage.data.faults import Faults
from tutelage.errors import UserError
from tutelage.text.roles import ROLE_IDS

FORMAT = 1
_IN_META = {"fingerprint", "tokenizer_fingerprint", "tokenizer", "vocab_size", "documents", "tokens"}
_IN_SHARD = {"name", "tokens", "documents", "checksums"}


def token_dtype(vocab_size: int) -> str:
    """How tokens of such a vocabulary are stored, little-endian."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


@dataclass(slots=True)
class Piece:
    """A stretch of a document: positions `start` and on of document `document`, from 0 in its directory."""

    document: int
    start: int
    tokens: np.ndarray  # one more than it has positions: the last is only predicted


class TokenShards:
    """The documents of a directory as one line of positions.

    A document of n tokens has n − 1: each predicts the next token, and none the next document's first.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.meta = read_meta(directory)
        self._documents_before = np.cumsum([0, *(shard["documents"] for shard in self.meta["shards"])])
        tokens_before = np.cumsum([0, *(shard["tokens"] for shard in self.meta["shards"])])
        self._positions_before = (tokens_before - self._documents_before).tolist()
        self._check_sizes()

    @property
    def positions(self) -> int:
        """How many tokens are predicted."""
        return self._positions_before[-1]

    @property
    def fingerprint(self) -> str:
        """Equal for equal documents in equal order."""
        return self.meta["fingerprint"]

    def check(self, tokenizer_fingerprint: str) -> None:
        """Refuse tokens of another tokenizer than the one that training uses."""
        if self.meta["tokenizer_fingerprint"] != tokenizer_fingerprint:
            raise UserError(
                f"{self.directory} holds tokens of another tokenizer: they were made with "
                f"{self.meta['tokenizer']} ({self.meta['vocab_size']:,} tokens); train with that "
                "--tokenizer, or run `tutelage data build pretrain` with this one"
            )

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """The documents, or parts of documents, that lie at positions `start` up to `stop`."""
        while start < stop:
            shard = bisect_right(self._positions_before, start) - 1
            offsets = self._offsets[shard]
            place = start - self._positions_before[shard]
            # The position of a document's first token is its offset less the documents before it.
            document = bisect_right(range(len(offsets)), place, key=lambda i: offsets[i] - i) - 1
            within = place - (int(offsets[document]) - document)
            count = min(stop - start, int(offsets[document + 1] - offsets[document]) - 1 - within)
            first = int(offsets[document]) + within
            tokens = self._tokens[shard][first : first + count + 1]
            yield Piece(int(self._documents_before[shard]) + document, within, tokens)
            start += count

    def samples(self, path: int) -> list[Shard]:
        """The documents one by one, as number `path` of a data set, for a `SampleStore`."""
        sizes = [len(tokens) for tokens in self._tokens]
        ones = np.broadcast_to(np.float32(1), max(sizes, default=0))  # takes no memory
        roles = np.broadcast_to(np.uint8(ROLE_IDS["other"]), max(sizes, default=0))
        return [
            Shard(
                key=f"{self.fingerprint}.{number}",
                kind="text",
                tokens=tokens,
                weights=ones[: len(tokens)],
                roles=roles[: len(tokens)],
                lines=np.arange(len(offsets) - 1) + self._documents_before[number] + 1,
                offsets=offsets,
                faults=Faults(),
                path=path,
            )
            for number, (tokens, offsets) in enumerate(zip(self._tokens, self._offsets, strict=True))
        ]

    def check_contents(self) -> None:
        """Refuse files whose bytes are not those that were written. Reads them all."""
        import zlib

        for shard in self.meta["shards"]:
            for part, checksum in shard["checksums"].items():
                path = self.directory / f"{shard['name']}.{part}.bin"
                if zlib.crc32(np.memmap(path, np.uint8, mode="r").data) != checksum:
                    raise UserError(
                        f"{path} is damaged: its bytes are not those that were written; remove it and run "
                        "the same `tutelage data build pretrain` again"
                    )

    @cached_property
    def _tokens(self) -> list[np.ndarray]:
        return [self._map(shard["name"], "tokens", self.meta["dtype"]) for shard in self.meta["shards"]]

    @cached_property
    def _offsets(self) -> list[np.ndarray]:
        return [self._map(shard["name"], "offsets", "<i8") for shard in self.meta["shards"]]

    def _map(self, name: str, part: str, dtype: str) -> np.ndarray:
        # A plain array: slicing a memmap is slow.
        return np.asarray(np.memmap(self.directory / f"{name}.{part}.bin", dtype=dtype, mode="r"))

    def _check_sizes(self) -> None:
        width = np.dtype(self.meta["dtype"]).itemsize
        for shard in self.meta["shards"]:
            wanted = {"tokens": shard["tokens"] * width, "offsets": (shard["documents"] + 1) * 8}
            for part, size in wanted.items():
                path = self.directory / f"{shard['name']}.{part}.bin"
                there = path.stat().st_size if path.exists() else None
                if there != size:
                    found = "is missing" if there is None else f"has {there:,} bytes and not {size:,}"
                    raise UserError(f"{path} {found}; run the same `tutelage data build pretrain` again")


def read_meta(directory: Path) -> dict[str, Any]:
    """What the directory says of itself; refuses one that is no whole set of shards."""
    path = directory / "meta.json"
    if not path.is_file():
        begun = " (its building was interrupted: run it again)" if any(directory.glob("shard-*")) else ""
        raise UserError(
            f"{directory} has no meta.json{begun}; `tutelage data build pretrain` makes such directories"
        )
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        if meta["format"] != FORMAT:
            raise UserError(f"{path}: format {meta['format']} is not {FORMAT}, which this version reads")
        np.dtype(meta["dtype"])
        if missing := _IN_META - meta.keys():
            raise KeyError(missing)
        for shard in meta["shards"]:
            if missing := _IN_SHARD - shard.keys():
                raise KeyError(missing)
            if not all(type(shard[name]) is int and shard[name] >= 0 for name in ("tokens", "documents")):
                raise ValueError(shard)
            if Path(shard["name"]).name != shard["name"]:
                raise ValueError(shard["name"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged; run the same `tutelage data build pretrain` again") from error
    return meta
