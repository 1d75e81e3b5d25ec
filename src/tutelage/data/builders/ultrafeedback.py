"""UltraFeedback (https://arxiv.org/abs/2310.01377): answers of several models, scored, or pairs of them."""

from typing import Any, Literal

from tutelage.data.builders.raw_rows import Row, number
from tutelage.data.builders.records import Ranked, by_score
from tutelage.text.messages import message_faults

Score = Literal["overall", "fine_grained"]
_KEYS = {"overall": "overall_score", "fine_grained": "fine-grained_score"}


def ranked_of(row: Row, *, score: Score = "overall") -> Ranked | str:
    """The answers of a row, raw or binarized, from best to worst; or why it cannot be used.

    Of a raw row, answers without a score are left out."""
    return _raw(row, _KEYS[score]) if "completions" in row else _binarized(row)


def _raw(row: Row, key: str) -> Ranked | str:
    instruction, completions = row.get("instruction"), row["completions"]
    if not isinstance(instruction, str):
        return "it has no instruction that is a string"
    if not isinstance(completions, list):
        return "its completions are no list"
    scored: list[tuple[float, str]] = []
    for completion in completions:
        response = completion.get("response") if isinstance(completion, dict) else None
        if not isinstance(response, str):
            return "a completion has no response that is a string"
        score = number(completion.get(key))
        if score is not None and response.strip():
            scored.append((score, response))
    if len(scored) < 2:
        return f"fewer than two answers with a number for {key}"
    return by_score([{"role": "user", "content": instruction}], scored)


def _binarized(row: Row) -> Ranked | str:
    answers: list[tuple[float, str]] = []
    prompts: list[Any] = []
    for name in ("chosen", "rejected"):
        messages: Any = row.get(name)
        if fault := message_faults(messages):
            return f"{name}: {fault}"
        if messages[-1]["role"] != "assistant":
            return f"{name} does not end with the assistant"
        score = number(row.get(f"score_{name}"))
        if score is None:
            return f"score_{name} is not a number"
        prompts.append([{key: message[key] for key in ("role", "content")} for message in messages[:-1]])
        answers.append((score, messages[-1]["content"]))
    if prompts[0] != prompts[1]:
        return "chosen and rejected do not share the prompt"
    if answers[0][0] <= answers[1][0]:
        return "the chosen answer has no higher score than the rejected one"
    return by_score(prompts[0], answers)
