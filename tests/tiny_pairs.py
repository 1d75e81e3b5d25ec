"""Preference records for a tiny model: pairs, ranked answers and answers with a label, in every shape."""

import json
from pathlib import Path
from typing import Any

from tiny_runs import Material

_WORDS = ("aye", "no, never", "perhaps 東京", "naïve 🙂 yes", "x")


def pair(number: int) -> dict[str, Any]:
    """One of the shapes of a pair, ragged, with turns before it now and then."""
    question = f"question {number} " + "and more " * (number % 4)
    good, bad = _WORDS[number % 5] + " good" * (number % 3 + 1), _WORDS[(number + 2) % 5] + " bad"
    user = {"role": "user", "content": question}
    if number % 3 == 0:
        return {"prompt": question, "chosen": good, "rejected": bad}
    turns = [{"role": "system", "content": "be terse"}] if number % 2 else []
    if number % 5 == 0:
        turns += [{"role": "user", "content": "first"}, {"role": "assistant", "content": "second"}]
    turns.append(user)
    answers = [[*turns, {"role": "assistant", "content": text}] for text in (good, bad)]
    if number % 3 == 1:
        return {"chosen": answers[0], "rejected": answers[1]}
    return {"prompt": turns, "chosen": answers[0][-1:], "rejected": answers[1][-1:], "margin": 0.5}


def ranked(number: int) -> dict[str, Any]:
    """Two to four answers from best to worst, some with scores."""
    answers = [f"{word} {number}" for word in _WORDS[: 2 + number % 3]]
    scores = {"scores": [3.0 - at for at in range(len(answers))]} if number % 2 else {}
    return {"prompt": f"rank {number}", "answers": answers, **scores}


def labelled(number: int) -> dict[str, Any]:
    return {"prompt": f"say {number}", "completion": _WORDS[number % 5], "label": number % 3 > 0}


def write_records(place: Path, name: str, records: list[dict[str, Any]]) -> str:
    """The records in a file; what --train_data_paths calls it."""
    path = place / f"{name}.jsonl"
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    return f"jsonl:{path}"


def prefer(made: Material, out: Path, stage: str, *words: Any, **settings: Any) -> list[str]:
    """The words of a preference run: 20 pairs, 5 steps of 2 x 2 an epoch, float32."""
    pairs = write_records(made.place, "pairs", [pair(number) for number in range(20)])
    _, *rest = made.sft(out, *words, **{"train_data_paths": pairs, "lr": 1e-3, "max_seq_len": 160} | settings)
    return [stage, *rest]
