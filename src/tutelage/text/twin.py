"""The twin of a tokenizer, in which no text a person can type is a control token.

The twin gives the same ids, but its control tokens are spelled as sentinels, `U+FDD0 index U+FDD1`. Those two
code points are noncharacters: Unicode forbids them in interchanged text, and user text that has them all the
same gets U+FFFD in their place. So a template writes sentinels, user text goes in as it is, and the whole is
tokenized at once, which is what makes the ids exactly those of the official templates."""

import re
from collections.abc import Sequence
from typing import Any

OPEN, CLOSE = "\ufdd0", "\ufdd1"
_SENTINEL = re.compile(f"{OPEN}([0-9]{{1,7}}){CLOSE}")
# Half a surrogate pair, which JSON can smuggle in as "\ud800", has no UTF-8 at all.
_UNUSABLE = re.compile(f"[{OPEN}{CLOSE}\ud800-\udfff]")


def plain(text: str) -> str:
    """User text as the twin may see it: without sentinels, and valid Unicode."""
    return text if text.isascii() else _UNUSABLE.sub("\ufffd", text)


def sentinels(control: dict[str, int]) -> dict[str, str]:
    """How the twin spells each control token."""
    return {name: f"{OPEN}{index}{CLOSE}" for index, name in enumerate(control)}


def named_again(text: str, names: Sequence[str]) -> str:
    """Text that the twin decoded, its sentinels replaced by the control tokens they stand for."""
    return _SENTINEL.sub(lambda found: names[int(found[1])] if int(found[1]) < len(names) else found[0], text)


def twin_of(vocabulary: dict[str, Any], control: dict[str, int]) -> dict[str, Any]:
    """The twin of a parsed tokenizer.json: no BOS or EOS of its own accord, no truncation, no padding."""
    spelled = sentinels(control)
    twin = {**vocabulary, "post_processor": None, "truncation": None, "padding": None}
    # with a space put before it nothing would find a sentinel; other normalisers leave it as it is
    prepends = "'Prepend'" in str(vocabulary.get("normalizer"))
    twin["added_tokens"] = [
        {
            **token,
            "content": spelled[token["content"]],
            "normalized": token.get("normalized", False) and not prepends,
        }
        if token["content"] in spelled
        else token
        for token in vocabulary["added_tokens"]
    ]
    twin["model"] = _renamed(vocabulary["model"], spelled)
    return twin


def _renamed(model: dict[str, Any], spelled: dict[str, str]) -> dict[str, Any]:
    """The model with control tokens renamed wherever they stand, so that no merge and no word gives one."""
    model = dict(model)
    known = model.get("vocab")
    if isinstance(known, dict):
        if spelled.keys() & known.keys():
            model["vocab"] = {spelled.get(token, token): index for token, index in known.items()}
            if "merges" in model:
                model["merges"] = [merge for merge in model["merges"] if not _makes(merge, spelled)]
    elif isinstance(known, list):  # Unigram: [token, score] by id
        model["vocab"] = [[spelled.get(token, token), score] for token, score in known]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = spelled.get(model["unk_token"], model["unk_token"])
    return model


def _makes(merge: str | list[str], spelled: dict[str, str]) -> bool:
    """Whether a merge takes or gives the text of a control token."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left + right in spelled or left in spelled or right in spelled
