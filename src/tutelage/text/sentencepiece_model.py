"""SentencePiece's BPE and unigram vocabularies as the `tokenizers` library executes them."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from tutelage.text.special_tokens import bounds

SPACE = "\u2581"  # how SentencePiece writes a space
# What spells a byte in the vocabulary is an ordinary text where a person types it.
_TYPED_BYTE = "<(?=0x[0-9A-F]{2}>)"


class Kind(IntEnum):
    """The type of a token, in SentencePiece and in llama.cpp."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What determines how SentencePiece cuts a text; the lists have an entry for every token."""

    tokens: list[str]
    scores: list[float]
    kinds: list[int]
    unknown: int = 0
    prefix: bool = True  # whether a text is read with a space before it, the "dummy prefix"
    collapses: bool = False  # whether spaces at the ends are dropped, and several in a row one
    charsmap: bytes = b""  # a compiled table of characters to replace; of the identity it is empty
    unigram: bool = False  # the most probable cut by the scores, instead of merges by their rank
    falls_back: bool = True  # whether a character it does not know is spelled in bytes, or unknown


def tokenizer_parts(vocabulary: Vocabulary) -> dict[str, Any]:
    """The parts of a tokenizer.json that cut text and join it; transformers' converter makes the same."""
    normalizers: list[dict[str, Any]] = []
    if vocabulary.charsmap:
        table = base64.b64encode(vocabulary.charsmap).decode()
        normalizers.append({"type": "Precompiled", "precompiled_charsmap": table})
    if vocabulary.collapses:
        ends = (_replace({"Regex": pattern}, "") for pattern in (r"\A +", rf"[ {SPACE}]+\z"))
        normalizers += [*ends, _replace({"Regex": " {2,}"}, " ")]
    normalizers += [{"type": "Prepend", "prepend": SPACE}] * vocabulary.prefix
    normalizers.append(_replace({"String": " "}, SPACE))
    stripped = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * vocabulary.prefix
    joined = [_replace({"String": SPACE}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    symbols = _symbols(vocabulary) if vocabulary.prefix and not vocabulary.unigram else []
    typed = [_TYPED_BYTE] * (vocabulary.unigram and vocabulary.falls_back)
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": _isolated(typed + symbols),
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": joined + stripped},
        "model": _unigram(vocabulary) if vocabulary.unigram else _bpe(vocabulary, whole=bool(symbols)),
    }


def added_tokens(
    tokens: Sequence[str], kinds: Sequence[int], which: tuple[Kind, ...]
) -> list[dict[str, Any]]:
    """The tokens of these kinds as a tokenizer.json lists them: found whole in a text, before it is cut."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": token, "content": content, **flags, "special": kinds[token] != Kind.USER_DEFINED}
        for token, content in enumerate(tokens)
        if kinds[token] in which
    ]


def tokenizer_files(vocabulary: Vocabulary, named: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`tokenizer.json` and `tokenizer_config.json`, parsed; `named` are bos_token, eos_token and their kin.

    A text begins with BOS where there is one, as with Llama 2."""
    # an added token would hide from the library that a space goes before the text, and has no score
    symbols = () if vocabulary.prefix or vocabulary.unigram else (Kind.USER_DEFINED,)
    added = added_tokens(vocabulary.tokens, vocabulary.kinds, (Kind.CONTROL, Kind.UNKNOWN, *symbols))
    made = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    made |= tokenizer_parts(vocabulary)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **named}
    if "bos_token" in named:
        bos = named["bos_token"]
        made["post_processor"] = bounds((bos, vocabulary.tokens.index(bos)))
    return made, config


def _symbols(vocabulary: Vocabulary) -> list[str]:
    """A pattern for each user-defined symbol, the longest first."""
    kinds = zip(vocabulary.tokens, vocabulary.kinds, strict=True)
    symbols = [content for content, kind in kinds if kind == Kind.USER_DEFINED]
    return [re.escape(content) for content in sorted(symbols, key=len, reverse=True)]


def _isolated(patterns: list[str]) -> dict[str, Any] | None:
    if not patterns:
        return None
    return {
        "type": "Split",
        "pattern": {"Regex": "|".join(patterns)},
        "behavior": "Isolated",
        "invert": False,
    }


def _bpe(vocabulary: Vocabulary, *, whole: bool) -> dict[str, Any]:
    tokens, kinds = vocabulary.tokens, vocabulary.kinds
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": tokens[vocabulary.unknown],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": vocabulary.falls_back,
        "ignore_merges": whole,  # user-defined symbols, which no merge makes, come whole
        "vocab": {content: token for token, content in enumerate(tokens) if kinds[token] != Kind.UNUSED},
        "merges": _merges(vocabulary),
    }


def _unigram(vocabulary: Vocabulary) -> dict[str, Any]:
    """The library finds unknown characters worse than the worst token by 10, as SentencePiece does.

    A user-defined symbol scores -0.1 there, so that nothing ordinary is better (its length times the best
    score, which begins at FLT_MIN and never falls, less 0.1):
    https://github.com/google/sentencepiece/blob/master/src/unigram_model.cc"""
    placed = list(zip(vocabulary.scores, vocabulary.kinds, strict=True))
    worst = min((score for score, kind in placed if kind == Kind.NORMAL), default=0.0)
    given = {Kind.USER_DEFINED: -0.1, Kind.CONTROL: worst, Kind.UNKNOWN: worst, Kind.BYTE: worst}
    scores = [given.get(Kind(kind), score) for score, kind in placed]
    return {
        "type": "Unigram",
        "unk_id": vocabulary.unknown,
        "byte_fallback": vocabulary.falls_back,
        "vocab": [[token, score] for token, score in zip(vocabulary.tokens, scores, strict=True)],
    }


def _merges(vocabulary: Vocabulary) -> list[list[str]]:
    """The merges a SentencePiece vocabulary implies: every way to cut a token in two, best token first."""
    tokens, kinds = vocabulary.tokens, vocabulary.kinds
    ids = {content: token for token, content in enumerate(tokens) if kinds[token] == Kind.NORMAL}
    merges = []
    for content, token in ids.items():
        cuts = ((content[:i], content[i:]) for i in range(1, len(content)))
        pairs = [(ids[left], ids[right]) for left, right in cuts if left in ids and right in ids]
        merges += [(-vocabulary.scores[token], token, pair) for pair in sorted(pairs)]
    return [[tokens[left], tokens[right]] for _, _, (left, right) in sorted(merges)]


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}
