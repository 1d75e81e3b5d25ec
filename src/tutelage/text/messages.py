"""What a conversation must look like before any template may render it."""

import re
from typing import Any

from tutelage.text.roles import MESSAGE_ROLES

_SURROGATE = re.compile("[\ud800-\udfff]")
# What may stand before a message of each role, among the messages after the optional system message.
_MAY_FOLLOW = {"user": ("assistant",), "assistant": ("user", "tool"), "tool": ("assistant", "tool")}


def message_faults(messages: Any, *, answered: bool = True) -> str | None:
    """What is wrong with a conversation, in a few words, or None.

    With `answered=False` it may be a prompt, in which the assistant has said nothing yet."""
    if not isinstance(messages, (list, tuple)):
        return f"messages is {kind_of(messages)}, not a list"
    if not messages:
        return "messages is empty"
    for number, message in enumerate(messages, start=1):
        fault = _fault_of_one(message)
        if fault is not None:
            return f"message {number} {fault}"
    return _fault_of_order([message["role"] for message in messages], answered)


def _fault_of_one(message: Any) -> str | None:
    if not isinstance(message, dict):
        return f"is {kind_of(message)}, not an object with role and content"
    for key in ("role", "content"):
        if key not in message:
            return f"has no {key}"
        if not isinstance(message[key], str):
            return f"has a {key} that is {kind_of(message[key])}, not a string"
        if has_half_character(message[key]):
            return f"has a {key} with half a surrogate pair, which is no character"
    if message["role"] not in MESSAGE_ROLES:
        return f"has the unknown role {message['role'][:40]!r}; roles are {', '.join(MESSAGE_ROLES)}"
    return None


def _fault_of_order(roles: list[str], answered: bool) -> str | None:
    turns = roles[1:] if roles[0] == "system" else roles
    first = 1 + len(roles) - len(turns)
    if "system" in turns:
        return f"message {first + turns.index('system')} is a system message, which may only come first"
    if not turns:
        return "has a system message and nothing else"
    if turns[0] != "user":
        return f"message {first} is {with_article(turns[0])} message, but a conversation opens with the user"
    for number, (before, role) in enumerate(zip(turns, turns[1:], strict=False), start=first + 1):
        if before not in _MAY_FOLLOW[role]:
            return (
                f"message {number} is {with_article(role)} message right after {with_article(before)} message"
            )
    if answered and "assistant" not in turns:
        return "has no assistant message"
    return None


def with_article(role: str) -> str:
    """A role in a sentence: "a user", "an assistant"."""
    return f"an {role}" if role == "assistant" else f"a {role}"


def has_half_character(text: str) -> bool:
    """Whether a text has half a surrogate pair, which JSON can spell and UTF-8 cannot."""
    return not text.isascii() and _SURROGATE.search(text) is not None


def kind_of(value: Any) -> str:
    """A value's type as JSON calls it."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number"}
    names |= {str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")
