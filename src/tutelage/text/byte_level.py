"""BPE over bytes, as the `tokenizers` library executes it, and the ways in which models cut text before it.

Cuts are named as llama.cpp names them: https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_QWEN35 = _QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}", r"[^\s\p{L}\p{M}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True, slots=True)
class Cut:
    """Each pattern in turn cuts what the ones before it left; what it does not match stands alone too."""

    patterns: tuple[str, ...]
    composes: bool = False  # whether characters are composed first, as Unicode's form C has them
    whole: bool = False  # whether a cut that is a token is taken whole, whatever the merges say


CUTS = {
    "gpt-2": Cut((_GPT2,)),
    "mpt": Cut((_GPT2,), composes=True),
    "smollm": Cut((r"\p{N}", _GPT2)),
    "starcoder": Cut((r"\p{N}", _GPT2)),
    "refact": Cut((r"\p{N}", _GPT2)),
    "command-r": Cut((r"\p{N}", _GPT2), composes=True),
    "falcon": Cut((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "deepseek-coder": Cut(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}")),
    "llama-bpe": Cut((_LLAMA3,), whole=True),
    "dbrx": Cut((_LLAMA3,)),
    "tekken": Cut((_TEKKEN,), whole=True),
    "qwen2": Cut((_QWEN2,), composes=True),
    "qwen35": Cut((_QWEN35,)),
}


def byte_level(
    ids: dict[str, int], merges: Sequence[str], cut: Cut, *, whole: bool | None = None
) -> dict[str, Any]:
    """The parts of a tokenizer.json; tokens are spelled as GPT-2 does. A merge is "left right";
    `whole` overrides the cut's."""
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in cut.patterns
    ]
    spell = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "normalizer": {"type": "NFC"} if cut.composes else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, spell]},
        "post_processor": None,
        "decoder": spell | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": cut.whole if whole is None else whole,
            "vocab": ids,
            "merges": merges,
        },
    }


def ranked(ranks: dict[bytes, int], cut: Cut, *, first: int = 0) -> dict[str, Any]:
    """The same of tiktoken's ranks, the ids beginning at `first`.

    tiktoken joins the two neighbours that make the token of the lowest rank; so each way to cut a token in
    two is a merge, and they are ordered by what they make. What is a token already is never cut."""
    spelled = {token: spelling(token) for token in ranks}
    merges = []
    for token, rank in ranks.items():
        cuts = ((token[:i], token[i:]) for i in range(1, len(token)))
        merges += [
            (rank, ranks[left], ranks[right], left, right)
            for left, right in cuts
            if left in ranks and right in ranks
        ]
    found = [f"{spelled[left]} {spelled[right]}" for *_, left, right in sorted(merges)]
    ids = {spelled[token]: rank + first for token, rank in ranks.items()}
    return byte_level(ids, found, cut, whole=True)


def spelling(token: bytes) -> str:
    """Bytes as GPT-2 spells them: printable Latin-1 as it is, what is not from U+0100 on."""
    return token.decode("latin-1").translate(_SPELLED)


_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_SPELLED = {byte: 256 + place for place, byte in enumerate(sorted(set(range(256)) - set(_PRINTABLE)))}
