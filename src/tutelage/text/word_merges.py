"""A byte-level vocabulary as GPT-2 and Qwen ship it: the tokens in one file, their merges in another."""

from typing import Any

from tutelage.text.byte_level import CUTS, byte_level
from tutelage.text.special_tokens import NAMED, content_of

# How text is cut stands in neither file, but in the class that reads them.
_END = "<|endoftext|>"
CLASSES = {
    "GPT2Tokenizer": ("gpt-2", {"bos_token": _END, "eos_token": _END, "unk_token": _END}),
    "Qwen2Tokenizer": ("qwen2", {"eos_token": _END, "pad_token": _END}),
}
_SIZES = {50257: "GPT2Tokenizer", 151643: "Qwen2Tokenizer"}  # the published vocabularies


def word_merges_files(
    ids: Any, merges: str, settings: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`tokenizer.json` and `tokenizer_config.json`, parsed; `settings` are those beside them.

    ValueError, saying why, where the two do not fit or nothing says how text is cut."""
    if not isinstance(ids, dict) or not all(isinstance(token, int) for token in ids.values()):
        raise ValueError("it is no vocabulary: an object of tokens and their numbers is wanted")
    reader = str(settings.get("tokenizer_class", _SIZES.get(len(ids)))).removesuffix("Fast")
    if reader not in CLASSES:
        raise ValueError(
            f"nothing says how text is cut before: {reader} is not known; "
            f"name {' or '.join(CLASSES)} as tokenizer_class in tokenizer_config.json"
        )
    cut, defaults = CLASSES[reader]
    given = {**defaults, **settings}
    named = {name: given[name] for name in NAMED if name in given}
    made = {"version": "1.0", "truncation": None, "padding": None}
    made |= {"added_tokens": _added(ids, settings, named), **byte_level(ids, _pairs(merges, ids), CUTS[cut])}
    return made, {"clean_up_tokenization_spaces": False, **named}


def _pairs(merges: str, ids: dict[str, int]) -> list[str]:
    pairs = []
    for number, line in enumerate(merges.split("\n"), 1):
        if not line or number == 1 and line.startswith("#version"):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2 or not {*pair, "".join(pair)} <= ids.keys():
            raise ValueError(
                f"its merges, line {number}: {line[:80]!r} is no pair of tokens that make a third"
            )
        pairs.append(" ".join(pair))
    return pairs


def _added(ids: dict[str, int], settings: dict[str, Any], named: dict[str, Any]) -> list[dict[str, Any]]:
    """The named tokens; those that no file numbers come after all others, as transformers puts them."""
    declared = {token["content"] for token in settings.get("added_tokens_decoder", {}).values()}
    known = {*ids.values(), *map(int, settings.get("added_tokens_decoder", {}))}
    contents = dict.fromkeys(
        content for token in named.values() if (content := content_of(token)) is not None
    )
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added, after = [], 1 + max(known, default=-1)
    for content in contents:
        if content not in declared:
            if content not in ids:
                after, place = after + 1, after
            else:
                place = ids[content]
            added.append({"id": place, "content": content, **flags})
    return added
