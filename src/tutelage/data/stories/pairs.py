"""Preferences about the small stories, each with its check: happy endings, and doing what was asked."""

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from tutelage.data.stories import words
from tutelage.data.stories.plots import Messages, Plot, about, follows, imagine, is_held_out, tell

_NAMES_MOOD = re.compile(r"\b(happy|sad) story about ")
_MOODS = re.compile(r"\b(happy|sad)\b")
HELD_OUT_PAIRS = 400


def pair(rng: Random, *, held_out: bool = False) -> dict[str, Any]:
    """A request that names no mood, a story to be chosen and one to be rejected.

    In three of four pairs both tell the same plot and the rejected story ends sadly; in the others both end
    happily and the rejected one is about another animal, name, colour or thing. Half of all pairs use the
    same words up to where the stories part, the others tell them in different words."""
    plot = _trainable(rng, held_out=held_out)
    other = replace(plot, happy=False) if rng.random() < 0.75 else _about_another(plot, rng)
    words_of_chosen = rng.getrandbits(64)
    words_of_rejected = words_of_chosen if rng.random() < 0.5 else rng.getrandbits(64)
    return {
        "prompt": rng.choice(words.REQUESTS).format(mood="", about=about(plot)),
        "chosen": tell(plot, Random(words_of_chosen)),
        "rejected": tell(other, Random(words_of_rejected)),
    }


def write_pairs(directory: Path, *, pairs: int, seed: int) -> None:
    """Writes `pairs.jsonl` to learn from and `held_out_pairs.jsonl` to judge by; nothing for 0 pairs."""
    if not pairs:
        return
    directory.mkdir(parents=True, exist_ok=True)
    rng = Random(f"pairs {seed}")  # its own: the other files do not depend on the pairs
    for name, count, apart in [("pairs", pairs, False), ("held_out_pairs", HELD_OUT_PAIRS, True)]:
        with (directory / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(pair(rng, held_out=apart)) + "\n" for _ in range(count))


def is_happy(story: str) -> bool | None:
    """Whether the last sentence of a story says that it ends happily; None where it says neither or both.

    The rest of the story may be whatever it is: `stories.read` judges that."""
    story = story.strip()
    if not story or story[-1] not in ".!":
        return None
    moods = set(_MOODS.findall(re.split(r"(?<=[.!?\"])\s+", story)[-1]))
    return moods == {"happy"} if len(moods) == 1 else None


def judge(conversations: Iterable[Messages]) -> dict[str, tuple[int, int]]:
    """Of the stories written for requests without a mood: how many end happily, how many follow the request,
    how many do both; each beside how many there are.

    Other conversations are passed over."""
    asked = happy = following = both = 0
    for *_, request, reply in conversations:
        wanted = request["content"]
        if " story about " not in wanted or _NAMES_MOOD.search(wanted):
            continue
        asked += 1
        ends_well, done = is_happy(reply["content"]) is True, follows(wanted, reply["content"])
        happy, following, both = happy + ends_well, following + done, both + (ends_well and done)
    return {
        "stories that end happily": (happy, asked),
        "stories as asked for": (following, asked),
        "stories that do both": (both, asked),
    }


def _trainable(rng: Random, *, held_out: bool) -> Plot:
    """A happy plot on the wanted side of `is_held_out`."""
    while True:
        plot = imagine(rng, happy=True)
        if is_held_out(plot) == held_out:
            return plot


def _about_another(plot: Plot, rng: Random) -> Plot:
    """`plot` with one of the things that a request names made another, on the same side of `is_held_out`."""
    while True:
        field, choices = rng.choice(
            [
                ("animal", [animal for animal in words.ANIMALS if animal != plot.friend]),
                ("name", [name for name in words.NAMES if name != plot.helper]),
                ("color", words.COLORS),
                ("thing", words.THINGS),
            ]
        )
        other = replace(plot, **{field: rng.choice(choices)})
        if other != plot and is_held_out(other) == is_held_out(plot):
            return other
