"""The tokenizer.bin of llama2.c, read and written: the pieces of a SentencePiece vocabulary and their scores.

run.c takes it for granted that <unk>, BOS and EOS come first and the 256 bytes after them, and that a space
stands before every text.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from tutelage.errors import UserError
from tutelage.text.sentencepiece_model import Kind, Vocabulary, tokenizer_files
from tutelage.text.special_tokens import model_ids
from tutelage.text.tokenizer import Tokenizer

_UNK, _BOS, _EOS, _FIRST_BYTE = 0, 1, 2, 3
_WRITTEN = {_BOS: "\n<s>\n", _EOS: "\n</s>\n"}  # as llama2.c's own exporter writes them
_SPACE = "\u2581"  # how SentencePiece writes a space
_NEVER = -1e10  # the score below which run.c merges nothing
_LONGEST = 1 << 16  # bytes of a token
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def read_tokenizer_bin(path: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.bin."""
    entries = list(_entries(path))
    pieces, scores = [piece for piece, _ in entries], [score for _, score in entries]
    if len(pieces) < _FIRST_BYTE + len(_BYTES):
        raise UserError(
            f"{path} holds {len(pieces)} tokens; <unk>, BOS, EOS and 256 bytes alone are "
            f"{_FIRST_BYTE + len(_BYTES)}"
        )
    tokens = ["<unk>", "<s>", "</s>", *_BYTES]
    kinds: list[int] = [Kind.UNKNOWN, Kind.CONTROL, Kind.CONTROL, *[Kind.BYTE] * len(_BYTES)]
    tokens += [piece.replace(" ", _SPACE) for piece in pieces[len(tokens) :]]
    kinds += [Kind.NORMAL] * (len(tokens) - len(kinds))
    named = {"unk_token": tokens[_UNK], "bos_token": tokens[_BOS], "eos_token": tokens[_EOS]}
    tokenizer_json, config = tokenizer_files(Vocabulary(tokens, scores, kinds), named)
    return Tokenizer(json.dumps(tokenizer_json, ensure_ascii=False), config)


def is_tokenizer_bin(path: Path) -> bool:
    """Whether a .bin file holds a vocabulary rather than a model."""
    try:
        return all(True for _ in _entries(path))
    except UserError:
        return False


def write_tokenizer_bin(tokenizer: Tokenizer, path: Path, *, vocab_size: int) -> None:
    """Write a tokenizer.bin with `vocab_size` entries, as many as the model has; UserError if none can be."""
    vocabulary = json.loads(tokenizer.source)
    _check(tokenizer, vocabulary["model"], vocab_size)
    texts = {token: piece for piece, token in model_ids(vocabulary).items()}
    texts |= {token["id"]: token["content"] for token in vocabulary["added_tokens"]}
    scores: dict[str, float] = {}
    for rank, merge in enumerate(vocabulary["model"]["merges"]):
        piece = "".join(merge.split(" ", 1) if isinstance(merge, str) else merge)
        scores.setdefault(piece, float(-rank))
    control = set(tokenizer.control.values())
    entries = []
    for token in range(vocab_size):
        text = texts.get(token, f"<unused {token}>")
        score = _NEVER if token in control else scores.get(text, _NEVER)
        entries.append((score, _WRITTEN.get(token, text.replace(_SPACE, " ")).encode()))
    with path.open("wb") as file:
        file.write(struct.pack("<I", max(len(text) for _, text in entries)))
        for score, text in entries:
            file.write(struct.pack("<fI", score, len(text)) + text)


def _check(tokenizer: Tokenizer, model: dict, vocab_size: int) -> None:
    remedy = (
        "learn another with `tutelage tokenizer train --algorithm sentencepiece` and train the model on it"
    )
    ids = model_ids({"model": model})
    if model["type"] != "BPE" or [ids.get(name) for name in _BYTES] != list(range(3, 259)):
        raise UserError(
            "llama2.c's program needs a SentencePiece vocabulary, BPE with the 256 bytes at ids 3 to 258; "
            f"this tokenizer has another; {remedy}"
        )
    if (tokenizer.bos, tokenizer.eos) != (_BOS, _EOS):
        raise UserError(
            "llama2.c's program needs BOS at id 1 and EOS at id 2; this tokenizer has them at "
            f"{tokenizer.bos} and {tokenizer.eos}; {remedy}"
        )
    if not tokenizer.token_text(tokenizer.encode("a")[0]).startswith(_SPACE):
        raise UserError(
            f"llama2.c's program puts a space before every text, and this tokenizer does not; {remedy}"
        )
    if tokenizer.size > vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.size} tokens and the model only {vocab_size}")


def _entries(path: Path) -> Iterator[tuple[str, float]]:
    """Every piece and its score, in order."""
    try:
        with path.open("rb") as file:
            (longest,) = struct.unpack("<I", file.read(4))
            while head := file.read(8):
                score, size = struct.unpack("<fI", head)
                if not 0 < size <= min(longest, _LONGEST):
                    raise ValueError(f"a token of {size:,} bytes, {min(longest, _LONGEST):,} are the most")
                text = file.read(size)
                if len(text) < size:
                    raise ValueError("it ends in a token")
                yield text.decode(), score
    except (struct.error, ValueError) as error:
        raise UserError(f"{path} is truncated or not a tokenizer.bin of llama2.c ({error})") from error
