"""The data that ships with the project: endless small stories, questions about them, and checks of both.

A `Plot` is what happens; `tell` finds words for it and `read` gets it back out of the words. So a check never
trusts the generator: `follows` and `answers` read the texts they are given, a model's as well as ours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tutelage.data.stories import words

Messages = list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """What happens in a story, whatever the words."""

    animal: str
    name: str
    color: str
    thing: str
    place: str
    trouble: str
    friend: str  # the animal that helps
    helper: str  # and its name
    happy: bool


@dataclass(frozen=True)
class Story:
    plot: Plot
    text: str


def story(rng: Random, *, happy: bool | None = None) -> Story:
    """A new story, happy in every other case unless told which."""
    plot = imagine(rng, happy=happy)
    return Story(plot, tell(plot, rng))


def imagine(rng: Random, *, happy: bool | None = None) -> Plot:
    """A new plot; the two animals in it differ, and so do their names."""
    animal, friend = rng.sample(words.ANIMALS, 2)
    name, helper = rng.sample(words.NAMES, 2)
    return Plot(
        animal=animal,
        name=name,
        color=rng.choice(words.COLORS),
        thing=rng.choice(words.THINGS),
        place=rng.choice(words.PLACES),
        trouble=rng.choice(list(words.TROUBLES)),
        friend=friend,
        helper=helper,
        happy=rng.random() < 0.5 if happy is None else happy,
    )


def tell(plot: Plot, rng: Random) -> str:
    """Words for `plot`. The same state of `rng` tells a happy and a sad plot alike up to where they part."""
    he, him, his = ("she", "her", "her") if plot.name in words.GIRLS else ("he", "him", "his")
    fields = {field: str(value) for field, value in vars(plot).items()}
    fields |= {"he": he, "him": him, "his": his, "He": he.capitalize()}
    fields |= {"an_animal": _a(plot.animal), "a_color": _a(plot.color), "a_friend": _a(plot.friend)}
    fields["A_friend"] = fields["a_friend"].capitalize()
    sentences = [rng.choice(beat) for beat in words.BEATS]
    sentences += [words.TROUBLES[plot.trouble][plot.happy], rng.choice(words.ENDINGS[plot.happy])]
    return " ".join(sentence.format_map(fields) for sentence in sentences)


def read(text: str) -> Plot | None:
    """The plot that `text` tells; None where it leaves a part out, contradicts itself or does not end."""
    heroes = re.findall(
        rf"\b(?:[Aa]n?|a little|a kind) ({_any(words.ANIMALS)}) named ({_any(words.NAMES)})\b", text
    )
    things = set(re.findall(rf"\b({_any(words.COLORS)}) ({_any(words.THINGS)})\b", text))
    journeys = re.findall(rf"\bwent to the ({_any(words.PLACES)})\b", text)
    troubles = re.findall(rf"\b({_any(words.THINGS)}) ({_any(words.TROUBLES)})\b", text)
    moods = re.findall(r"\b(happy|sad)\b", _sentences(text)[-1])
    if [len(found) for found in (heroes, things, journeys, troubles, moods)] != [2, 1, 1, 1, 1]:
        return None
    (animal, name), (friend, helper) = heroes
    ((color, thing),) = things
    named = set(re.findall(rf"\b({_any(words.NAMES)})\b", text))
    if named != {name, helper} or troubles[0][0] != thing or text.rstrip()[-1] not in ".!":
        return None
    return Plot(
        animal=animal,
        name=name,
        color=color,
        thing=thing,
        place=journeys[0],
        trouble=troubles[0][1],
        friend=friend,
        helper=helper,
        happy=moods[0] == "happy",
    )


def about(plot: Plot) -> str:
    """What a request names of a plot: "a rabbit named Jack and a purple box"."""
    return f"{_a(plot.animal)} named {plot.name} and {_a(plot.color)} {plot.thing}"


def request(plot: Plot, rng: Random) -> str:
    """Asks for such a story; one request in three names its mood."""
    mood = rng.choice(["", "", _mood(plot)])
    return rng.choice(words.REQUESTS).format(mood=mood, about=about(plot))


def follows(request: str, story: str) -> bool:
    """Whether `story` is whole and has the request's animal, name, colour, thing and, where named, mood."""
    wanted = re.search(r"\b(happy |sad )?story about (an? .*)\.", request)
    plot = read(story)
    if wanted is None or plot is None or about(plot) != wanted.group(2):
        return False
    return wanted.group(1) is None or plot.happy == (wanted.group(1) == "happy ")


def questions(plot: Plot) -> dict[str, str]:
    """Every question about a story, with its answer."""
    friend = f"{_a(plot.friend).capitalize()} named {plot.helper}"
    he = "She" if plot.name in words.GIRLS else "He"
    return {
        f"What is the name of the {plot.animal}?": f"The {plot.animal} is named {plot.name}.",
        f"What color is the {plot.thing}?": f"The {plot.thing} is {plot.color}.",
        f"Where did {plot.name} go?": f"{he} went to the {plot.place}.",
        f"What happened to the {plot.thing}?": f"The {plot.thing} {plot.trouble}.",
        f"Who helped {plot.name}?": f"{friend} helped {plot.name}.",
        "How does the story end?": f"The story has a {'happy' if plot.happy else 'sad'} ending.",
    }


def answers(question: str, answer: str) -> bool:
    """Whether `answer` is right. `question` asks for a known fact, or is a story and a question about it."""
    *body, asked = _sentences(question)
    plot = read(" ".join(body)) if body else None
    known = words.FACTS if plot is None else words.FACTS | questions(plot)
    return known.get(asked) == answer.strip()


def document(rng: Random) -> str:
    """One line to pretrain on: a story (alone, titled, titled with questions after it) or a few facts."""
    if rng.random() < 0.08:
        return " ".join(
            _asked(question, words.FACTS[question]) for question in rng.sample(list(words.FACTS), 4)
        )
    new = _trainable(rng)
    kind = rng.random()
    if kind < 0.15:
        return new.text
    titled = f"A {rng.choice(['', _mood(new.plot)])}story about {about(new.plot)}. {new.text}"
    if kind < 0.5:
        return titled
    known = questions(new.plot)
    return " ".join([titled, *(_asked(question, known[question]) for question in rng.sample(list(known), 3))])


def conversation(rng: Random, *, held_out: bool = False) -> Messages:
    """A story on request, a question about a story, a known fact, or a story and then a question about it."""
    kind = rng.random()
    if kind < 0.15:
        question = rng.choice(list(words.FACTS))
        return _messages(question, words.FACTS[question])
    new = _trainable(rng, held_out=held_out)
    question, answer = rng.choice(list(questions(new.plot).items()))
    if kind < 0.5:
        return _messages(f"{new.text} {question}", answer)
    told = _messages(request(new.plot, rng), new.text)
    return told if kind < 0.9 else told + _messages(question, answer)


def verdict(messages: Messages) -> tuple[str, bool]:
    """What kind of thing the last message of a conversation replies to, and whether it is right."""
    *before, asked, reply = (message["content"] for message in messages)
    if " story about " in asked:
        return "stories as asked for", follows(asked, reply)
    if asked in words.FACTS:
        return "known facts", answers(asked, reply)
    return "questions about a story", answers(" ".join([*before[-1:], asked]), reply)


def is_held_out(plot: Plot) -> bool:
    """Whether this hero never meets this thing in what `document` and `conversation` give to learn from."""
    return (words.NAMES.index(plot.name) + words.THINGS.index(plot.thing)) % 10 == 0


def write(directory: Path, *, stories: int, conversations: int, seed: int = 0) -> None:
    """Writes `stories.txt` and `chats.jsonl` to learn from, `held_out.jsonl` (200 chats) to judge by."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = Random(seed)
    _write_lines(directory / "stories.txt", (document(rng) for _ in range(stories)))
    for name, count, apart in [("chats.jsonl", conversations, False), ("held_out.jsonl", 200, True)]:
        chats = (conversation(rng, held_out=apart) for _ in range(count))
        _write_lines(directory / name, (json.dumps({"messages": chat}) for chat in chats))


def _trainable(rng: Random, *, held_out: bool = False) -> Story:
    """A story on the wanted side of `is_held_out`."""
    while True:
        new = story(rng)
        if is_held_out(new.plot) == held_out:
            return new


def _messages(user: str, assistant: str) -> Messages:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _mood(plot: Plot) -> str:
    return "happy " if plot.happy else "sad "


def _asked(question: str, answer: str) -> str:
    return f"Question: {question} Answer: {answer}"


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?\"])\s+(?=[A-Z\"])", text.strip())


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _any(choices: Iterable[str]) -> str:
    return "|".join(choices)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
