"""Records that say which answers are better: read into one form, or refused with a reason.

Known shapes, each a JSON object (a prompt is a text, which the user says, or a list of messages):
    {"prompt", "chosen", "rejected"}, optionally "margin"; answers are texts or lists of messages
    {"chosen", "rejected"}: two whole conversations that begin alike, optionally "margin"
    {"prompt", "answers"}: texts from best to worst, optionally "scores", highest first
    {"prompt", "completion", "label"}: one answer, liked (true) or not
A record of any shape may list "tools".
Those of other programs are in `compared_shapes`.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tutelage.data.compared_shapes import in_our_shape
from tutelage.data.shapes import Unfit
from tutelage.text.messages import kind_of, message_faults, with_tools

Messages = list[dict[str, str]]
UNKNOWN = math.nan  # the score of an answer of which only the place is known
_SHAPES = "chosen and rejected, prompt and answers, or prompt, completion and label"
MARKS = {"chosen", "rejected", "answers", "label"}
MOST_ANSWERS = 255  # to a prompt
MOST_SCORE = 1e30  # which float32 still holds the difference of two of


@dataclass(frozen=True, slots=True)
class Comparison:
    """Answers to one prompt, from best to worst; equal ranks are ties."""

    prompt: Messages
    answers: list[Messages]
    ranks: list[int]  # 0 is best; of an answer alone, 0 is liked and 1 is not
    scores: list[float]  # how good each is, UNKNOWN where only the order is


def comparison_fault(record: Any) -> str | None:
    """What is wrong with a record, in a few words, or None."""
    if not isinstance(record, dict):
        return f"not an object with {_SHAPES}"
    try:
        record = in_our_shape(record)
    except Unfit as unfit:
        return str(unfit)
    fault = _fault_of_shape(record)
    if fault is not None:
        return fault
    comparison = _read(record)
    if not comparison.prompt or comparison.prompt[-1].get("role") not in ("user", "tool"):
        return _no_common_prompt(record)
    for answer in comparison.answers:
        fault = message_faults([*comparison.prompt, *answer])
        if fault is not None:
            return fault
        if not answer or answer[-1]["role"] != "assistant":
            return "an answer does not end with the assistant"
    if len({json.dumps(answer, sort_keys=True) for answer in comparison.answers}) < len(comparison.answers):
        return "two answers are the same, so neither is better"
    return None


def read_comparison(record: dict[str, Any]) -> Comparison:
    """The comparison in a record that has no fault."""
    return _read(in_our_shape(record))


def _read(record: dict[str, Any]) -> Comparison:
    """The comparison in a record of our shapes that has no fault, or one of its messages."""
    made = _compared(record)
    return replace(made, prompt=with_tools(made.prompt, record.get("tools")))


def _compared(record: dict[str, Any]) -> Comparison:
    """`_read` without the tools."""
    if _is_labelled(record):
        prompt, answer = _messages(record["prompt"], "user"), _messages(record["completion"], "assistant")
        return Comparison(prompt, [answer], [0 if record["label"] else 1], [UNKNOWN])
    if "answers" in record:
        prompt = _messages(record["prompt"], "user")
        answers = [_messages(answer, "assistant") for answer in record["answers"]]
        scores = [float(score) for score in record.get("scores") or []]
        if not scores:
            return Comparison(prompt, answers, list(range(len(answers))), [UNKNOWN] * len(answers))
        return Comparison(
            prompt, answers, [sorted(set(scores), reverse=True).index(s) for s in scores], scores
        )
    chosen, rejected = (_messages(record[key], "assistant") for key in ("chosen", "rejected"))
    prompt = _messages(record["prompt"], "user") if "prompt" in record else []
    # Some files repeat the prompt in the conversations, whole or as its last question alone.
    if not prompt or any(answer and answer[0].get("role") != "assistant" for answer in (chosen, rejected)):
        shared = _shared(chosen, rejected)
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    margin = record.get("margin")
    scores = [UNKNOWN, UNKNOWN] if margin is None else [float(margin), 0.0]
    return Comparison(prompt, [chosen, rejected], [0, 1], scores)


def _is_labelled(record: dict[str, Any]) -> bool:
    """Whether it is one answer, liked or not; data sets of pairs may have a label of another meaning."""
    return "label" in record and not {"chosen", "rejected", "answers"} & record.keys()


def _fault_of_shape(record: dict[str, Any]) -> str | None:
    if _is_labelled(record):
        return _fault_of_keys(record, ("prompt", "completion")) or (
            None
            if isinstance(record["label"], bool)
            else f"its label is {kind_of(record['label'])}, not true or false"
        )
    if "answers" in record:
        return _fault_of_keys(record, ("prompt",)) or _fault_of_answers(record)
    if "chosen" in record or "rejected" in record:
        keys = ("prompt", "chosen", "rejected") if "prompt" in record else ("chosen", "rejected")
        fault = _fault_of_keys(record, keys)
        if fault is None and "prompt" not in record and isinstance(record["chosen"], str):
            by = (
                "; `tutelage data build hh_rlhf` reads such texts" if "\n\nHuman:" in record["chosen"] else ""
            )
            return f"chosen and rejected are texts, and there is no prompt that they answer{by}"
        margin = record.get("margin")
        return fault or (None if margin is None else _fault_of_number(margin, "margin"))
    keys = ", ".join(map(repr, list(record)[:5])) or "no keys"
    return f"no {_SHAPES}; the object has {keys}"


def _fault_of_keys(record: dict[str, Any], keys: Sequence[str]) -> str | None:
    for key in keys:
        if key not in record:
            return f"no {key}; the object has {', '.join(map(repr, list(record)[:5]))}"
        if not isinstance(record[key], (str, list)):
            return f"its {key} is {kind_of(record[key])}, not a text or a list of messages"
        if isinstance(record[key], list) and not all(isinstance(each, dict) for each in record[key]):
            return f"its {key} is a list of something else than messages"
    return None


def _fault_of_answers(record: dict[str, Any]) -> str | None:
    answers, scores = record["answers"], record.get("scores")
    if not isinstance(answers, list) or not all(isinstance(each, (str, list)) for each in answers):
        return "its answers are not a list of texts"
    if not 2 <= len(answers) <= MOST_ANSWERS:
        return f"it has {len(answers)} answers; 2 to {MOST_ANSWERS} can be compared"
    if scores is None:
        return None
    if not isinstance(scores, list) or len(scores) != len(answers):
        return "its scores are not a list of one number for each answer"
    for score in scores:
        if fault := _fault_of_number(score, "scores"):
            return fault
    if sorted(scores, reverse=True) != scores:
        return "its scores do not fall, and answers go from best to worst"
    return "all its answers have one score, so none is better" if len(set(scores)) == 1 else None


def _fault_of_number(value: Any, key: str) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"its {key} has {kind_of(value)}, not a number"
    if isinstance(value, float) and not math.isfinite(value):
        return f"its {key} has {value}"
    return None if abs(value) <= MOST_SCORE else f"its {key} has a number beyond {MOST_SCORE:g}"


def _no_common_prompt(record: dict[str, Any]) -> str:
    if "prompt" in record:
        return "its prompt does not end with the user"
    return "chosen and rejected do not answer the same prompt: they part before the assistant speaks"


def _messages(value: str | Messages, role: str) -> Messages:
    return [{"role": role, "content": value}] if isinstance(value, str) else list(value)


def _shared(one: Messages, other: Messages) -> int:
    """How many messages two conversations begin with alike, so that each has one left to answer with."""
    count = 0
    while count < min(len(one), len(other)) - 1 and one[count] == other[count]:
        count += 1
    return count
