"""A model's tokenizer: text to token ids and back, with control tokens kept apart from what people type."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from tutelage.errors import UserError
from tutelage.text.pieces import Encoded, Piece
from tutelage.text.sentencepiece_model import SPACE
from tutelage.text.special_tokens import (
    LISTED,
    NAMED,
    complete,
    content_of,
    control_tokens,
    default_template,
    model_ids,
)
from tutelage.text.tokenizer_files import read_files
from tutelage.text.twin import OPEN, named_again, plain, sentinels, twin_of
from tutelage.text.vocabulary_values import check_vocabulary

_BATCH = 4096  # conversations given to the library at once: enough for its threads, little enough to hold


class Tokenizer:
    """`source` is the text of a tokenizer.json, `settings` what tokenizer_config.json says.

    `sentencepiece` is the tokenizer.model that it was made of, if any; it is only kept, for `save`."""

    def __init__(self, source: str, settings: dict[str, Any], sentencepiece: bytes | None = None) -> None:
        self.source = source
        self.settings = settings
        self.sentencepiece = sentencepiece
        vocabulary = self._completed()
        self.control = control_tokens(vocabulary)
        ids = [*model_ids(vocabulary).values(), *(token["id"] for token in vocabulary["added_tokens"])]
        self.size = 1 + max(ids, default=-1)
        self.named = {  # bos_token and its kin, as the settings spell them
            name: content for name in NAMED if (content := content_of(settings.get(name))) is not None
        }
        self.bos, self.eos, self.pad = (self._id_of(name) for name in ("bos_token", "eos_token", "pad_token"))
        self.chat_template = default_template(settings.get("chat_template"))
        self.byte_tokens = _byte_tokens(vocabulary)
        self._reaches_left = any(token["special"] and token["lstrip"] for token in vocabulary["added_tokens"])
        self._control_ids = frozenset(self.control.values())
        self._names = list(self.control)
        self._spelled = sentinels(self.control)
        self._twin = _library(json.dumps(twin_of(vocabulary, self.control)))
        self._check_numbers(vocabulary["added_tokens"])

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """The tokenizer of an HF directory, or of one file of any kind that holds one."""
        files = read_files(Path(path))
        try:
            return cls(files.source, files.settings, files.sentencepiece)
        except Exception as error:  # the library raises plain Exception for what it cannot read
            raise UserError(f"{files.path} is not a tokenizer that can be read: {error}") from error

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[str, dict[str, Any], bytes | None]]:
        # the library's object is rebuilt in each process
        return Tokenizer, (self.source, self.settings, self.sentencepiece)

    def encode(self, text: str) -> list[int]:
        """The tokens of plain text: never a control token, whatever the text says; no BOS, no EOS."""
        return self._twin.encode(plain(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """`encode` for each text, on all of the library's threads."""
        cleaned = [plain(text) for text in texts]
        return [e.ids for e in self._twin.encode_batch_fast(cleaned, add_special_tokens=False)]

    def encode_marked(self, documents: Sequence[Sequence[Piece]]) -> list[Encoded]:
        """Each document's pieces, joined and tokenized once; a token is what the piece it starts in is.

        One that has white space of what is not learned and the first words of what is, is learned: of `bot: `
        and `Yes` the space and the word are one token."""
        done: list[Encoded] = []
        for first in range(0, len(documents), _BATCH):
            chunk = documents[first : first + _BATCH]
            spelled = [[self._spell(piece) for piece in pieces] for pieces in chunk]
            encodings = self._twin.encode_batch(
                ["".join(texts) for texts in spelled], add_special_tokens=False
            )
            for pieces, texts, encoding in zip(chunk, spelled, encodings, strict=True):
                done.append(self._marked(pieces, texts, encoding))
        return done

    def decode(self, tokens: Sequence[int], *, skip_control: bool = True) -> str:
        """The text of tokens, control tokens left out or written as they are spelled."""
        if skip_control:
            return self._twin.decode(list(tokens), skip_special_tokens=True)
        if self._apart is not None:
            return self._apart.decode(list(tokens), skip_special_tokens=False)
        return named_again(self._twin.decode(list(tokens), skip_special_tokens=False), self._names)

    def token_text(self, token: int) -> str:
        """One token as the vocabulary spells it, for showing; ids without a token give an empty string."""
        spelled = self._twin.id_to_token(token) if token in range(self.size) else None
        return named_again(spelled or "", self._names)

    def is_control(self, token: int) -> bool:
        return token in self._control_ids

    def save(self, directory: Path, *, chat_template: str | None = None) -> None:
        """Write the files from which transformers' AutoTokenizer loads this tokenizer.

        They carry `chat_template`, or where none is given the one the model came with, if any."""
        directory.mkdir(parents=True, exist_ok=True)
        # any other class may put parts of its own in place of those in tokenizer.json, and give other ids
        settings = {**self.settings, "tokenizer_class": "PreTrainedTokenizerFast"}
        settings.pop("auto_map", None)
        if chat_template is not None:
            settings["chat_template"] = chat_template
        named = {name: self.settings[name] for name in (*NAMED, *LISTED) if self.settings.get(name)}
        (directory / "tokenizer.json").write_text(self.source, encoding="utf-8")
        if self.sentencepiece is not None:
            (directory / "tokenizer.model").write_bytes(self.sentencepiece)
        for name, content in (("tokenizer_config.json", settings), ("special_tokens_map.json", named)):
            text = json.dumps(content, indent=2, ensure_ascii=False)
            (directory / name).write_text(text + "\n", encoding="utf-8")

    @cached_property
    def fingerprint(self) -> str:
        """A hash of what determines ids: two tokenizers that share it give the same ids for every text."""
        vocabulary = self._completed()
        parts = [vocabulary.get(key) for key in ("added_tokens", "normalizer", "pre_tokenizer", "model")]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _apart(self) -> tokenizers.Tokenizer | None:
        """The library's tokenizer under its own names, where decoding may change how one of them reads."""
        if any(SPACE in name for name in self._names):
            return tokenizers.Tokenizer.from_str(json.dumps(self._completed()))
        return None

    def _check_numbers(self, added: list[Any]) -> None:
        """ValueError where the library, which numbers added tokens one after the other, has other ids."""
        for content, wanted in ((token["content"], token["id"]) for token in added):
            found = self._twin.token_to_id(self._spelled.get(content) or content)
            if found != wanted:
                raise ValueError(
                    f"the added token {content!r} has the number {wanted}, where {found} is next: "
                    "tokens between are missing"
                )

    def _completed(self) -> dict[str, Any]:
        vocabulary = json.loads(self.source)
        check_vocabulary(vocabulary)
        complete(vocabulary, self.settings)
        return vocabulary

    def _spell(self, piece: Piece) -> str:
        return self._spelled[piece.text] if piece.control else plain(piece.text)

    def _marked(self, pieces: Sequence[Piece], texts: list[str], encoding: tokenizers.Encoding) -> Encoded:
        if not encoding.ids:
            return Encoded([], [], [])
        starts = np.array(encoding.offsets, dtype=np.int64)[:, 0]
        if self._reaches_left:
            _move_to_sentinels(starts, encoding.ids, self._control_ids, "".join(texts))
        ends = np.cumsum([len(text) for text in texts])
        piece_of = np.searchsorted(ends, starts, side="right")
        learned = np.array([piece.learned for piece in pieces])
        spans = np.stack([starts, np.array(encoding.offsets, dtype=np.int64)[:, 1]], axis=1)
        _move_to_words(piece_of, spans, ends, learned, "".join(texts))
        weights = learned.astype(np.float64)[piece_of]
        roles = np.array([piece.role for piece in pieces])[piece_of]
        return Encoded(encoding.ids, weights.tolist(), roles.tolist())

    def _id_of(self, name: str) -> int | None:
        return self.control.get(self.named[name]) if name in self.named else None


def _move_to_sentinels(starts: np.ndarray, tokens: list[int], control: frozenset[int], text: str) -> None:
    """Let control tokens that strip the space on their left start at their sentinels, not in that space."""
    for place, token in enumerate(tokens):
        if token in control and text[starts[place] : starts[place] + 1] != OPEN:
            starts[place] = max(text.find(OPEN, starts[place]), starts[place])


def _move_to_words(
    piece_of: np.ndarray, spans: np.ndarray, ends: np.ndarray, learned: np.ndarray, text: str
) -> None:
    """Let tokens that have only white space before a learned piece and words in it belong to that piece."""
    last = np.searchsorted(ends, spans[:, 1] - 1, side="right")
    for token in np.flatnonzero((last > piece_of) & learned[last] & ~learned[piece_of]):
        (start, end), border = spans[token], ends[last[token] - 1]
        if not text[start:border].strip() and text[border:end].strip():
            piece_of[token] = last[token]


def _library(source: str) -> tokenizers.Tokenizer:
    """The library's tokenizer; ValueError for what it cannot read."""
    try:
        return tokenizers.Tokenizer.from_str(source)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of its Rust code, and no Exception
            raise
        raise ValueError(str(error)) from error


def _byte_tokens(vocabulary: dict[str, Any]) -> frozenset[int]:
    """The tokens `<0x00>` to `<0xFF>` of a vocabulary that spells unknown characters in bytes."""
    if not vocabulary["model"].get("byte_fallback"):
        return frozenset()
    ids = model_ids(vocabulary)
    return frozenset(ids[name] for name in (f"<0x{byte:02X}>" for byte in range(256)) if name in ids)
