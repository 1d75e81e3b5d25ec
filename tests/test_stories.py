"""The built-in stories: varied, the same for the same seed, and judged by what their words say."""

import json
import re
from dataclasses import fields, replace
from random import Random

import pytest

from tutelage.data.stories.plots import (
    Plot,
    answers,
    conversation,
    document,
    follows,
    is_held_out,
    questions,
    read,
    request,
    story,
    tell,
    write,
)
from tutelage.data.stories.words import ANIMALS, COLORS, FACTS, NAMES, PLACES, THINGS, TROUBLES

CHOICES = {"animal": ANIMALS, "name": NAMES, "color": COLORS, "thing": THINGS, "place": PLACES}
CHOICES |= {"trouble": list(TROUBLES), "friend": ANIMALS, "helper": NAMES, "happy": [True, False]}
JACK = Plot(
    animal="rabbit",
    name="Jack",
    color="purple",
    thing="box",
    place="park",
    trouble="fell into the river",
    friend="owl",
    helper="Mia",
    happy=True,
)
JACKS_STORY = (
    "Once upon a time, there was a rabbit named Jack. Jack had a purple box. One day, Jack went to the park "
    "with the purple box. But then the box fell into the river! Jack began to cry. An owl named Mia came by. "
    '"I will help you," said Mia. Mia jumped in and brought back the purple box. '
    '"Thank you, Mia!" said Jack. '
    "They were very happy."
)


def altered(plot: Plot, rng: Random) -> Plot:
    """`plot` with one thing in it made another."""
    field = rng.choice([field.name for field in fields(Plot)])
    taken = {getattr(plot, field), plot.name, plot.helper, plot.animal, plot.friend}
    return replace(plot, **{field: rng.choice([choice for choice in CHOICES[field] if choice not in taken])})


def test_a_plot_is_read_back_from_its_words():
    rng = Random(1)
    for new in (story(rng) for _ in range(3000)):
        assert new.plot.animal != new.plot.friend
        assert read(new.text) == new.plot, new.text


def test_a_story_reads_as_written():
    assert read(JACKS_STORY) == JACK


def test_the_same_seed_tells_the_same_and_another_seed_does_not(tmp_path):
    for name, seed in [("a", 3), ("b", 3), ("c", 4)]:
        write(tmp_path / name, stories=20, conversations=20, seed=seed)
    for file in ("stories.txt", "chats.jsonl", "held_out.jsonl"):
        first, same, other = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert first == same
        assert first != other


def test_thousands_of_stories_are_all_different():
    rng = Random(0)
    texts = [story(rng).text for _ in range(5000)]
    assert len(set(texts)) == 5000
    assert len({text.split(".")[0].split(" named ")[0] for text in texts}) > 50
    words = {word.strip('.,!?"').lower() for text in texts for word in text.split()}
    assert 200 < len(words) < 500
    assert all(50 < len(text.split()) < 110 for text in texts)


def test_articles_agree_and_nothing_is_left_unfilled():
    rng = Random(2)
    for _ in range(2000):
        text = " ".join([document(rng), *(message["content"] for message in conversation(rng))])
        words = text.lower().replace('"', "").split()
        for article, noun in zip(words, words[1:], strict=False):
            assert article != "a" or noun[0] not in "aeiou", text
            assert article != "an" or noun[0] in "aeiou", text
        assert "{" not in text
        assert "  " not in text
        assert "\n" not in text


def test_a_happy_and_a_sad_story_are_the_same_until_help_comes():
    for seed in range(50):
        happy, sad = (tell(replace(JACK, happy=mood), Random(seed)) for mood in (True, False))
        assert happy != sad
        assert happy.split("Mia")[:2] == sad.split("Mia")[:2]


def test_a_story_follows_its_own_request_and_no_altered_one():
    rng = Random(5)
    for _ in range(500):
        new = story(rng)
        assert follows(request(new.plot, rng), new.text)
        other = altered(new.plot, rng)
        told_elsewhere = {field.name for field in fields(Plot)} - {"animal", "name", "color", "thing"}
        if all(getattr(other, field) == getattr(new.plot, field) for field in told_elsewhere):
            assert not follows(request(other, rng), new.text)
            assert not follows(request(new.plot, rng), tell(other, rng))


def test_a_request_that_names_a_mood_wants_it():
    sad = tell(replace(JACK, happy=False), Random(0))
    for mood, happy_follows, sad_follows in [
        ("", True, True),
        ("happy ", True, False),
        ("sad ", False, True),
    ]:
        asked = f"Write a {mood}story about a rabbit named Jack and a purple box."
        assert follows(asked, JACKS_STORY) is happy_follows
        assert follows(asked, sad) is sad_follows


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("They were very happy.", "They were very"),
        ("They were very happy.", "They were very happy"),
        ("They were very happy.", ""),
        ("They were very happy.", "They were very happy and sad."),
        ('"I will help you," said Mia', '"I will help you," said Lily'),
        ("brought back the purple box", "brought back the red box"),
        ("the box fell into", "the drum fell into"),
        ("An owl named Mia came by. ", ""),
        ("went to the park", "went home"),
        (JACKS_STORY, ""),
    ],
)
def test_a_story_that_breaks_off_or_contradicts_itself_follows_nothing(old, new):
    asked = "Write a story about a rabbit named Jack and a purple box."
    assert follows(asked, JACKS_STORY)
    assert old in JACKS_STORY
    assert not follows(asked, JACKS_STORY.replace(old, new))
    assert not follows("Sing a song.", JACKS_STORY)


def test_questions_have_the_answers_that_the_story_gives():
    assert questions(JACK) == {
        "What is the name of the rabbit?": "The rabbit is named Jack.",
        "What color is the box?": "The box is purple.",
        "Where did Jack go?": "He went to the park.",
        "What happened to the box?": "The box fell into the river.",
        "Who helped Jack?": "An owl named Mia helped Jack.",
        "How does the story end?": "The story has a happy ending.",
    }


def test_right_answers_are_accepted_and_answers_about_another_story_are_not():
    rng = Random(7)
    for _ in range(300):
        new = story(rng)
        other = questions(altered(new.plot, rng))
        for question, answer in questions(new.plot).items():
            assert answers(f"{new.text} {question}", answer)
            assert answers(f"{new.text}\n\n{question}", f" {answer}\n")
            assert not answers(question, answer)  # without the story nobody can know
            if question in other and other[question] != answer:
                assert not answers(f"{new.text} {question}", other[question])


def test_known_facts_are_told_from_false_ones():
    for question, answer in FACTS.items():
        assert answers(question, answer)
        assert answers(f"{JACKS_STORY} {question}", answer)
        assert not any(answers(question, other) for other in FACTS.values() if other != answer)
    assert not answers("", "")
    assert not answers("What is the capital of France?", "Paris.")


def test_every_conversation_is_right_by_its_own_check():
    rng, kinds = Random(11), set()
    for _ in range(1000):
        messages = conversation(rng)
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        asked, told = messages[0]["content"], messages[1]["content"]
        if " story about " in asked:
            assert follows(asked, told)
            if len(messages) == 4:
                assert answers(f"{told} {messages[2]['content']}", messages[3]["content"])
        else:
            assert answers(asked, told)
        kinds.add((len(messages), " story about " in asked, asked in FACTS))
    assert len(kinds) == 4


def test_what_is_held_out_is_never_learned_from(tmp_path):
    write(tmp_path, stories=500, conversations=500, seed=0)
    lines = {
        name: (tmp_path / name).read_text("utf-8").splitlines() for name in ("stories.txt", "chats.jsonl")
    }
    assert [len(lines["stories.txt"]), len(lines["chats.jsonl"])] == [500, 500]
    learned = [plot for line in lines["stories.txt"] if (plot := plot_within(line))]
    chats = [(tmp_path / name).read_text("utf-8") for name in ("chats.jsonl", "held_out.jsonl")]
    first, second = (
        [plot_of_chat(json.loads(line)["messages"]) for line in chat.splitlines()] for chat in chats
    )
    learned += [plot for plot in first if plot]
    judged = [plot for plot in second if plot]
    assert len(learned) > 850
    assert len(judged) > 150
    assert not any(is_held_out(plot) for plot in learned)
    assert all(is_held_out(plot) for plot in judged)


def plot_of_chat(messages: list[dict[str, str]]) -> Plot | None:
    """The plot of the story told in a chat, whoever tells it."""
    return plot_within(messages[0]["content"]) or read(messages[1]["content"])


def plot_within(text: str) -> Plot | None:
    """The plot of a story with a title before or questions after it."""
    text = re.sub(r"^A (happy |sad )?story about .*?\. ", "", text.split(" Question: ")[0])
    return read(text) or read(" ".join(re.split(r'(?<=[.!?"]) (?=[A-Z])', text)[:-1]))
