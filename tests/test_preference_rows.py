"""Rows of published preference data, whole and broken, in the shape that they have there."""

import json
from random import Random

import pytest
from materials import piqa_requests

from tutelage.data.builders import hh_rlhf, piqa, ultrafeedback
from tutelage.data.builders.records import Choice, Ranked, checked, record_of, without_ties
from tutelage.data.comparison import comparison_fault, read_comparison
from tutelage.errors import UserError


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


# Anthropic's pairs of conversations


def test_a_pair_keeps_the_earlier_turns_in_its_prompt():
    start = (
        "\n\nHuman: What is a  fox?\n\nAssistant: An animal,  red.  It hunts.\n\nHuman: Where?\n\nAssistant: "
    )
    ranked = hh_rlhf.ranked_of({"chosen": f"{start}In the woods.\n\nAt night.", "rejected": f"{start}No."})
    assert isinstance(ranked, Ranked)
    assert record_of(ranked, Choice(kind="pairs"), Random(0)) == {
        "prompt": [
            {"role": "user", "content": "What is a  fox?"},
            {"role": "assistant", "content": "An animal, red. It hunts."},
            {"role": "user", "content": "Where?"},
        ],
        "chosen": "In the woods.\n\nAt night.",
        "rejected": "No.",
    }
    record = record_of(ranked, Choice(kind="chosen"), Random(0))
    assert record["messages"][-1] == {"role": "assistant", "content": "In the woods.\n\nAt night."}
    assert record_of(ranked, Choice(kind="prompts"), Random(0)) == {"messages": record["messages"][:-1]}


GOOD = "\n\nHuman: A?\n\nAssistant: B."


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": GOOD}, "it has no rejected that is a string"),
        ({"chosen": None, "rejected": GOOD}, "it has no chosen that is a string"),
        ({"chosen": GOOD, "rejected": "\n\nHuman: C?\n\nAssistant: D."}, "do not share the prompt"),
        ({"chosen": GOOD, "rejected": GOOD + "\n\nHuman: C?\n\nAssistant: D."}, "do not share the prompt"),
        ({"chosen": GOOD, "rejected": GOOD + "\n\nHuman: C?"}, "rejected does not take turns"),
        ({"chosen": GOOD + "\n\nAssistant: C.", "rejected": GOOD}, "chosen does not take turns"),
        ({"chosen": GOOD, "rejected": "\n\nHuman: A?\n\nAssistant:"}, "rejected has an empty turn"),
        ({"chosen": "A?", "rejected": GOOD}, "chosen does not begin with"),
        ({"chosen": "", "rejected": GOOD}, "chosen does not begin with"),
        ({"chosen": "Well. " + GOOD, "rejected": GOOD}, "chosen does not begin with"),
    ],
)
def test_defect_4_9_14_a_malformed_pair_is_skipped_whole(row, reason):
    """The reference kept the turns before the fault, so that the two prompts of a pair could differ."""
    skipped = hh_rlhf.ranked_of(row)
    assert isinstance(skipped, str) and reason in skipped


# PIQA

GOAL = {"goal": "Keep tea hot.", "sol1": "Use a sieve.", "sol2": "Use a pot with a lid."}


def test_the_label_says_which_solution_is_right():
    for label, best in [(0, GOAL["sol1"]), (1, GOAL["sol2"])]:
        ranked = piqa.ranked_of({**GOAL, "label": label})
        assert (ranked.prompt, ranked.answers[0]) == (user(GOAL["goal"]), best)
    assert "its label is neither 0 nor 1" in piqa.ranked_of(GOAL)
    assert piqa.ranked_of({**GOAL, "sol2": None, "label": 0}) == "it has no sol2 that is a string"


def test_piqas_own_labels_lie_beside_its_questions(tmp_path):
    path = tmp_path / "valid.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (GOAL, GOAL, {"goal": "x"})))
    (tmp_path / "valid-labels.lst").write_text("1\n0\n1\n")
    first, second, broken = [example for _, example in piqa.examples_of(path)]
    assert first.answers == second.answers[::-1] == [GOAL["sol2"], GOAL["sol1"]]
    assert broken == "it has no sol1 that is a string"
    (tmp_path / "valid-labels.lst").write_text("1\n0\n")
    with pytest.raises(UserError, match="valid.jsonl:3: there are only 2 labels beside the file"):
        list(piqa.examples_of(path))
    (tmp_path / "valid-labels.lst").write_text("1\n2\n")
    with pytest.raises(UserError, match="valid-labels.lst:2: '2' is neither 0 nor 1"):
        list(piqa.examples_of(path))


def test_requests_of_an_evaluation_give_each_bare_question_once(tmp_path):
    doc = {**GOAL, "label": 1, "query": "Goal: Keep tea hot.\nAnswer:", "gold": 1}
    rows = [
        {"doc": doc, "request": {"context": context, "continuation": " x"}, "idx": idx, "native_id": 0}
        for context in ("Goal: other\nAnswer: y\n\nGoal: Keep tea hot.\nAnswer:", "Answer:")
        for idx in (0, 1)
    ]
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(map(json.dumps, [*rows, {**rows[0], "native_id": 1}, {"doc": None}])))
    first, second, broken = [example for _, example in piqa.examples_of(path)]
    assert first == second == Ranked(user(GOAL["goal"]), [GOAL["sol2"], GOAL["sol1"]])
    assert broken == "its doc is not an object"


@pytest.mark.slow
@pytest.mark.parametrize(("split", "count"), [("train", 16_113), ("val", 1_838)])
def test_the_real_piqa_has_as_many_pairs_as_its_paper_says(split, count):
    found = [example for _, example in piqa.examples_of(piqa_requests(split))]
    assert len(found) == count
    assert all(isinstance(example, Ranked) and isinstance(checked(example), Ranked) for example in found)


# UltraFeedback


def raw(**scores: object) -> dict:
    """A raw row with answers that are called what they say."""
    completions = [
        {"model": f"m{name}", "response": name, "overall_score": score, "fine-grained_score": 5 - n}
        for n, (name, score) in enumerate(scores.items())
    ]
    return {"source": "sharegpt", "instruction": "Say it.", "completions": completions, "models": ["m"]}


def binarized(**changes: object) -> dict:
    row = {"prompt": "Say it.", "score_chosen": 8.5, "score_rejected": 6.0}
    for name in ("chosen", "rejected"):
        row[name] = [*user("Say it."), {"role": "assistant", "content": name}]
    return row | changes


def test_raw_rows_are_ranked_by_the_score_that_is_asked_for():
    row = raw(a=3.0, b="8.5", c=None, d=float("nan"), e=3.0, f=1)
    record = record_of(ultrafeedback.ranked_of(row), Choice(kind="ranked"), Random(0))
    assert record["scores"] == [8.5, 3.0, 1.0] and record["answers"][1] in ("a", "e")
    fine = record_of(ultrafeedback.ranked_of(row, score="fine_grained"), Choice(kind="ranked"), Random(0))
    assert fine["answers"] == list("abcdef")


def test_ranked_feedback_keeps_equal_scores_which_say_that_neither_is_better():
    ranked = ultrafeedback.ranked_of(raw(a=3.0, b=8.5, c=3.0))
    record = record_of(ranked, Choice(kind="ranked", keep_ties=True), Random(0))
    assert (record["answers"], record["scores"]) == (["b", "a", "c"], [8.5, 3.0, 3.0])
    assert comparison_fault(record) is None and read_comparison(record).ranks == [0, 1, 1]
    alike = ultrafeedback.ranked_of(raw(a=3.0, b=3.0))
    skipped = record_of(alike, Choice(kind="ranked", keep_ties=True), Random(0))
    assert skipped == "fewer than 2 answers of different scores"


def test_a_pair_is_the_best_answer_against_a_random_worse_one():
    ranked = ultrafeedback.ranked_of(raw(a=3.0, b=8.5, c=8.5, d=1.0))
    pairs = [record_of(ranked, Choice(kind="pairs"), Random(seed)) for seed in range(40)]
    assert {(pair["chosen"], pair["rejected"], pair["margin"]) for pair in pairs} == {
        ("b", "a", 5.5),
        ("b", "d", 7.5),
    }
    alike = ultrafeedback.ranked_of(raw(a=3.0, b=3.0))
    assert record_of(alike, Choice(kind="pairs"), Random(0)) == "no answer is worse than the best one"


def test_binarized_rows_become_pairs_with_a_margin():
    record = record_of(ultrafeedback.ranked_of(binarized()), Choice(kind="pairs"), Random(0))
    assert record == {"prompt": "Say it.", "chosen": "chosen", "rejected": "rejected", "margin": 2.5}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (raw(a=1.0, b=None), "fewer than two answers with a number for overall_score"),
        ({**raw(a=1.0), "instruction": None}, "it has no instruction that is a string"),
        ({**raw(a=1.0), "completions": "x"}, "its completions are no list"),
        ({**raw(a=1.0), "completions": [None]}, "a completion has no response that is a string"),
        ({}, "chosen: messages is null, not a list"),
        (binarized(score_rejected=8.5), "the chosen answer has no higher score than the rejected one"),
        (binarized(score_chosen="N/A"), "score_chosen is not a number"),
        (binarized(chosen=binarized()["chosen"] + user("And?")), "chosen does not end with the assistant"),
        (binarized(chosen=[*user("Say."), {"role": "assistant", "content": "x"}]), "do not share the prompt"),
    ],
)
def test_feedback_that_cannot_be_used_is_skipped(row, reason):
    skipped = ultrafeedback.ranked_of(row)
    assert isinstance(skipped, str) and reason in skipped


# What all have in common


@pytest.mark.parametrize(
    ("ranked", "reason"),
    [
        (Ranked(user("A?"), ["x", " x\n"]), "fewer than two different answers"),
        (Ranked(user("A?"), ["x", " "]), "an answer is empty"),
        (Ranked(user("A?"), ["x", "\ud83d"]), "an answer has half a surrogate pair, which is no character"),
        (Ranked(user(" "), ["x", "y"]), "a message of the prompt is empty"),
        (Ranked([], ["x", "y"]), "the prompt: messages is empty"),
        (
            Ranked([*user("A?"), *user("B?")], ["x", "y"]),
            "the prompt: message 2 is a user message right after",
        ),
        (
            Ranked([*user("A?"), {"role": "assistant", "content": "B"}], ["x", "y"]),
            "does not end with the user",
        ),
    ],
)
def test_what_is_no_preference_is_skipped(ranked, reason):
    skipped = checked(ranked)
    assert isinstance(skipped, str) and reason in skipped


def test_an_answer_given_twice_keeps_its_best_place():
    ranked = checked(Ranked(user(" A? "), ["x ", "y", "x", "z"], [4.0, 3.0, 2.0, 1.0]))
    assert ranked == Ranked(user("A?"), ["x", "y", "z"], [4.0, 3.0, 1.0])
    assert without_ties(Ranked(user("A?"), ["x", "y"]), Random(0)).answers == ["x", "y"]
