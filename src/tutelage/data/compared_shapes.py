"""The shapes in which other programs keep answers to compare, each as one that `comparison` reads.

{"conversations": [turns], "chosen": {"from", "value"}, "rejected": {"from", "value"}}, optionally "system"
{"messages": [messages], "chosen": {"role", "content"}, "rejected": {"role", "content"}}
{"instruction", "chosen", "rejected"}, optionally "input", "system", "history"
{"conversations"}, {"messages"} or {"instruction", "output"}, and "label": true or false
{"prompt", "chosen", "rejected"} with "system": a text
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tutelage.data.shapes import Unfit, asked_of, messages_of, said_of, shapes_of

_PAIR = ("chosen", "rejected")
_ASKED = {"conversations": "sharegpt", "messages": "messages"}  # key of what came before -> its shape


def says_which_is_better(record: Mapping[str, Any]) -> bool:
    """Whether a record is meant to be compared, and no conversation that has answers beside it."""
    if "prompt" not in record and isinstance(record.get("chosen"), dict):
        return True
    if "messages" in record:
        return False
    if any(key in record for key in _PAIR):
        return True
    if "answers" in record:
        return "prompt" in record
    spoken = [shape for shape in shapes_of(record) if shape != "messages"]
    return isinstance(record.get("label"), bool) and bool(spoken)


def in_our_shape(record: dict[str, Any]) -> dict[str, Any]:
    """The record with a prompt and answers as `comparison` knows them; raises `Unfit`."""
    if any(isinstance(record.get(key), (str, list, dict)) for key in _PAIR):
        return _pair(record)
    if "label" in record and "prompt" not in record and "answers" not in record:
        return _labelled(record)
    return record


def _pair(record: dict[str, Any]) -> dict[str, Any]:
    answers = {key: _answer(record[key], key) for key in _PAIR if key in record}
    made = {**record, **answers}
    if "prompt" in record:
        if isinstance(record["prompt"], str) and isinstance(system := record.get("system"), str) and system:
            spoken = {"role": "system", "content": system}
            made["prompt"] = [spoken, {"role": "user", "content": record["prompt"]}]
        return made
    if all(_is_whole(answer) for answer in answers.values()):
        return made
    for key, shape in _ASKED.items():
        if record.get(key) is not None:
            return {**made, "prompt": messages_of(record, shape)}
    return {**made, "prompt": asked_of(record)} if record.get("instruction") is not None else made


def _labelled(record: dict[str, Any]) -> dict[str, Any]:
    shapes = shapes_of(record)
    if len(shapes) != 1:
        return record
    messages = messages_of(record, shapes[0])
    last = messages[-1] if isinstance(messages, list) and messages else None
    if not isinstance(last, dict) or last.get("role") != "assistant":
        raise Unfit("it does not end with the assistant, whose answer the label judges")
    return {**record, "prompt": messages[:-1], "completion": [last]}


def _answer(value: Any, key: str) -> Any:
    """An answer that is one message, or turns of ShareGPT, as messages; others as they are."""
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list):
        return value
    try:
        messages = [said_of(turn, n) if _is_turn(turn) else turn for n, turn in enumerate(turns, start=1)]
    except Unfit as unfit:
        raise Unfit(f"its {key}: {unfit}") from None
    if isinstance(value, dict) and not ("role" in messages[0] and "content" in messages[0]):
        raise Unfit(f"its {key} is an object without role and content, or from and value")
    return messages


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and "from" in value


def _is_whole(answer: Any) -> bool:
    """Whether an answer is a conversation with what it answers."""
    return isinstance(answer, list) and len(answer) > 1
