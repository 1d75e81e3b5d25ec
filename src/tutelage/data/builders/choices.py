"""Questions with choices out of published tests: asked with letters, answered in a sentence that names one.

Every choice is an answer, the right one best; so the same rows give conversations and preferences."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeGuard

from tutelage.data.builders.raw_rows import Row, texts
from tutelage.data.builders.records import Messages, Ranked

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SYSTEM = "Choose the right one of the answers that are offered, and name its letter."
_NO_KEY = "it has no right answer: a test's are kept back"


@dataclass(frozen=True, slots=True)
class Question:
    text: str
    choices: list[str]
    right: int  # its place in choices
    task: str = SYSTEM


def ranked_of(question: Question | str, *, system: str | None = None) -> Ranked | str:
    """The lettered question with a sentence for each choice, the right one first; or why there is none."""
    if isinstance(question, str):
        return question
    if not 2 <= len(question.choices) <= len(LETTERS):
        return f"{len(question.choices)} choices, and 2 to {len(LETTERS)} have letters"
    choices = [choice.strip() for choice in question.choices]
    if not question.text.strip() or not all(choices):
        return "the question or a choice is empty"
    if len(set(choices)) < len(choices):
        return "two choices are the same"
    lettered = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    sentences = [
        f"The right answer is {letter}: {choice}" for letter, choice in zip(LETTERS, choices, strict=False)
    ]
    sentences.insert(0, sentences.pop(question.right))
    task = question.task if system is None else system
    prompt: Messages = [{"role": "system", "content": task}] if task else []
    prompt.append({"role": "user", "content": "\n".join([question.text.strip(), "", *lettered])})
    return Ranked(prompt, sentences)


def arc(row: Row) -> Question | str:
    """ARC (https://arxiv.org/abs/1803.05457), OpenBookQA and CommonsenseQA: of the hub, or AI2's own files.

    The key is one of the labels, which are letters in most rows and digits in some."""
    if "query" in row:
        return _evaluated(row)
    nested = row.get("question")
    question: Any = nested.get("stem") if isinstance(nested, dict) else nested
    question = row.get("question_stem", question)
    offered: Any = nested.get("choices") if isinstance(nested, dict) else row.get("choices")
    if isinstance(offered, list) and all(isinstance(each, dict) for each in offered):
        offered = {key: [each.get(key) for each in offered] for key in ("text", "label")}
    if not isinstance(question, str):
        return "it has no question that is a string"
    if (
        not isinstance(offered, dict)
        or not _strings(offered.get("text"))
        or not _strings(offered.get("label"))
    ):
        return "its choices have no text and label that are lists of strings"
    if len(offered["text"]) != len(offered["label"]):
        return "its choices have not one label each"
    key = row.get("answerKey")
    if not key:
        return _NO_KEY
    if key not in offered["label"]:
        return "its answerKey is none of the labels"
    return Question(question, list(offered["text"]), list(offered["label"]).index(key))


def hellaswag(row: Row) -> Question | str:
    """HellaSwag (https://arxiv.org/abs/1905.07830): how a text goes on. What WikiHow's pages left between
    brackets, [title] say, goes."""
    task = "Choose how the text goes on, and name the letter."
    if "query" in row:
        found = _evaluated(row)
        return found if isinstance(found, str) else Question(found.text, found.choices, found.right, task)
    context, activity, endings = row.get("ctx"), row.get("activity_label"), row.get("endings")
    if not isinstance(context, str) or not _strings(endings):
        return "it has no ctx that is a string, or no endings that are strings"
    label = str(row.get("label", ""))
    if not label:
        return _NO_KEY
    if label not in map(str, range(len(endings))):
        return "its label is none of the endings"
    title = f"{activity}: " if isinstance(activity, str) and activity else ""
    return Question(_unbracketed(title + context), list(map(_unbracketed, endings)), int(label), task)


def winogrande(row: Row) -> Question | str:
    """WinoGrande (https://arxiv.org/abs/1907.10641): which of two belongs where the sentence has a gap."""
    found = texts(row, "sentence", "option1", "option2")
    if isinstance(found, str):
        return found
    sentence, *options = found
    if sentence.count("_") != 1:
        return "its sentence has not one gap"
    answer = str(row.get("answer", ""))
    if answer not in ("1", "2"):
        return _NO_KEY if not answer else "its answer is neither 1 nor 2"
    task = "Choose what belongs in the gap of the sentence, and name its letter."
    return Question(sentence, options, int(answer) - 1, task)


def mmlu(row: Row) -> Question | str:
    """MMLU (https://arxiv.org/abs/2009.03300) with a list of choices (cais) or each by itself (lukaemon)."""
    subject = str(row.get("subject") or "").replace("_", " ")
    task = f"{SYSTEM} The subject is {subject}." if subject else SYSTEM
    if "input" in row:
        found = texts(row, "input", *"ABCD", "target")
        if isinstance(found, str):
            return found
        question, *choices, target = found
        if target not in tuple("ABCD"):
            return "its target is none of A, B, C and D"
        return Question(question, choices, "ABCD".index(target), task)
    question, choices = row.get("question"), row.get("choices")
    if not isinstance(question, str) or not _strings(choices):
        return "it has no question that is a string, or no choices that are strings"
    answer: Any = row.get("answer")
    answer = LETTERS.find(answer) if isinstance(answer, str) and len(answer) == 1 else answer
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        return "its answer is none of the choices"
    return Question(question, list(choices), answer, task)


def truthful_qa(row: Row, *, seed: int = 1, system: str | None = None) -> Ranked | str:
    """TruthfulQA (https://arxiv.org/abs/2109.07958): the best answer before the false ones, in full; of
    multiple_choice rows, as lettered choices, shuffled, for there the right one always comes first."""
    question = row.get("question")
    if not isinstance(question, str):
        return "it has no question that is a string"
    if "mc1_targets" not in row:
        best, false = row.get("best_answer"), row.get("incorrect_answers")
        if not isinstance(best, str) or not _strings(false):
            return "it has no best_answer that is a string, or no incorrect_answers that are strings"
        prompt: Messages = [{"role": "system", "content": system}] if system else []
        return Ranked([*prompt, {"role": "user", "content": question}], [best, *false])
    targets = row["mc1_targets"]
    choices, labels = (
        (targets.get("choices"), targets.get("labels")) if isinstance(targets, dict) else (None, None)
    )
    if (
        not _strings(choices)
        or not isinstance(labels, list)
        or sorted(labels) != [0] * (len(choices) - 1) + [1]
    ):
        return "its mc1_targets have not one right choice"
    right = choices[labels.index(1)]
    shuffled = Random(f"{seed} {question}").sample(choices, len(choices))
    return ranked_of(Question(question, shuffled, shuffled.index(right)), system=system)


def _evaluated(doc: Row) -> Question | str:
    """A question out of OLMo's evaluations: `query`, `choices`, and `gold`, the place of the right one."""
    query, choices, gold = doc.get("query"), doc.get("choices"), doc.get("gold")
    if not isinstance(query, str) or not _strings(choices):
        return "it has no query that is a string, or no choices that are strings"
    if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(choices):
        return "its gold is none of the choices"
    if all(choice in LETTERS for choice in choices):
        return "its choices are letters only; give the requests of rc_, not those of mc_"
    return Question(query.removeprefix("Question: ").removesuffix("\nAnswer:"), list(choices), gold)


def _unbracketed(text: str) -> str:
    """Text without the marks of WikiHow's pages."""
    text = re.sub(r"\s*\[title\]\s*", ". ", text.strip())
    text = re.sub(r"\[[a-z_]+\]", "", text)
    return re.sub(r" {2,}", " ", re.sub(r"([.!?:])\. ", r"\1 ", text)).strip().removeprefix(". ")


def _strings(value: Any) -> TypeGuard[Sequence[str]]:
    return (
        isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(v, str) for v in value)
    )
