"""Questions of Stack Exchange with answers and their votes, as Hugging Face H4 published them
(https://huggingface.co/datasets/HuggingFaceH4/stack-exchange-preferences)."""

import re

from tutelage.data.builders.html_text import text_of
from tutelage.data.builders.raw_rows import Row, number
from tutelage.data.builders.records import Ranked, by_score

_ABOUT_PICTURES = re.compile(r"\b(photo|video|movie|youtube)\b", re.IGNORECASE)
_WORD = re.compile(r"\w+")


def ranked_of(row: Row, *, min_words: int = 8, drop_zero_scores: bool = False) -> Ranked | str:
    """The question and its answers as text, by votes; or why the question is skipped.

    Answers of fewer than `min_words` words are left out, and a question of fewer is skipped. What is about
    pictures cannot be answered in words: so is a question that names them, in a link too."""
    question, answers = row.get("question"), row.get("answers")
    if not isinstance(question, str):
        return "it has no question that is a string"
    if not isinstance(answers, list):
        return "its answers are no list"
    if _ABOUT_PICTURES.search(question):
        return "the question is about pictures"
    asked = text_of(question)
    if _words(asked) < min_words:
        return f"a question of fewer than {min_words} words"
    scored: list[tuple[float, str]] = []
    for answer in answers:
        html = answer.get("text") if isinstance(answer, dict) else None
        score = number(answer.get("pm_score")) if isinstance(answer, dict) else None
        if not isinstance(html, str) or score is None:
            return "an answer has no text or no pm_score"
        text = text_of(html)
        if _words(text) >= min_words and (score or not drop_zero_scores):
            scored.append((score, text))
    if len(scored) < 2:
        return "fewer than two answers that are long enough"
    return by_score([{"role": "user", "content": asked}], scored)


def _words(text: str) -> int:
    return len(_WORD.findall(text))
