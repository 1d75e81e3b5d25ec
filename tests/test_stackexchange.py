"""Stack Exchange's questions become ranked answers in plain text."""

from random import Random

import datasets
import pytest

from tutelage.data.builders import stackexchange
from tutelage.data.builders.html_text import text_of
from tutelage.data.builders.raw_rows import rows_of
from tutelage.data.builders.records import Choice, record_of

QUESTION = "How do I sort a list in Python without changing the list that I have?"
LONG = "Call sorted with the list, which gives you a new one back."


def asked(question: str = f"<p>{QUESTION}</p>", **scores: object) -> dict:
    """A row with answers that say what they are called, and their votes."""
    people = {"author": "x", "author_id": 1, "author_profile": "https://stackexchange.com/users/1"}
    answers = [
        {"answer_id": n, **people, "pm_score": score, "selected": n == 0, "text": f"<p>{name}: {LONG}</p>"}
        for n, (name, score) in enumerate(scores.items())
    ]
    row = {"qid": 1, "question": question, "answers": answers, "date": "2011/05/03"}
    return row | {"metadata": ["https://stackexchange.com/questions/1", "https://stackexchange.com"]}


def names(record: dict) -> list[str]:
    return [answer.partition(":")[0] for answer in record["answers"]]


def test_answers_are_ranked_by_votes_and_the_best_are_kept():
    ranked = stackexchange.ranked_of(asked(a=1, b=7, c=-1, d=3, e=0))
    record = record_of(ranked, Choice(kind="ranked", max_answers=4), Random(0))
    assert record["prompt"] == QUESTION
    assert (names(record), record["scores"]) == (["b", "d", "a", "e"], [7, 3, 1, 0])
    ranked = stackexchange.ranked_of(asked(a=1, b=7, c=0), drop_zero_scores=True)
    assert names(record_of(ranked, Choice(kind="ranked"), Random(0))) == ["b", "a"]
    best = record_of(ranked, Choice(kind="best"), Random(0))
    assert best["messages"] == [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": f"b: {LONG}"},
    ]


def test_of_equal_votes_one_answer_is_drawn():
    ranked = stackexchange.ranked_of(asked(a=2, b=5, c=2, d=2, e=1))
    drawn = [names(record_of(ranked, Choice(kind="ranked"), Random(seed))) for seed in range(60)]
    assert {tuple(each) for each in drawn} == {("b", middle, "e") for middle in "acd"}
    fewer = record_of(ranked, Choice(kind="ranked", min_answers=4), Random(0))
    assert fewer == "fewer than 4 answers of different scores"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (asked(f"<p>{QUESTION} See my Video.</p>", a=1, b=2), "the question is about pictures"),
        (asked(f'<p>{QUESTION} <a href="https://youtube.com/x">Look</a></p>', a=1, b=2), "about pictures"),
        (asked("<p>How do I sort?</p>", a=1, b=2), "a question of fewer than 8 words"),
        (asked(a=1), "fewer than two answers that are long enough"),
        ({**asked(a=1), "answers": None}, "its answers are no list"),
        ({**asked(a=1), "answers": ["x"]}, "an answer has no text or no pm_score"),
        (
            {**asked(a=1), "answers": [{"text": "x", "pm_score": None}]},
            "an answer has no text or no pm_score",
        ),
        ({**asked(a=1), "question": 7}, "it has no question that is a string"),
    ],
)
def test_questions_that_cannot_be_used_are_skipped(row, reason):
    skipped = stackexchange.ranked_of(row)
    assert isinstance(skipped, str) and reason in skipped


def test_short_answers_are_left_out_and_longer_words_are_no_pictures():
    row = asked("<p>Is videography a word, and who may use it, and where, and when?</p>", a=1, b=2, c=3)
    row["answers"][1]["text"] = "<p>I think that it is so.</p>"
    ranked = stackexchange.ranked_of(row)
    assert [answer[0] for answer in ranked.answers] == ["c", "a"]


def test_rows_read_from_parquet_are_those_that_were_written(tmp_path):
    rows = [asked(a=1, b=7), asked(a=0, b=-1, c=3)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "x.parquet")
    assert [row for _, row in rows_of(tmp_path / "x.parquet")] == rows


def test_html_becomes_text_and_code_keeps_its_lines():
    html = (
        "<p>A <em>small</em>\n problem with <code>ls&nbsp;-l</code>, see <a href='http://x.y'>here</a>:</p>\n\n"
        '<pre class="lang-py"><code>def f(x):\n    if x &lt; 1:\n\n        return  2\n</code></pre>\n'
        "<ul>\n<li>one &amp; <b>two</b></li>\n<li>three\n<ol><li>a</li><li>b</li></ol></li>\n</ul>\n"
        "<blockquote><p>quoted<br>line</p></blockquote><script>alert(1)</script><p>End <i>unclosed"
    )
    assert text_of(html) == (
        "A small problem with ls -l, see here:\n\n"
        "```\ndef f(x):\n    if x < 1:\n\n        return  2\n```\n\n"
        "- one & two\n- three\n  1. a\n  2. b\n\n"
        "quoted\nline\n\nEnd unclosed"
    )


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("", ""),
        ("plain, a < b & c <3", "plain, a < b & c <3"),
        ("</pre></ul></li>a", "a"),
        ("<pre>open\n  x", "```\nopen\n  x\n```"),
        ("<tr><td>1</td><td>2</td></tr><tr><td>3</td></tr>", "1 | 2\n3"),
        ("<p> </p><p>a</p><br><br><br>b", "a\n\nb"),
    ],
)
def test_html_in_any_state_gives_text(html, text):
    assert text_of(html) == text
