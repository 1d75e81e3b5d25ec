"""SentencePiece's tokenizer.model as a file: read into a vocabulary, and put in another order.

Format: sentencepiece_model.proto, https://github.com/google/sentencepiece/blob/master/src
"""

import struct
from collections.abc import Iterator
from typing import Any

from tutelage.text.sentencepiece_model import Kind, Vocabulary, tokenizer_files

# Fields by their number in the format, and what they are where the file leaves them out.
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_MODEL_TYPE, _SUFFIX, _BYTE_FALLBACK = 3, 24, 35
_NAMES = {"unk_token": (45, "<unk>"), "bos_token": (46, "<s>"), "eos_token": (47, "</s>")}
_NAMES |= {"pad_token": (48, "<pad>")}
_CHARSMAP, _PREFIX, _COLLAPSES = 2, 3, 4
_UNIGRAM = 1
_TYPES = {_UNIGRAM: "Unigram", 2: "BPE", 3: "word", 4: "character"}


def tokenizer_json(content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """`tokenizer_files` of a tokenizer.model; ValueError as `read_model`."""
    return tokenizer_files(*read_model(content))


def read_model(content: bytes) -> tuple[Vocabulary, dict[str, str]]:
    """The vocabulary in a tokenizer.model, and which of its tokens are bos_token, eos_token and their kin.

    ValueError, saying why, for files and kinds of model that cannot be read."""
    try:
        fields = list(_fields(content))
        pieces = [_piece(value) for field, value in fields if field == _PIECE]
        trainer, normalizer = ({}, {})
        for field, value in fields:
            if field == _TRAINER:
                trainer = dict(_fields(value))
            elif field == _NORMALIZER:
                normalizer = dict(_fields(value))
        named = {
            name: trainer.get(field, default.encode()).decode() for name, (field, default) in _NAMES.items()
        }
        charsmap = normalizer.get(_CHARSMAP, b"")
        if type(charsmap) is not bytes:
            raise ValueError
        tokens, scores, kinds = (list(column) for column in zip(*pieces, strict=True))
    except (
        AttributeError,
        TypeError,
        LookupError,
        ValueError,
        struct.error,
    ) as error:  # fields of other types
        raise ValueError("it is damaged, or no SentencePiece model") from error
    _refuse_unsupported(trainer, normalizer, kinds)
    ids = {content: token for token, content in enumerate(tokens)}
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
        charsmap=charsmap,
        unigram=trainer.get(_MODEL_TYPE, _UNIGRAM) == _UNIGRAM,
        falls_back=bool(trainer.get(_BYTE_FALLBACK)),
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


def _refuse_unsupported(trainer: dict[int, Any], normalizer: dict[int, Any], kinds: list[int]) -> None:
    kind = _TYPES.get(trainer.get(_MODEL_TYPE, _UNIGRAM), "unknown")
    if kind not in ("Unigram", "BPE"):
        raise ValueError(f"it is a SentencePiece model of type {kind}; supported are BPE and Unigram")
    if trainer.get(_SUFFIX):
        raise ValueError("it writes spaces behind words; supported are spaces before words")
    if kind == "Unigram" and Kind.UNUSED in kinds:
        raise ValueError("it is of type Unigram and has tokens that are not used, which is not supported")
    if Kind.UNKNOWN not in kinds:
        raise ValueError("it has no unknown token")


def _piece(message: bytes) -> tuple[str, float, int]:
    """The text, the score and the kind of a token."""
    found = dict(_fields(message))
    (score,) = struct.unpack("<f", found.get(2, bytes(4)))
    return found[1].decode(), score, Kind(found.get(3, Kind.NORMAL))


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
