"""What is whose in a text that a stranger's Jinja template wrote: messages go in marked and are so found.

    U+FDD2 U+FDD3   the template's own `{% generation %}` and its end, see `jinja_process.py`
    U+FDD5          a message's words end; U+FDD6 and on: they begin, one for each role
    U+FDDF          stands inside a control token that somebody typed, so that it is none

These code points are noncharacters, which no text may have; where one has them all the same, U+FFFD is put
in their place. Nothing is taken on trust: the marked text, without its marks, must be what the template
writes of the plain messages."""

import re
from typing import Any

from tutelage.text.messages import Message
from tutelage.text.pieces import Piece
from tutelage.text.roles import MESSAGE_ROLES, ROLE_IDS
from tutelage.text.sandbox import LEARNED_BEGIN, LEARNED_END

WORDS_END, TYPED = "\ufdd5", "\ufddf"
WORDS_BEGIN = {role: chr(0xFDD6 + index) for index, role in enumerate(MESSAGE_ROLES)}
_ROLE_OF = {mark: ROLE_IDS[role] for role, mark in WORDS_BEGIN.items()}
_MARKS = "[\ufdd0-\ufdef]"
_ANY_MARK = re.compile(_MARKS)
OTHER, ASSISTANT = ROLE_IDS["other"], ROLE_IDS["assistant"]


def clean(value: Any) -> Any:
    """A value as messages have it, without code points that mean something here."""
    return _mapped(value, lambda text: text if text.isascii() else _ANY_MARK.sub("\ufffd", text))


def typed(value: Any, control: re.Pattern[str]) -> Any:
    """A value in which no text has a control token."""
    return _mapped(value, lambda text: control.sub(lambda found: found[0][0] + TYPED + found[0][1:], text))


def marked(message: Message, control: re.Pattern[str]) -> Message:
    """A message that can be found again: its words stand in marks, inside the white space around them."""
    message = typed(message, control)
    content = message["content"]
    words = content.strip() if isinstance(content, str) else ""
    if not words:
        return message
    start = content.index(words)
    inside = WORDS_BEGIN[message["role"]] + words + WORDS_END
    return {**message, "content": content[:start] + inside + content[start + len(words) :]}


def has_words(text: str) -> bool:
    """Whether what somebody says, its beginning or its end, stands in a marked text."""
    return not text.isascii() and any(mark in text for mark in (WORDS_END, *_ROLE_OF))


def unmarked(text: str) -> str:
    return text if text.isascii() else _ANY_MARK.sub("", text)


def marked_spans(text: str) -> list[tuple[int, int]]:
    """What stands in `{% generation %}`, as places in the marked text; neighbours are joined."""
    spans: list[tuple[int, int]] = []
    at = 0
    while (start := text.find(LEARNED_BEGIN, at)) >= 0:
        at = text.index(LEARNED_END, start)
        if spans and not unmarked(text[spans[-1][1] : start]):
            spans[-1] = (spans[-1][0], at)
        else:
            spans.append((start, at))
    return spans


def pieces_of(text: str, spans: list[tuple[int, int]], learned: int, control: re.Pattern[str]) -> list[Piece]:
    """The pieces of a marked text. In `spans` all is the assistant's; the last `learned` are learned."""
    cuts = sorted({0, len(text), *(place for span in spans for place in span)})
    first_learned = spans[-learned][0] if learned and spans else len(text)
    starts = {start for start, _ in spans}
    pieces: list[Piece] = []
    role = OTHER
    for start, end in zip(cuts, cuts[1:], strict=False):
        inside = start in starts
        for part in re.split(f"({_MARKS}|{control.pattern})", text[start:end]):
            if part in _ROLE_OF:
                role = _ROLE_OF[part]
            elif part == WORDS_END:
                role = OTHER
            elif part and not _ANY_MARK.fullmatch(part):
                whose = ASSISTANT if inside else role
                is_control = control.fullmatch(part) is not None
                pieces.append(Piece(part, whose, inside and start >= first_learned, is_control))
    return pieces


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_mapped(key, change): _mapped(each, change) for key, each in value.items()}
    return [_mapped(each, change) for each in value] if isinstance(value, list) else value
