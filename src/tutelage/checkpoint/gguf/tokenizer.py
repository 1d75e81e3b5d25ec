"""A `tokenizer.json`, as the `tokenizers` library reads it, rebuilt from the vocabulary in a GGUF file."""

from typing import Any

from tutelage.checkpoint.gguf.cuts import cut_called
from tutelage.checkpoint.gguf.file import Header
from tutelage.errors import UserError
from tutelage.text import sentencepiece_model
from tutelage.text.byte_level import byte_level
from tutelage.text.sentencepiece_model import Kind, Vocabulary, added_tokens
from tutelage.text.special_tokens import bounds


def tokenizer_parts(header: Header) -> tuple[dict[str, Any], dict[str, Any]]:
    """`tokenizer.json` and `tokenizer_config.json`, parsed."""
    settings = header.settings
    model = settings.get("tokenizer.ggml.model")
    if model is None:
        raise UserError(f"{header.path} carries no tokenizer; give the directory of one")
    tokens = _listed(header, "tokens", str)
    kinds: list[int] = [Kind.NORMAL] * len(tokens)
    if settings.get("tokenizer.ggml.token_type"):
        kinds = _listed(header, "token_type", int, len(tokens))
    if model == "gpt2":
        parts = _byte_level(header, tokens, kinds)
    elif model == "llama":
        parts = _sentencepiece(header, tokens, kinds)
    else:
        raise UserError(
            f"{header.path}: its tokenizer is of kind {model!r}, which is not supported; "
            "supported are gpt2, llama"
        )
    special = {name: _named(header, tokens, key) for name, key in _SPECIAL.items()}
    added = (Kind.CONTROL, Kind.USER_DEFINED) if model == "gpt2" else (*_ADDED, Kind.UNKNOWN)
    tokenizer_json = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens(tokens, kinds, added),
        **parts,
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{name: content for name, content in special.items() if content is not None},
    }
    around = [("bos_token", model == "llama"), ("eos_token", False)]
    tokenizer_json["post_processor"] = bounds(
        *(
            (content, settings[f"tokenizer.ggml.{_SPECIAL[name]}"])
            if settings.get(f"tokenizer.ggml.add_{name}", unsaid) and (content := special[name])
            else None
            for name, unsaid in around
        )
    )
    if model == "llama" and settings.get("general.architecture") == "phi3":
        _strip_after_control(tokenizer_json["added_tokens"])
    if template := settings.get("tokenizer.chat_template"):
        config["chat_template"] = template
    return tokenizer_json, config


_ADDED = (Kind.CONTROL, Kind.USER_DEFINED)
_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def _strip_after_control(added: list[dict[str, Any]]) -> None:
    """Phi-3's control tokens take the space and the line ends behind them, which no GGUF file says.

    As llama.cpp has it, by the name of the model: src/llama-vocab.cpp."""
    for token in added:
        token["rstrip"] = token["content"] not in ("<unk>", "<s>", "<|endoftext|>")


def _listed(header: Header, key: str, kind: type, count: int | None = None) -> list[Any]:
    """The list that a setting is, all of one kind, and of so many if that is known."""
    values = header.settings.get(f"tokenizer.ggml.{key}")
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise UserError(
            f"{header.path} has no list of tokenizer.ggml.{key}; give the directory of a tokenizer"
        )
    if count is not None and len(values) != count:
        raise UserError(
            f"{header.path}: tokenizer.ggml.{key} are {len(values)}, and there are {count} tokens"
        )
    return values


def _named(header: Header, tokens: list[str], key: str) -> str | None:
    token = header.settings.get(f"tokenizer.ggml.{key}")
    if token is not None and not (isinstance(token, int) and 0 <= token < len(tokens)):
        raise UserError(
            f"{header.path}: tokenizer.ggml.{key} = {token!r}, and there are {len(tokens)} tokens"
        )
    return None if token is None else tokens[token]


def _byte_level(header: Header, tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    """GPT-2's BPE over bytes; what differs from model to model is how text is cut before."""
    cut = cut_called(header.settings.get("tokenizer.ggml.pre"), str(header.path))
    ids = {content: token for token, content in enumerate(tokens) if kinds[token] != Kind.UNUSED}
    merges = _listed(header, "merges", str)  # each "left right", which the library reads too
    return byte_level(ids, merges, cut)


def _sentencepiece(header: Header, tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    """SentencePiece's BPE, falling back to bytes, as Llama 2 has it."""
    settings = header.settings
    return sentencepiece_model.tokenizer_parts(
        Vocabulary(
            tokens,
            _listed(header, "scores", float, len(tokens)),
            kinds,
            unknown=settings.get("tokenizer.ggml.unknown_token_id", 0),
            prefix=settings.get("tokenizer.ggml.add_space_prefix", True),
        )
    )
