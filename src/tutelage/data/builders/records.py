"""What builders make of raw rows (conversations, or answers to one prompt from best to worst), and the record
of a data set that is made of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal

from tutelage.text.messages import has_half_character, message_faults

Messages = list[dict[str, str]]
Kind = Literal["chats", "pairs", "ranked", "chosen", "best", "prompts"]


@dataclass(frozen=True, slots=True)
class Ranked:
    prompt: Messages  # ends with the user's
    answers: list[str]  # the best first
    scores: list[float] | None = None  # of each answer, falling; None: only their order is known


@dataclass(frozen=True, slots=True)
class Conversation:
    messages: Messages  # ends with the assistant's
    about: str = ""  # conversations about one thing are held out together; default: what is asked first

    @property
    def opening(self) -> Messages:
        """What stands before the first answer, or what it is about."""
        if self.about:
            return [{"role": "user", "content": self.about}]
        roles = [message["role"] for message in self.messages]
        return self.messages[: roles.index("assistant")]


Example = Ranked | Conversation


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What becomes of ranked answers, and of conversations, which are written whole or without the end."""

    kind: Kind
    min_answers: int = 2  # of different scores; a prompt with fewer is left out
    max_answers: int | None = None  # the best are kept
    keep_ties: bool = False  # in ranked answers; else one answer of each score is drawn


def by_score(prompt: Messages, scored: Sequence[tuple[float, str]]) -> Ranked:
    """Answers in the order of their scores; those with equal ones stay as they came."""
    ordered = sorted(scored, key=lambda each: -each[0])
    return Ranked(prompt, [text for _, text in ordered], [score for score, _ in ordered])


def checked(example: Example) -> Example | str:
    """The example as it may be written, or what is wrong with it in a few words."""
    return _checked_chat(example) if isinstance(example, Conversation) else checked_answers(example)


def checked_answers(ranked: Ranked) -> Ranked | str:
    """Stripped, each answer once at its best place; or what is wrong, in a few words."""
    if fault := message_faults(ranked.prompt, answered=False):
        return f"the prompt: {fault}"
    prompt = [{**message, "content": message["content"].strip()} for message in ranked.prompt]
    if prompt[-1]["role"] != "user":
        return "the prompt does not end with the user"
    if not all(message["content"] for message in prompt if message["role"] != "system"):
        return "a message of the prompt is empty"
    answers = [answer.strip() for answer in ranked.answers]
    if not all(answers):
        return "an answer is empty"
    if any(map(has_half_character, answers)):
        return "an answer has half a surrogate pair, which is no character"
    kept = [place for place, answer in enumerate(answers) if answer not in answers[:place]]
    if len(kept) < 2:
        return "fewer than two different answers"
    return _of(replace(ranked, prompt=prompt, answers=answers), kept)


def texts_of(example: Example) -> list[list[str]]:
    """All that is said, of ranked answers with each answer."""
    if isinstance(example, Conversation):
        return [[message["content"] for message in example.messages]]
    asked = [message["content"] for message in example.prompt]
    return [[*asked, answer] for answer in example.answers]


def record_of(example: Example, choice: Choice, rng: Random) -> dict[str, Any] | str:
    """One line of the data set, or why there is none; `rng` draws among equals and among the worse."""
    if isinstance(example, Conversation):
        return {"messages": example.messages[:-1] if choice.kind == "prompts" else example.messages}
    ranked = example
    if choice.kind == "pairs":
        return _pair(ranked, rng)
    different = without_ties(ranked, rng)
    if len(different.answers) < choice.min_answers:
        return f"fewer than {choice.min_answers} answers of different scores"
    ranked = ranked if choice.keep_ties and choice.kind == "ranked" else different
    ranked = _of(ranked, range(len(ranked.answers))[: choice.max_answers])
    if choice.kind == "prompts":
        return {"messages": ranked.prompt}
    if choice.kind in ("chosen", "best"):
        return {"messages": [*ranked.prompt, {"role": "assistant", "content": ranked.answers[0]}]}
    record: dict[str, Any] = {"prompt": _shortest(ranked.prompt), "answers": ranked.answers}
    return record if ranked.scores is None else {**record, "scores": ranked.scores}


def without_ties(ranked: Ranked, rng: Random) -> Ranked:
    """One answer of each score, drawn by chance: an order among equals would be learned as if it meant
    something."""
    if ranked.scores is None:
        return ranked
    places: dict[float, list[int]] = {}
    for place, score in enumerate(ranked.scores):
        places.setdefault(score, []).append(place)
    return _of(ranked, [rng.choice(equal) for equal in places.values()])


def _checked_chat(conversation: Conversation) -> Conversation | str:
    if fault := message_faults(conversation.messages):
        return fault
    messages = [{**message, "content": message["content"].strip()} for message in conversation.messages]
    if messages[-1]["role"] != "assistant":
        return "it does not end with the assistant"
    if not all(message["content"] for message in messages):
        return "a message is empty"
    return replace(conversation, messages=messages)


def _pair(ranked: Ranked, rng: Random) -> dict[str, Any] | str:
    """The best answer against any other that is worse."""
    scores = ranked.scores
    worse = [place for place in range(1, len(ranked.answers)) if scores is None or scores[place] < scores[0]]
    if not worse:
        return "no answer is worse than the best one"
    place = rng.choice(worse)
    record: dict[str, Any] = {
        "prompt": _shortest(ranked.prompt),
        "chosen": ranked.answers[0],
        "rejected": ranked.answers[place],
    }
    return record if scores is None else {**record, "margin": scores[0] - scores[place]}


def _of(ranked: Ranked, places: Sequence[int]) -> Ranked:
    """The answers at `places` alone."""
    scores = None if ranked.scores is None else [ranked.scores[place] for place in places]
    return replace(ranked, answers=[ranked.answers[place] for place in places], scores=scores)


def _shortest(prompt: Messages) -> str | Messages:
    """A prompt that is one question, as a string."""
    return prompt[0]["content"] if len(prompt) == 1 else prompt
