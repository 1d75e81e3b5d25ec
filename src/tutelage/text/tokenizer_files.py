"""The kinds of file that hold a tokenizer, each read into the text of a tokenizer.json and settings."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.errors import UserError
from tutelage.text.ranks import is_ranks, parse_tekken, tekken_files, tiktoken_files
from tutelage.text.sentencepiece_file import tokenizer_json
from tutelage.text.special_tokens import added_beside, bounds, content_of, model_ids, read_settings
from tutelage.text.word_merges import CLASSES, word_merges_files

_Made = tuple[dict[str, Any], dict[str, Any]]
# What a directory without tokenizer.json may hold; the first that is there counts.
_MODELS = ("tokenizer.model", "spiece.model", "tekken.json", "qwen.tiktoken")
_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
_HALVES = frozenset(name for pair in _PAIRS for name in pair)
# All that a tokenizer may be read from, here or by transformers: beside another model they would be wrong.
TOKENIZER_FILES = (
    "tokenizer.json",
    *_MODELS,
    *sorted(_HALVES),
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    source: str  # the text of a tokenizer.json
    settings: dict[str, Any]  # what a tokenizer_config.json says
    path: Path  # the file the vocabulary was read from
    sentencepiece: bytes | None = None  # the tokenizer.model, where it is SentencePiece's


def is_tokenizer_file(path: Path) -> bool:
    """Whether a file's name is that of a tokenizer of some kind."""
    name = path.name
    return (
        name in ("tokenizer.json", *_HALVES)
        or path.suffix in (".model", ".tiktoken")
        or ".model." in name
        or (name.startswith("tekken") and path.suffix == ".json")
    )


def read_files(path: Path) -> TokenizerFiles:
    """The tokenizer that a file of any kind holds, or the first one that a directory has."""
    if not path.is_file():
        return _of_directory(path)
    if path.name == "tokenizer.json":
        return _as_it_is(path)
    for vocabulary, merges in _PAIRS:
        if path.name in (vocabulary, merges):
            return _of_pair(path.with_name(vocabulary), path.with_name(merges))
    return _of_model(path)


def _of_directory(directory: Path) -> TokenizerFiles:
    path = directory / "tokenizer.json"
    if path.is_file():
        return _as_it_is(path)
    for name in _MODELS:
        if (directory / name).is_file():
            return _of_model(directory / name)
    for vocabulary, merges in _PAIRS:
        if (directory / vocabulary).is_file():
            return _of_pair(directory / vocabulary, directory / merges)
    raise UserError(
        f"{directory} has no tokenizer.json and no {', '.join(_MODELS)}, nor vocab.json and merges.txt; "
        "put the model's own there (transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...) "
        "writes it), or name its directory by --tokenizer, which convert, doctor, generate and chat have"
    )


def _as_it_is(path: Path) -> TokenizerFiles:
    model = path.with_name("tokenizer.model")
    content = model.read_bytes() if model.is_file() else b""
    try:
        source = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a tokenizer that can be read: {error}") from error
    kept = None if not content or is_ranks(content) else content
    settings = read_settings(path.parent)
    return TokenizerFiles(_prefixed(source, settings), settings, path, kept)


def _prefixed(source: str, settings: dict[str, Any]) -> str:
    """A tokenizer.json that puts a space before a text if the settings say so, for classes that heed them."""
    reader = str(settings.get("tokenizer_class")).removesuffix("Fast")
    if reader not in CLASSES or not settings.get("add_prefix_space") or '"ByteLevel"' not in source:
        return source
    try:
        made = json.loads(source)
    except ValueError:
        return source  # which is refused where it is read
    cut = made.get("pre_tokenizer") or {}
    if reader == "GPT2Tokenizer":  # it cuts text itself, after the one space; Qwen's has one for every word
        cut = made["pre_tokenizer"] = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    for part in (cut, *cut.get("pretokenizers", ())):
        if part.get("type") == "ByteLevel":
            part["add_prefix_space"] = True
    return json.dumps(made, ensure_ascii=False)


def _of_model(path: Path) -> TokenizerFiles:
    content = path.read_bytes()
    if path.suffix == ".json":
        return _made(path, lambda: tekken_files(parse_tekken(content)))
    if path.suffix == ".tiktoken" or is_ranks(content):
        return _made(path, lambda: tiktoken_files(content))
    return _made(path, lambda: tokenizer_json(content), content)


def _of_pair(vocabulary: Path, merges: Path) -> TokenizerFiles:
    for path, other in ((vocabulary, merges), (merges, vocabulary)):
        if not path.is_file():
            raise UserError(f"{path} is missing: it belongs to {other}")
    settings = added_beside(read_settings(vocabulary.parent), vocabulary.parent)
    try:
        ids, pairs = json.loads(vocabulary.read_text(encoding="utf-8")), merges.read_text(encoding="utf-8")
    except ValueError as error:
        raise UserError(f"{vocabulary} and {merges.name} cannot be read: {error}") from error
    return _made(vocabulary, lambda: word_merges_files(ids, pairs, settings))


def _made(path: Path, make: Callable[[], _Made], sentencepiece: bytes | None = None) -> TokenizerFiles:
    settings = read_settings(path.parent)
    settings = added_beside(settings, path.parent, normalized=sentencepiece is None)
    try:
        made, named = make()
    except ValueError as error:
        raise UserError(
            f"{path} cannot be used: {error}; save a tokenizer.json beside it with transformers' "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        ) from error
    settings = {**named, **settings}
    made["post_processor"] = _around(made, settings)
    source = _prefixed(json.dumps(made, ensure_ascii=False), settings)
    return TokenizerFiles(source, settings, path, sentencepiece)


def _around(made: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any] | None:
    """What goes before and behind a text: as the settings say, or else as the kind of file has it."""
    ids = model_ids(made) | {token["content"]: token["id"] for token in made["added_tokens"]}
    begins = settings.get("add_bos_token", made["post_processor"] is not None)
    around = []
    for name, wanted in (("bos_token", begins), ("eos_token", settings.get("add_eos_token"))):
        content = content_of(settings.get(name))
        around.append((content, ids[content]) if wanted and content is not None and content in ids else None)
    return bounds(*around)
