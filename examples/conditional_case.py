"""A sanity task for fine-tuning: the system message decides the case of the answer.

System "ll": answer in lowercase; "cps": in UPPERCASE; empty: as usual. Built from the questions and answers
of the package chatterbot-corpus (BSD). No question of the held-out set is in the training set.

    python examples/conditional_case.py build --corpus CORPUS/data/english --output data/case
    python examples/conditional_case.py score data/case/answers.jsonl
"""

import argparse
import json
import random
from pathlib import Path

import yaml

CASES = {"ll": str.lower, "cps": str.upper, "": str}
QUESTIONS = {"test": 50, "val": 30, "train": 420}
ANSWERS = {"test": 1, "val": 1, "train": 4}  # of a question at most, each under all cases


def build(corpus: Path, output: Path, seed: int) -> None:
    """Write train, val and test.jsonl; test.jsonl holds prompts without answers."""
    questions = read_questions(corpus)
    random.Random(seed).shuffle(questions)
    output.mkdir(parents=True, exist_ok=True)
    for name, count in QUESTIONS.items():
        part, questions = questions[:count], questions[count:]
        pairs = [(question, answer) for question, answers in part for answer in answers[: ANSWERS[name]]]
        rows = [row(question, answer, system) for question, answer in pairs for system in CASES]
        if name == "test":
            rows = [{"messages": record["messages"][:-1]} for record in rows]
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in rows]
        (output / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{output / name}.jsonl: {len(lines)} rows of {count} questions")


def read_questions(corpus: Path) -> list[tuple[str, list[str]]]:
    """Each question once, with its answers of at most 150 characters in which case shows."""
    questions: dict[str, tuple[str, list[str]]] = {}
    for file in sorted(corpus.glob("*.yml")):
        if file.stem == "coding":  # the case of a program is not ours to change
            continue
        for turns in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]:
            question, answer = str(turns[0]).strip(), str(turns[1]).strip()
            if len(answer) <= 150 and answer not in (answer.lower(), answer.upper()):
                questions.setdefault(question.lower().rstrip("?.! "), (question, []))[1].append(answer)
    return [questions[key] for key in sorted(questions)]


def row(question: str, answer: str, system: str) -> dict[str, list[dict[str, str]]]:
    """One conversation."""
    turns = [("system", system), ("user", question), ("assistant", CASES[system](answer))]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def obeys(system: str, answer: str) -> bool:
    """Whether an answer is in the case asked for; as usual means neither all low nor all up."""
    if not any(character.isalpha() for character in answer):
        return False
    if system == "":
        return answer not in (answer.lower(), answer.upper())
    return answer == CASES[system](answer)


def score(answers: Path) -> dict[str, float]:
    """Share of answers that obey, for each case and, over the two that change it, in all."""
    counts: dict[str, list[bool]] = {system: [] for system in CASES}
    for line in answers.read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"]
        counts[messages[0]["content"]].append(obeys(messages[0]["content"], messages[-1]["content"]))
    shares = {system or "as usual": sum(found) / len(found) for system, found in counts.items()}
    asked = counts["ll"] + counts["cps"]
    return {**shares, "obedience": sum(asked) / len(asked)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help="write train.jsonl, val.jsonl and test.jsonl")
    building.add_argument("--corpus", type=Path, required=True, help="folder of the corpus's YAML files")
    building.add_argument("--output", type=Path, required=True)
    building.add_argument("--seed", type=int, default=0)
    scoring = commands.add_parser("score", help="print the share of answers that obey")
    scoring.add_argument(
        "answers", type=Path, help="what `tutelage generate --input test.jsonl --output` wrote"
    )
    given = parser.parse_args()
    if given.command == "build":
        build(given.corpus, given.output, given.seed)
    else:
        for name, share in score(given.answers).items():
            print(f"{name}: {share:.1%}")


if __name__ == "__main__":
    main()
