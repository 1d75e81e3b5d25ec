"""SentencePiece's BPE as the `tokenizers` library executes it: read from a tokenizer.model, or from parts.

Format: sentencepiece_model.proto, https://github.com/google/sentencepiece/blob/master/src
"""

import base64
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

_SPACE = "\u2581"  # how SentencePiece writes a space
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* \d+\n")
# Fields by their number in the format, and what they are where the file leaves them out.
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_MODEL_TYPE, _SUFFIX, _BYTE_FALLBACK = 3, 24, 35
_NAMES = {"unk_token": (45, "<unk>"), "bos_token": (46, "<s>"), "eos_token": (47, "</s>")}
_NAMES |= {"pad_token": (48, "<pad>")}
_CHARSMAP, _PREFIX, _COLLAPSES = 2, 3, 4
_TYPES = {1: "Unigram", 2: "BPE", 3: "word", 4: "character"}


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
    """What determines how SentencePiece's BPE cuts a text; the lists have an entry for every token."""

    tokens: list[str]
    scores: list[float]
    kinds: list[int]
    unknown: int = 0
    prefix: bool = True  # whether a text is read with a space before it, the "dummy prefix"
    collapses: bool = False  # whether spaces at the ends are dropped, and several in a row one
    charsmap: bytes = b""  # a compiled table of characters to replace; of the identity it is empty


def read_model(content: bytes) -> tuple[Vocabulary, dict[str, str]]:
    """The vocabulary in a tokenizer.model, and which of its tokens are bos_token, eos_token and their kin.

    ValueError, saying why, for files and kinds of model that cannot be read."""
    if _TIKTOKEN.match(content):
        raise ValueError("it holds ranks for tiktoken, not a SentencePiece model")
    try:
        fields = list(_fields(content))
        pieces = [_piece(value) for field, value in fields if field == _PIECE]
        trainer, normalizer = ({}, {})
        for field, value in fields:
            if field == _TRAINER:
                trainer = dict(_fields(value))
            elif field == _NORMALIZER:
                normalizer = dict(_fields(value))
        tokens, scores, kinds = (list(column) for column in zip(*pieces, strict=True))
    except (TypeError, LookupError, ValueError, struct.error) as error:
        raise ValueError("it is damaged, or no SentencePiece model") from error
    _refuse_unsupported(trainer, normalizer, kinds)
    ids = {content: token for token, content in enumerate(tokens)}
    named = {name: trainer.get(field, default.encode()).decode() for name, (field, default) in _NAMES.items()}
    named = {
        name: content
        for name, content in named.items()
        if content in ids and kinds[ids[content]] in (Kind.CONTROL, Kind.UNKNOWN)
    }
    vocabulary = Vocabulary(
        tokens,
        scores,
        kinds,
        unknown=kinds.index(Kind.UNKNOWN),
        prefix=bool(normalizer.get(_PREFIX, True)),
        collapses=bool(normalizer.get(_COLLAPSES, True)),
        charsmap=normalizer.get(_CHARSMAP, b""),
    )
    return vocabulary, named


def control_last(content: bytes, *, first: int) -> bytes:
    """The same tokenizer.model with control tokens moved behind all others, but for the `first` tokens."""
    pieces, rest = [], []
    for field, value in _fields(content):
        (pieces if field == _PIECE else rest).append((field, value))
    kinds = [_piece(value)[2] for _, value in pieces]
    order = sorted(range(len(pieces)), key=lambda token: token >= first and kinds[token] == Kind.CONTROL)
    return b"".join(_written(*field) for field in [*(pieces[token] for token in order), *rest])


def tokenizer_parts(vocabulary: Vocabulary) -> dict[str, Any]:
    """The parts of a tokenizer.json that cut text and join it; transformers' converter makes the same."""
    tokens, kinds = vocabulary.tokens, vocabulary.kinds
    normalizers: list[dict[str, Any]] = []
    if vocabulary.charsmap:
        table = base64.b64encode(vocabulary.charsmap).decode()
        normalizers.append({"type": "Precompiled", "precompiled_charsmap": table})
    if vocabulary.collapses:
        ends = (_replace({"Regex": pattern}, "") for pattern in (r"\A +", rf"[ {_SPACE}]+\z"))
        normalizers += [*ends, _replace({"Regex": " {2,}"}, " ")]
    normalizers += [{"type": "Prepend", "prepend": _SPACE}] * vocabulary.prefix
    normalizers.append(_replace({"String": " "}, _SPACE))
    stripped = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * vocabulary.prefix
    joined = [_replace({"String": _SPACE}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": joined + stripped},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": tokens[vocabulary.unknown],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {content: token for token, content in enumerate(tokens) if kinds[token] != Kind.UNUSED},
            "merges": _merges(vocabulary),
        },
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


def beginning(content: str, token: int) -> dict[str, Any]:
    """What transformers puts before a text when asked for special tokens; our templates write it."""
    bos = {"SpecialToken": {"id": content, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": kind}} for kind, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, bos | {"SpecialToken": {"id": content, "type_id": 1}}, second],
        "special_tokens": {content: {"id": content, "ids": [token], "tokens": [content]}},
    }


def tokenizer_json(content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """`tokenizer_files` of a tokenizer.model; ValueError as `read_model`."""
    return tokenizer_files(*read_model(content))


def tokenizer_files(vocabulary: Vocabulary, named: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`tokenizer.json` and `tokenizer_config.json`, parsed; `named` are bos_token, eos_token and their kin.

    A text begins with BOS where there is one, as with Llama 2."""
    added = added_tokens(vocabulary.tokens, vocabulary.kinds, (Kind.CONTROL, Kind.USER_DEFINED, Kind.UNKNOWN))
    made = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    made |= tokenizer_parts(vocabulary)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **named}
    if "bos_token" in named:
        bos = named["bos_token"]
        made["post_processor"] = beginning(bos, vocabulary.tokens.index(bos))
    return made, config


def _refuse_unsupported(trainer: dict[int, Any], normalizer: dict[int, Any], kinds: list[int]) -> None:
    kind = _TYPES.get(trainer.get(_MODEL_TYPE, 1), "unknown")
    if kind != "BPE":
        raise ValueError(f"it is a SentencePiece model of type {kind}; supported is BPE")
    if not trainer.get(_BYTE_FALLBACK):
        raise ValueError("it has no bytes for characters it does not know; supported is byte_fallback")
    if trainer.get(_SUFFIX):
        raise ValueError("it writes spaces behind words; supported are spaces before words")
    if normalizer.get(_PREFIX, True) and Kind.USER_DEFINED in kinds:
        # the tokenizers library would put a space behind every symbol, or none before a text that has one
        raise ValueError(
            "it has user-defined symbols and a space before every text; one of them is supported"
        )
    if Kind.UNKNOWN not in kinds:
        raise ValueError("it has no unknown token")


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


def _piece(message: bytes) -> tuple[str, float, int]:
    """The text, the score and the kind of a token."""
    found = dict(_fields(message))
    (score,) = struct.unpack("<f", found.get(2, bytes(4)))
    return found[1].decode(), score, found.get(3, Kind.NORMAL)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a protobuf message: an int, or the bytes of what is no varint."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        if key & 7 == 0:
            value, place = _varint(message, place)
        else:
            size, place = _varint(message, place) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], place)
            value, place = message[place : place + size], place + size
            if place > len(message):
                raise ValueError("a field reaches past the end")
        yield key >> 3, value


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """The number that begins at `place`, seven bits a byte, and where it ends."""
    number = shift = 0
    while True:
        byte = message[place]
        number |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return number, place


def _written(field: int, value: bytes) -> bytes:
    """A field that is itself a message, as the file has it."""
    return _as_varint(field << 3 | 2) + _as_varint(len(value)) + value


def _as_varint(number: int) -> bytes:
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    return bytes([*written, number])
