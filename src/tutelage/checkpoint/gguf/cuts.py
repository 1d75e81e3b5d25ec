"""How byte-level vocabularies cut a text before they merge, by the names that llama.cpp has for each way."""

from typing import Any

from tutelage.errors import UserError
from tutelage.text.byte_level import CUTS, Cut

_ALIASES = {  # of models that cut as another does
    "phi-2": "gpt-2",
    "olmo": "gpt-2",
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "smaug-bpe": "dbrx",
    "deepseek-r1-qwen": "qwen2",
}
# Other spellings of the same cuts. `tutelage tokenizer train`'s is Qwen 3.5's: a mark that may come first
# belongs to the letters either way, and of a run of blanks `\s*[\r\n]` takes as much as `\s*[\r\n]+`.
_SPELLINGS = {
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}"
        r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    ): CUTS["qwen35"].patterns[0],
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    ): CUTS["llama-bpe"].patterns[0],
}


def cut_called(name: str | None, where: str) -> Cut:
    """The way to cut that a GGUF file names."""
    known = _ALIASES.get(str(name), name)
    if known not in CUTS:
        raise UserError(
            f"{where}: its tokenizer cuts text in the way {name!r}, which is not supported; "
            f"supported are {', '.join(CUTS)}"
        )
    return CUTS[known]


def name_of_cut(vocabulary: dict[str, Any]) -> str:
    """The way that a parsed tokenizer.json cuts; UserError where llama.cpp has no name for it."""
    normalizer = vocabulary.get("normalizer")
    steps = _flat(vocabulary.get("pre_tokenizer"), "pretokenizers")
    patterns = tuple(pattern for step in steps for pattern in _patterns(step))
    alike = [name for name, cut in CUTS.items() if cut.patterns == patterns and _spells_bytes(steps)]
    whole = bool(vocabulary["model"].get("ignore_merges"))
    named = [name for name in alike if CUTS[name].whole == whole] or alike
    normal = all(part.get("type") == "NFC" for part in _flat(normalizer, "normalizers"))
    if not named or not normal:
        what = (
            "cuts text in a way" if normal else f"changes text before cutting ({_types(normalizer)}), a way"
        )
        raise UserError(
            f"the tokenizer {what} that llama.cpp has no name for, so it cannot be written as GGUF: its "
            f"tokens would be other ones there; named are those of {', '.join(CUTS)}"
        )
    return named[0]


def _flat(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer or a normalizer that may be a sequence of them."""
    if part is None:
        return []
    return part[key] if part.get("type") == "Sequence" else [part]


def _types(part: dict[str, Any] | None) -> str:
    return ", ".join(str(step.get("type")) for step in _flat(part, "normalizers"))


def _spells_bytes(steps: list[dict[str, Any]]) -> bool:
    """Whether the last step, and no other one, spells bytes as GPT-2 does, adding nothing."""
    spelling = [step["type"] == "ByteLevel" and not step.get("add_prefix_space") for step in steps]
    return spelling[-1:] == [True] and not any(spelling[:-1])


def _patterns(step: dict[str, Any]) -> list[Any]:
    """What a step cuts by, however it is spelled; None among them is no way of cutting that has a name."""
    kind = step["type"]
    if kind == "Split":
        pattern = step["pattern"].get("Regex")
        taken = (step["behavior"], step["invert"]) in (("Isolated", False), ("Removed", True))
        return [_SPELLINGS.get(pattern, pattern) if taken else None]
    if kind == "Digits":
        return [r"\p{N}" if step.get("individual_digits") else r"\p{N}+"]
    if kind == "ByteLevel":
        return list(CUTS["gpt-2"].patterns) if step.get("use_regex", True) else []
    return [None]
