"""How byte-level vocabularies cut a text before they merge, by the names that llama.cpp has for each way."""

from dataclasses import dataclass
from typing import Any

from tutelage.errors import UserError

_GPT4 = (  # OpenAI's cl100k
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _GPT4.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN35 = _QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"\s\p{L}\p{N}", r"\s\p{L}\p{M}\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Other spellings of the same cuts. `tutelage tokenizer train`'s is Qwen 3.5's: a mark that may come first
# belongs to the letters either way, and of a run of blanks `\s*[\r\n]` takes as much as `\s*[\r\n]+`.
_SPELLINGS = {
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}"
        r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    ): _QWEN35,
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    ): _GPT4,
}


def _bytes(*, cut: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": cut}


def _split(pattern: str) -> list[dict[str, Any]]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [split, _bytes(cut=False)]


DECODER = _bytes(cut=True)


@dataclass(frozen=True, slots=True)
class Cuts:
    """One way to cut."""

    name: str  # tokenizer.ggml.pre
    pre_tokenizers: list[dict[str, Any]]
    nfc: bool = False  # composes characters before, which llama.cpp leaves to who gives it the text
    whole: bool = False  # a cut that is a token is taken whole, whatever the merges
    aliases: tuple[str, ...] = ()  # of models that cut alike


_CUTS = [
    Cuts("gpt-2", [_bytes(cut=True)], aliases=("phi-2", "olmo")),
    Cuts("smollm", [{"type": "Digits", "individual_digits": True}, _bytes(cut=True)]),
    Cuts("llama-bpe", _split(_GPT4), whole=True, aliases=("llama3", "llama-v3")),
    Cuts("dbrx", _split(_GPT4), aliases=("smaug-bpe",)),
    Cuts("qwen2", _split(_QWEN2), nfc=True, aliases=("deepseek-r1-qwen",)),
    Cuts("qwen35", _split(_QWEN35)),  # Qwen 3.5 itself, which is not read yet, composes as Qwen 2 does
    Cuts("tekken", _split(_TEKKEN), whole=True),
]


def cuts_called(name: str | None, where: str) -> Cuts:
    """The way to cut that a GGUF file names."""
    for cuts in _CUTS:
        if name in (cuts.name, *cuts.aliases):
            return cuts
    known = ", ".join(cuts.name for cuts in _CUTS)
    raise UserError(
        f"{where}: its tokenizer cuts text in the way {name!r}, which is not supported; supported are {known}"
    )


def cuts_of(vocabulary: dict[str, Any]) -> Cuts:
    """The way that a parsed tokenizer.json cuts; UserError where llama.cpp has no name for it."""
    normalizer = vocabulary.get("normalizer")
    wanted = [_essence(part) for part in _flat(vocabulary.get("pre_tokenizer"), "pretokenizers")]
    alike = [cuts for cuts in _CUTS if [_essence(part) for part in cuts.pre_tokenizers] == wanted]
    whole = bool(vocabulary["model"].get("ignore_merges"))
    named = [cuts for cuts in alike if cuts.whole == whole] or alike[:1]
    normal = all(part.get("type") == "NFC" for part in _flat(normalizer, "normalizers"))
    if not named or not normal:
        what = (
            "cuts text in a way" if normal else f"changes text before cutting ({_types(normalizer)}), a way"
        )
        known = ", ".join(cuts.name for cuts in _CUTS)
        raise UserError(
            f"the tokenizer {what} that llama.cpp has no name for, so it cannot be written as GGUF: its "
            f"tokens would be other ones there; named are those of {known}"
        )
    return named[0]


def _flat(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer or a normalizer that may be a sequence of them."""
    if part is None:
        return []
    return part[key] if part.get("type") == "Sequence" else [part]


def _types(part: dict[str, Any] | None) -> str:
    return ", ".join(str(step.get("type")) for step in _flat(part, "normalizers"))


def _essence(part: dict[str, Any]) -> tuple[Any, ...]:
    """What of a step decides where it cuts, however it is spelled."""
    kind = part["type"]
    if kind == "Split":
        pattern = part["pattern"].get("Regex")
        taken = (part["behavior"], part["invert"]) in (("Isolated", False), ("Removed", True))
        return kind, _SPELLINGS.get(pattern, pattern), taken
    if kind == "ByteLevel":
        return kind, part.get("add_prefix_space"), part.get("use_regex", True)
    return kind, part.get("individual_digits")
