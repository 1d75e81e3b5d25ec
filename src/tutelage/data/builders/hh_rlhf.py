"""Anthropic's helpful and harmless conversations (https://arxiv.org/abs/2204.05862): two endings of each."""

import re
from typing import Any

from tutelage.data.builders.records import Messages, Ranked

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_WIDE = re.compile(r"([,.?!]) {2,}(?=\S)")


def ranked_of(row: dict[str, Any]) -> Ranked | str:
    """The common dialogue with its better and its worse ending, or why the whole pair is skipped."""
    endings = []
    for key in ("chosen", "rejected"):
        text = row.get(key)
        if not isinstance(text, str):
            return f"it has no {key} that is a string"
        messages = dialogue(text)
        if isinstance(messages, str):
            return f"{key} {messages}"
        endings.append(messages)
    chosen, rejected = endings
    if chosen[:-1] != rejected[:-1]:
        return "chosen and rejected do not share the prompt"
    return Ranked(chosen[:-1], [chosen[-1]["content"], rejected[-1]["content"]])


def dialogue(text: str) -> Messages | str:
    """The turns of one text, or what is wrong with it in a few words."""
    start, *parts = _TURN.split(text)
    if start.strip() or not parts:
        return 'does not begin with "\\n\\nHuman:"'
    speakers = [_ROLES[name] for name in parts[::2]]
    if speakers != ["user", "assistant"] * (len(speakers) // 2):
        return "does not take turns, from the human's to the assistant's"
    said = [_WIDE.sub(r"\1 ", part).strip() for part in parts[1::2]]
    if not all(said):
        return "has an empty turn"
    return [{"role": role, "content": content} for role, content in zip(speakers, said, strict=True)]
