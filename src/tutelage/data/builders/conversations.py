"""Conversations out of published data sets of instructions, questions and dialogues: a row, or a paragraph's
rows, become one."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tutelage.data.builders.raw_rows import Placed, Row, lines_of, questions_of, rows_of, texts
from tutelage.data.builders.records import Conversation, Messages

Found = tuple[str, Conversation | str]
NOT_SAID = "The text does not say."
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which questions are of use to a model that reads and writes only."""

    min_words: int = 0
    skip_words: tuple[str, ...] = ()

    def fault(self, question: str) -> str | None:
        """Why a question is left out, or None."""
        words = _WORD.findall(question.lower())
        if len(words) < self.min_words:
            return f"a question of fewer than {self.min_words} words"
        named = next((word for word in self.skip_words if word.lower() in words), None)
        return f"the question names a {named}" if named else None


def dolly(row: Row, wanted: Wanted) -> Conversation | str:
    """Databricks' Dolly 15k (https://huggingface.co/datasets/databricks/databricks-dolly-15k): an
    instruction, the text that it is about if there is one, a person's response."""
    return _instruction(row, "instruction", "context", "response", wanted)


def alpaca(row: Row, wanted: Wanted) -> Conversation | str:
    """Alpaca (https://github.com/tatsu-lab/stanford_alpaca) and its cleaned copies: the same under other
    names."""
    return _instruction(row, "instruction", "input", "output", wanted)


def commonsense(row: Row, *, with_context: bool = False) -> Conversation | str:
    """Commonsense-Dialogues (https://github.com/alexa/Commonsense-Dialogues): the assistant is the friend.

    Up to the friend's last turn. What it is about, which several dialogues share, may open it."""
    turns, context = row.get("turns"), row.get("context")
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
        return "its turns are no list of strings"
    if not isinstance(context, str):
        return "it has no context that is a string"
    if len(turns) < 2:
        return "fewer than two turns"
    roles = ("user", "assistant")
    messages = [{"role": roles[at % 2], "content": turn} for at, turn in enumerate(turns[: len(turns) & ~1])]
    if with_context:
        about = f"You talk with {row.get('speaker') or 'a friend'}. What it is about: {context}"
        messages.insert(0, {"role": "system", "content": about})
    return Conversation(messages, about=" ".join(_WORD.findall(context.lower())))


def gsm8k(row: Row, *, keep_calculations: bool = False) -> Conversation | str:
    """GSM8K (https://arxiv.org/abs/2110.14168), main or socratic: the steps, and the answer in a sentence.

    `<<3*4=12>>`, which marks what a calculator would be asked, goes unless it is to be kept."""
    found = texts(row, "question", "answer")
    if isinstance(found, str):
        return found
    question, worked = found
    steps, marked, answer = worked.rpartition("####")
    if not marked or not answer.strip():
        return 'its answer has no "#### " and a number'
    if not keep_calculations:
        steps = re.sub(r"<<[^<>]*>>", "", steps)
    steps = steps.strip().replace(" ** ", "\n")  # socratic: a question of its own before each step
    return Conversation(_said(question, f"{steps}\nThe answer is {answer.strip()}."))


def squad(path: Path, wanted: Wanted, *, unanswerable: bool = True) -> Iterator[Found]:
    """SQuAD 1.1 and 2.0 (https://arxiv.org/abs/1806.03822): a paragraph and, turn by turn, all that is asked
    about it. The published files, or rows of the hub, in which a paragraph's questions stand together.

    Where the text has no answer the assistant says so, unless such questions are left out."""
    for place, context, asked in _paragraphs(rows_of(path)):
        if not isinstance(asked, list):
            yield place, asked
            continue
        messages: Messages = []
        for question, answers in asked:
            if fault := wanted.fault(question):
                yield place, fault
            elif not answers and not unanswerable:
                yield place, "the text does not answer the question"
            else:
                before = "" if messages else f"{context.strip()}\n\n"
                messages += _said(f"{before}{question}", answers[0] if answers else NOT_SAID)
        if messages:
            yield place, Conversation(messages, about=context)


def mathematics(path: Path, *, max_samples: int | None = None) -> Iterator[Found]:
    """DeepMind's Mathematics (https://arxiv.org/abs/1904.01557): a module's file, lines of a question and an
    answer in turn; or the hub's rows, spelled as Python bytes. The first `max_samples` of a file."""
    yield from islice(_text_pairs(path) if ".txt" in path.suffixes else _row_pairs(path), max_samples)


def _instruction(row: Row, ask: str, about: str, reply: str, wanted: Wanted) -> Conversation | str:
    found = texts({about: "", **row}, ask, about, reply)
    if isinstance(found, str):
        return found
    question, context, answer = found
    if fault := wanted.fault(question):
        return fault
    return Conversation(_said(f"{question.strip()}\n\n{context.strip()}".strip(), answer))


def _said(question: str, answer: str) -> Messages:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _paragraphs(rows: Iterator[Placed]) -> Iterator[tuple[str, str, list[tuple[str, list[str]]] | str]]:
    """(place, paragraph, its questions with their answers), or (place, "", what is wrong)."""
    place, context, asked = "", "", []
    for here, row in questions_of(rows):
        if isinstance(row, str):
            yield here, "", row
        elif "paragraphs" in row:
            yield from _article(here, row["paragraphs"])
        elif isinstance(question := _question(row), str):
            yield here, "", question
        elif not isinstance(row.get("context"), str):
            yield here, "", "it has no context that is a string"
        else:
            if asked and row["context"] != context:
                yield place, context, asked
                asked = []
            place, context = (place, context) if asked else (here, row["context"])
            asked.append(question)
    if asked:
        yield place, context, asked


def _article(place: str, paragraphs: Any) -> Iterator[tuple[str, str, list[tuple[str, list[str]]] | str]]:
    """The paragraphs of an article in the published files."""
    for paragraph in paragraphs if isinstance(paragraphs, list) else [None]:
        context = paragraph.get("context") if isinstance(paragraph, dict) else None
        questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
        if not isinstance(context, str) or not isinstance(questions, list):
            yield place, "", "a paragraph has no context or no qas"
            continue
        asked = []
        for each in questions:
            if isinstance(question := _question(each), str):
                yield place, "", question
            else:
                asked.append(question)
        yield place, context, asked


def _question(row: Any) -> tuple[str, list[str]] | str:
    """A question and its answers, which there are none of where the text does not say."""
    question, answers = (row.get("question"), row.get("answers")) if isinstance(row, dict) else (None, None)
    if not isinstance(question, str):
        return "a question is no string"
    given = [answers] if isinstance(answers, dict) else answers  # of the hub: {"text": [...]}
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        return "a question's answers are no list"
    spelled = [text for each in given for text in _listed(each.get("text"))]
    if not all(isinstance(text, str) for text in spelled):
        return "an answer has no text that is a string"
    return question, [text for text in spelled if text.strip()]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _text_pairs(path: Path) -> Iterator[Found]:
    lines = lines_of(path)
    for number, question in enumerate(lines):
        answer = next(lines, None)
        place = f"{path}:{2 * number + 1}"
        yield (
            place,
            "a question without an answer" if answer is None else Conversation(_said(question, answer)),
        )


def _row_pairs(path: Path) -> Iterator[Found]:
    for place, row in rows_of(path):
        found = row if isinstance(row, str) else texts(row, "question", "answer")
        yield place, found if isinstance(found, str) else Conversation(_said(*map(_unspelled, found)))


def _unspelled(text: str) -> str:
    """`b'What is 1 + 1?\\\\n'` as the text that it spells."""
    if not text.startswith(("b'", 'b"')):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value.decode() if isinstance(value, bytes) else text
