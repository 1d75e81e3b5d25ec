"""What a conversation must look like before any template may render it, and its one plain form.

Messages are those of OpenAI's API: content is a string or a list of text parts, an assistant's may have
`tool_calls` and `reasoning_content`, a tool's `name` and `tool_call_id`. The tools that a record lists ride
on its first message, under `tools`, so that a conversation stays a list of messages wherever it goes.
"""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from tutelage.text.roles import MESSAGE_ROLES

Message = dict[str, Any]
NO_TEXT = "\0bytes"  # the one key of what stands for bytes that are not UTF-8, in rows of tables
_SURROGATE = re.compile("[\ud800-\udfff]")
# What may stand before a message of each role, among the messages after the optional system message.
_MAY_FOLLOW = {"user": ("assistant",), "assistant": ("user", "tool"), "tool": ("assistant", "tool")}
_RICH = ("tools", "tool_calls", "reasoning_content", "tool_call_id", "name")


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


def with_tools(messages: Any, tools: Any) -> Any:
    """The messages of a record, with its list of tools, if any, on the first of them.

    Tables, whose rows have all the same keys, hold such a list as JSON text."""
    if isinstance(tools, str):
        with suppress(ValueError, RecursionError):
            tools = json.loads(tools)
    if not tools or not isinstance(messages, list) or not messages or not isinstance(messages[0], dict):
        return messages
    return [{**messages[0], "tools": tools}, *messages[1:]]


def plain_messages(messages: Sequence[Message]) -> list[Message]:
    """A faultless conversation with every content a string, and calls as `{name, arguments, id}`.

    `arguments` are an object; a call without an id has None. Keys that say nothing are left out."""
    return [_plain(message) for message in messages]


def _plain(message: Message) -> Message:
    content = message.get("content")
    if isinstance(content, str) and len(message) == 2:
        return message
    if not isinstance(content, str):
        content = "".join(part["text"] for part in content or ())
    made = {"role": message["role"], "content": content}
    for key in _RICH:
        if message.get(key):
            made[key] = message[key]
    if calls := made.get("tool_calls"):
        made["tool_calls"] = [_plain_call(call) for call in calls]
    return made


def _plain_call(call: Message) -> Message:
    function = call.get("function", call)
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    return {"name": function["name"], "arguments": arguments, "id": call.get("id")}


def _fault_of_one(message: Any) -> str | None:
    if not isinstance(message, dict):
        return f"is {kind_of(message)}, not an object with role and content"
    if "role" not in message:
        return "has no role"
    if not isinstance(message["role"], str):
        return f"has a role that is {kind_of(message['role'])}, not a string"
    calls = message.get("tool_calls")
    if fault := _fault_of_content(message, optional=bool(calls)):
        return fault
    if message["role"] not in MESSAGE_ROLES:
        return f"has the unknown role {message['role'][:40]!r}; roles are {', '.join(MESSAGE_ROLES)}"
    return _fault_of_rich(message) if len(message) > 2 else None


def _fault_of_content(message: Message, *, optional: bool) -> str | None:
    if message.get("content") is None and optional:
        return None
    if "content" not in message:
        return "has no content"
    content = message["content"]
    if isinstance(content, list):
        for number, part in enumerate(content, start=1):
            kind = part.get("type") if isinstance(part, dict) else kind_of(part)
            if kind != "text":
                return f"has a content whose part {number} is {kind}; only parts of type text can be read"
            if not isinstance(part.get("text"), str):
                return f"has a content whose part {number} has no text"
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        return f"has a content that is {kind_of(content)}, not a string"
    return (
        "has a content with half a surrogate pair, which is no character"
        if has_half_character(content)
        else None
    )


def _fault_of_rich(message: Message) -> str | None:
    """What is wrong with the keys that only some messages have."""
    for key in ("reasoning_content", "tool_call_id", "name"):
        if not isinstance(message.get(key) or "", str):
            return f"has a {key} that is {kind_of(message[key])}, not a string"
    calls, tools = message.get("tool_calls"), message.get("tools")
    if calls and message["role"] != "assistant":
        return (
            f"has tool_calls, which only an assistant message may, and is {with_article(message['role'])}'s"
        )
    if message.get("reasoning_content") and message["role"] != "assistant":
        return "has reasoning_content, which only an assistant message may"
    for key, listed in (("tool_calls", calls), ("tools", tools)):
        if listed is not None and not isinstance(listed, list):
            return f"has {key} that are {kind_of(listed)}, not a list"
    for number, tool in enumerate(tools or (), start=1):
        if not isinstance(tool, dict):
            return f"has tools whose entry {number} is {kind_of(tool)}, not an object"
    for number, call in enumerate(calls or (), start=1):
        if fault := _fault_of_call(call):
            return f"has tool_calls whose entry {number} {fault}"
    if has_half_character(json.dumps([message.get(key) for key in _RICH], ensure_ascii=False)):
        return "has half a surrogate pair, which is no character, beside its content"
    return None


def _fault_of_call(call: Any) -> str | None:
    function = call.get("function", call) if isinstance(call, dict) else call
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return "has no function with a name"
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return "has arguments that are not JSON"
    if not isinstance(arguments, dict):
        return f"has arguments that are {kind_of(arguments)}, not an object"
    if not isinstance(call.get("id") or "", str):
        return f"has an id that is {kind_of(call['id'])}, not a string"
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
    """A value's type as JSON calls it; bytes of a table that no text could be made of are called so."""
    if isinstance(value, dict) and NO_TEXT in value:
        return "bytes that are not UTF-8"
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number"}
    names |= {str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")
