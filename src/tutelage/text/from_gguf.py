"""The tokenizer inside a GGUF file, as the tokenizer.json and the settings of a Hugging Face directory."""

import json
from pathlib import Path
from typing import Any

from tutelage.errors import UserError

_CONTROL, _USER_DEFINED = 3, 4  # token types of the format
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")


def read_gguf_tokenizer(path: Path) -> tuple[str, dict[str, Any]]:
    """The text of a tokenizer.json and the content of a tokenizer_config.json."""
    from gguf import GGUFReader  # slow to import, and only few models come this way

    fields = GGUFReader(str(path)).fields
    kind, words = (_field(fields, f"tokenizer.ggml.{key}", path) for key in ("model", "pre"))
    if kind != "gpt2" or words not in _SPLITS:
        raise UserError(
            f"{path} has a tokenizer of kind {kind}/{words}; out of a GGUF file only gpt2 ones can be read "
            f"({', '.join(_SPLITS)}); use the model's Hugging Face directory instead"
        )
    tokens = _field(fields, "tokenizer.ggml.tokens", path)
    types = _field(fields, "tokenizer.ggml.token_type", path)
    merges = _field(fields, "tokenizer.ggml.merges", path)
    vocabulary = _vocabulary(tokens, types, merges, words)
    return json.dumps(vocabulary, ensure_ascii=False), _settings(fields, tokens)


def _vocabulary(tokens: list[str], types: list[int], merges: list[str], words: str) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(index, token, special=kind == _CONTROL)
            for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind in (_CONTROL, _USER_DEFINED)
        ],
        "normalizer": {"type": "NFC"} if words == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _SPLITS[words]},
        "post_processor": None,
        "decoder": _byte_level(use_regex=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": words == "llama-bpe",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": merges,
        },
    }


def _added(index: int, token: str, *, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": token, **flags, "special": special}


def _settings(fields: dict[str, Any], tokens: list[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {"clean_up_tokenization_spaces": False}
    keys = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    for key, name in keys.items():
        field = fields.get(f"tokenizer.ggml.{key}_token_id")
        if field is not None:
            settings[name] = tokens[field.contents()]
    if "tokenizer.chat_template" in fields:
        settings["chat_template"] = fields["tokenizer.chat_template"].contents()
    return settings


def _field(fields: dict[str, Any], name: str, path: Path) -> Any:
    if name not in fields:
        raise UserError(f"{path} has no {name}, so its tokenizer cannot be read")
    return fields[name].contents()


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(words: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False}


# How text is cut before merges apply, by the name that llama.cpp gives it.
_SPLITS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_byte_level(use_regex=True)],
    "smollm": [{"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True)],
    "llama-bpe": [_split(_LLAMA3_WORDS), _byte_level(use_regex=False)],
    "qwen2": [_split(_QWEN2_WORDS), _byte_level(use_regex=False)],
}
