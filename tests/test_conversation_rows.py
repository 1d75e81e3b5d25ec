"""Rows of published instructions, paragraphs, dialogues and sums, in the shape that they have there."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from materials import gsm8k_requests

from tutelage.data.builders import conversations
from tutelage.data.builders.conversations import NOT_SAID, Wanted
from tutelage.data.builders.raw_rows import questions_of, rows_of
from tutelage.data.builders.records import Conversation

ANY = Wanted()


def said(conversation: Conversation) -> list[str]:
    """What is said in turn, which must begin with the user."""
    roles = [message["role"] for message in conversation.messages]
    assert roles == ["user", "assistant"] * (len(roles) // 2)
    return [message["content"] for message in conversation.messages]


def test_an_instruction_is_followed_by_the_text_that_it_is_about():
    dolly = {"instruction": "When did it begin? ", "context": "It began in 2000.\n", "response": "In 2000."}
    assert said(conversations.dolly({**dolly, "category": "closed_qa"}, ANY)) == [
        "When did it begin?\n\nIt began in 2000.",
        "In 2000.",
    ]
    alpaca = {"instruction": "Name a colour.", "input": "", "output": "Red."}
    assert said(conversations.alpaca(alpaca, ANY)) == ["Name a colour.", "Red."]
    assert said(conversations.alpaca({"instruction": "Name one.", "output": "Red."}, ANY))[0] == "Name one."


def test_what_is_held_out_together_is_what_comes_before_the_first_answer():
    turns = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user", "assistant")]
    assert Conversation(turns).opening == turns[:2]


@pytest.mark.parametrize(
    ("instruction", "fault"),
    [
        ("Name a red fruit", "a question of fewer than 5 words"),
        ("What is this Photo good for?", "the question names a photo"),
        ("Which YouTube? channel is a good one", "the question names a youtube"),
        ("What did the photographers all have with them?", None),
        ("Name - a - red . fruit", "a question of fewer than 5 words"),
    ],
)
def test_short_questions_and_those_about_pictures_are_left_out(instruction, fault):
    wanted = Wanted(5, ("photo", "video", "movie", "youtube"))
    found = conversations.dolly({"instruction": instruction, "context": "photo", "response": "It."}, wanted)
    assert (found if isinstance(found, str) else None) == fault


def paragraph(context: str, *asked: tuple[str, list[str]]) -> dict:
    """As SQuAD 2.0 publishes it."""
    return {
        "context": context,
        "qas": [
            {
                "question": question,
                "id": f"{context}-{n}",
                "answers": [{"text": text, "answer_start": 0} for text in answers],
                "is_impossible": not answers,
                **({} if answers else {"plausible_answers": [{"text": "Perhaps", "answer_start": 0}]}),
            }
            for n, (question, answers) in enumerate(asked)
        ],
    }


ONE = ("Rain fell.", [("What fell?", ["Rain", "rain"]), ("Who fell?", []), ("Did it?", ["fell"])])
TWO = ("Snow fell.", [("What fell?", ["Snow"])])


def squad_file(path: Path, form: str) -> Path:
    if form == "published":
        articles = [{"title": "Weather", "paragraphs": [paragraph(c, *q) for c, q in (ONE, TWO)]}]
        path.write_text(json.dumps({"version": "v2.0", "data": articles}))
        return path
    rows = [
        {
            "id": "1",
            "title": "W",
            "context": c,
            "question": q,
            "answers": {"text": a, "answer_start": [0] * len(a)},
        }
        for c, asked in (ONE, TWO)
        for q, a in asked
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("form", ["published", "hub"])
def test_a_paragraph_becomes_one_conversation_that_opens_with_it(tmp_path, form):
    path = squad_file(tmp_path / "squad.json", form)
    found = [example for _, example in conversations.squad(path, ANY)]
    assert [said(each) for each in found] == [
        ["Rain fell.\n\nWhat fell?", "Rain", "Who fell?", NOT_SAID, "Did it?", "fell"],
        ["Snow fell.\n\nWhat fell?", "Snow"],
    ]
    assert [each.about for each in found] == ["Rain fell.", "Snow fell."]
    found = [example for _, example in conversations.squad(path, Wanted(2, ("did",)), unanswerable=False)]
    assert found[:2] == ["the text does not answer the question", "the question names a did"]
    assert said(found[2]) == ["Rain fell.\n\nWhat fell?", "Rain"]


def test_a_paragraph_whose_first_question_is_left_out_still_opens_the_conversation(tmp_path):
    path = tmp_path / "squad.json"
    path.write_text(
        json.dumps({"data": [{"paragraphs": [paragraph("A.", ("No?", ["x"]), ("Who ran?", ["B"]))]}]})
    )
    assert said(list(conversations.squad(path, Wanted(2)))[1][1]) == ["A.\n\nWho ran?", "B"]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"paragraphs": [{"qas": []}]}, "a paragraph has no context or no qas"),
        ({"paragraphs": 3}, "a paragraph has no context or no qas"),
        ({"paragraphs": [{"context": "A.", "qas": [{"answers": []}]}]}, "a question is no string"),
        ({"question": "Who?", "answers": {"text": ["B"]}}, "it has no context that is a string"),
        ({"question": "Who?", "context": "A.", "answers": "B"}, "a question's answers are no list"),
        (
            {"question": "Who?", "context": "A.", "answers": [{"text": 3}]},
            "an answer has no text that is a string",
        ),
    ],
)
def test_broken_paragraphs_are_named(tmp_path, row, fault):
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": [row]}))
    assert [example for _, example in conversations.squad(path, ANY)] == [fault]


# Two dialogues out of the published file's examples, shortened (CC BY-NC 4.0).
DIALOGUES = {
    "1": {
        "context": "Sydney met Carson's mother for the first time last week. He liked her.",
        "speaker": "Sydney",
        "turns": ["I met Carson's mother.", "How was she?", "She was nice.", "Good.", "It is."],
    },
    "2": {
        "context": "Sydney met  Carson's mother for the first time, last week. He liked her",
        "speaker": "Sydney",
        "turns": ["I had a big moment.", "What happened?"],
    },
}


def test_a_dialogue_ends_with_the_friend_and_stays_with_others_of_its_context(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps(DIALOGUES, indent=4))
    places, rows = zip(*rows_of(path), strict=True)
    assert places == (f"{path}:1", f"{path}:2")
    one, two = map(conversations.commonsense, rows)
    assert said(one) == ["I met Carson's mother.", "How was she?", "She was nice.", "Good."]
    assert one.opening == two.opening != one.messages[:1]
    told = conversations.commonsense(rows[0], with_context=True)
    system = told.messages[0]["content"]
    assert told.messages[0]["role"] == "system" and "Sydney" in system and rows[0]["context"] in system
    assert conversations.commonsense({**rows[0], "turns": ["Hi"]}) == "fewer than two turns"
    assert conversations.commonsense({"turns": "Hi"}) == "its turns are no list of strings"


def test_a_module_of_mathematics_is_read_a_question_and_an_answer_at_a_time(tmp_path):
    path = tmp_path / "algebra__linear_1d.txt"
    path.write_text("Solve 24 = 1 for t.\n4\nSolve -7 = l for l.\n-7\nSolve 0 = x.\n")
    found = list(conversations.mathematics(path))
    assert [said(each) for _, each in found[:2]] == [
        ["Solve 24 = 1 for t.", "4"],
        ["Solve -7 = l for l.", "-7"],
    ]
    assert found[1][0] == f"{path}:3" and found[2] == (f"{path}:5", "a question without an answer")
    assert len(list(conversations.mathematics(path, max_samples=1))) == 1
    packed = tmp_path / "algebra__linear_1d.txt.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert [each for _, each in conversations.mathematics(packed)] == [each for _, each in found]
    hub = tmp_path / "hub.jsonl"
    hub.write_text(json.dumps({"question": repr(b"What is 'a'\xc3\xa9?\n"), "answer": "b'4\\n'"}))
    ((_, example),) = conversations.mathematics(hub)
    assert said(example) == ["What is 'a'é?\n", "4\n"]


# The first row of GSM8K's training set (MIT), main and socratic.
NATALIA = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
MAIN = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nShe sold 48+24 = <<48+24=72>>72 clips.\n#### 72"
SOCRATIC = "How many in May? ** She sold 48/2 = <<48/2=24>>24 in May.\n#### 72"


def test_a_sum_is_answered_in_steps_and_a_sentence():
    row = {"question": NATALIA, "answer": MAIN}
    steps = "Natalia sold 48/2 = 24 clips in May.\nShe sold 48+24 = 72 clips.\nThe answer is 72."
    assert said(conversations.gsm8k(row)) == [NATALIA, steps]
    assert "<<48/2=24>>24 clips" in said(conversations.gsm8k(row, keep_calculations=True))[1]
    socratic = said(conversations.gsm8k({**row, "answer": SOCRATIC}))[1]
    assert socratic == "How many in May?\nShe sold 48/2 = 24 in May.\nThe answer is 72."
    for answer in ("72", "Steps.\n#### "):
        assert conversations.gsm8k({**row, "answer": answer}) == 'its answer has no "#### " and a number'


def test_all_of_gsm8k_is_read():
    """The 1,319 questions of its test, answers as published, out of an evaluation's requests."""
    found = [conversations.gsm8k(row) for _, row in questions_of(rows_of(gsm8k_requests()))]
    assert Counter(type(each) for each in found) == {Conversation: 1319}
    assert said(found[0])[1].endswith(
        "She makes 9 * 2 = $18 every day at the farmer’s market.\nThe answer is 18."
    )
    assert not any("<<" in said(each)[1] or "####" in said(each)[1] for each in found)
