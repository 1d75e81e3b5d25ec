"""The shapes in which records hold conversations, and how each becomes a list of messages.

    messages    {"messages": [{"role", "content"}, ...]}
    sharegpt    {"conversations": [{"from", "value"}, ...]}, optionally "system"
    alpaca      {"instruction", "output"}, optionally "input", "system", "history": [[question, answer], ...];
                or lists of texts: "input" is then a system text, "instruction" and "output" are the turns
    completion  {"prompt", "completion"}: texts, or lists of messages
    text        {"text"}, or another of `TEXT_KEYS`: a plain document
    prompt      {"prompt"}: a text, or messages that end with the user; nothing is answered

Records that compare answers are the business of `comparison`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.text.messages import has_half_character, kind_of

Messages = list[dict[str, Any]]
CHAT_SHAPES = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "completion": ("prompt", "completion"),
}
SHAPES = (*CHAT_SHAPES, "text", "prompt")
TEXT_KEYS = ("text", "content", "raw_content", "story")  # under which records have a plain document
_SPEAKERS = {  # of ShareGPT and those who write like it
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "assistant",  # what the assistant says is then the call
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


def shapes_of(record: Mapping[str, Any]) -> list[str]:
    """The shapes of conversations that a record has all keys of; a null is no value."""
    return [shape for shape, keys in CHAT_SHAPES.items() if all(record.get(key) is not None for key in keys)]


def text_key(record: Mapping[str, Any]) -> str | None:
    """The key under which a record has a plain document; None if it has none."""
    return next((key for key in TEXT_KEYS if isinstance(record.get(key), str)), None)


def renamed(record: Any, fields: Sequence[tuple[str, str]]) -> Any:
    """The record with other names for some of its keys."""
    if not fields or not isinstance(record, dict):
        return record
    names = {name: new for name, new in fields if name in record}
    kept = {key: value for key, value in record.items() if key not in names and key not in names.values()}
    return {**kept, **{new: record[name] for name, new in names.items()}}


class Unfit(ValueError):
    """Why a record has no conversation of the shape that its file has, in a few words."""


def messages_of(record: dict[str, Any], shape: str) -> Any:
    """The conversation in a record of this shape, which may have faults of its own; raises `Unfit`."""
    for key in CHAT_SHAPES[shape]:
        _need(key, record)
    if shape == "messages":
        return record["messages"]
    if shape == "sharegpt":
        return _of_sharegpt(record)
    return _of_alpaca(record) if shape == "alpaca" else _of_completion(record)


def prompt_of(record: dict[str, Any], shape: str) -> Any:
    """The messages up to where the assistant would speak, in a record of this shape; raises `Unfit`."""
    if shape == "prompt":
        _need("prompt", record)
        return _spoken(record["prompt"], "prompt", "user")
    messages = messages_of(record, shape)
    if not isinstance(messages, list):
        return messages  # whose fault has words of its own
    end = len(messages)
    while end and isinstance(messages[end - 1], dict) and messages[end - 1].get("role") == "assistant":
        end -= 1
    if not end:
        raise Unfit("has nothing before the assistant speaks")
    return messages[:end]


def keys_of(record: Mapping[str, Any]) -> str:
    """The first keys of a record, in words."""
    return ", ".join(map(repr, list(record)[:5])) or "no keys"


def _need(key: str, record: Mapping[str, Any]) -> None:
    if key not in record:
        raise Unfit(f"no {key}; the object has {keys_of(record)}")
    if record[key] is None and key != "messages":
        raise Unfit(f"its {key} is null")


def _need_text(record: Mapping[str, Any], *keys: str) -> None:
    for key in keys:
        if record.get(key) is not None and not isinstance(record[key], str):
            raise Unfit(f"its {key} is {kind_of(record[key])}, not a string")


def _of_sharegpt(record: dict[str, Any]) -> Messages:
    turns = record["conversations"]
    if not isinstance(turns, list):
        raise Unfit(f"conversations is {kind_of(turns)}, not a list")
    if not turns:
        raise Unfit("conversations is empty")
    _need_text(record, "system")
    return [*_system(record.get("system")), *(said_of(turn, n) for n, turn in enumerate(turns, start=1))]


def said_of(turn: Any, number: int) -> dict[str, Any]:
    """A turn of ShareGPT as a message; raises `Unfit`."""
    if not isinstance(turn, dict):
        raise Unfit(f"turn {number} is {kind_of(turn)}, not an object with from and value")
    if "from" not in turn and "role" in turn:  # some files have messages under this name
        return turn
    for key in ("from", "value"):
        if key not in turn:
            raise Unfit(f"turn {number} has no {key}")
        if not isinstance(turn[key], str):
            raise Unfit(f"turn {number} has a {key} that is {kind_of(turn[key])}, not a string")
    role = _SPEAKERS.get(turn["from"].lower())
    if role is None:
        raise Unfit(f"turn {number} is from {turn['from']!r}; known are {', '.join(_SPEAKERS)}")
    return {"role": role, "content": turn["value"]}


def _of_alpaca(record: dict[str, Any]) -> Messages:
    if isinstance(record["instruction"], list):
        return _of_lists(record)
    _need_text(record, "output")
    return [*asked_of(record), {"role": "assistant", "content": record["output"]}]


def asked_of(record: dict[str, Any]) -> Messages:
    """All of a record of alpaca's that comes before its output; raises `Unfit`."""
    _need_text(record, "instruction", "input", "system")
    parts = [record["instruction"], record.get("input") or ""]
    asked = "\n\n".join(part for part in parts if part.strip())
    if not asked:
        raise Unfit("its instruction is blank, and it has no input")
    history = record.get("history") or []
    if not isinstance(history, list) or not all(_is_turn(turn) for turn in history):
        raise Unfit("its history is not a list of [question, answer]")
    question = {"role": "user", "content": asked}
    return [*_system(record.get("system")), *_alternating(history), question]


def _of_lists(record: dict[str, Any]) -> Messages:
    """Turns as universal-llm-trainer keeps them; of its input the first text, if any, is the system's."""
    lists = {key: record.get(key) or [] for key in ("input", "instruction", "output")}
    for key, value in lists.items():
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise Unfit(f"its {key} is not a list of texts, and its instruction is a list")
    asked, answered = lists["instruction"], lists["output"]
    if len(lists["input"]) > 1:
        raise Unfit(f"its input has {len(lists['input'])} texts, and only one can be the system's")
    if not asked or len(asked) != len(answered):
        raise Unfit(f"its instructions are {len(asked)} and its outputs {len(answered)}; each has one")
    return [*_system(*lists["input"]), *_alternating(list(zip(asked, answered, strict=True)))]


def _of_completion(record: dict[str, Any]) -> Messages:
    if isinstance(record.get("label"), bool):
        raise Unfit("its label says whether the answer is liked; that is for `tutelage dpo --loss kto`")
    return [
        *_spoken(record["prompt"], "prompt", "user"),
        *_spoken(record["completion"], "completion", "assistant"),
    ]


def _spoken(value: Any, key: str, role: str) -> Messages:
    """A text as a message of this role; a list of messages as it is."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list):
        raise Unfit(f"its {key} is {kind_of(value)}, not a text or a list of messages")
    return value


def _system(text: str | None = None) -> Messages:
    return [{"role": "system", "content": text}] if text else []


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, list) and len(turn) == 2 and all(isinstance(each, str) for each in turn)


def _alternating(turns: Sequence[Sequence[str]]) -> Messages:
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for turn in turns for role, text in zip(roles, turn, strict=True)]


def fault_of_text(key: str, text: Any) -> str | None:
    """What is wrong with a plain document, in a few words; None, and "" of one that is blank."""
    if not isinstance(text, str):
        return f"its {key} is {kind_of(text)}, not a string"
    if has_half_character(text):
        return f"its {key} has half a surrogate pair, which is no character"
    return None if text.strip() else ""
