"""TinyStories (https://arxiv.org/abs/2305.07759) as conversations: an instruction, and the story it asks for.

Prompts are rewritten by one function, whether they come from the data or from a person, so that a model is
asked in the words that it was trained on.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tutelage.errors import UserError
from tutelage.text.messages import message_faults

SHARD = re.compile(r"data\d+\.json")
ENDING = " Possible story:"
FEATURES = {  # what the data calls a feature, and how its prompts ask for it
    "Dialogue": "the story should contain at least one dialogue",
    "BadEnding": "the story has a bad ending",
    "MoralValue": "the story has a moral value",
    "Foreshadowing": "the narrative uses foreshadowing or setup and payoff",
    "Twist": "something unexpected happens / there is a plot twist",
    "Conflict": "the story has some form of conflict in it",
}
_OPENING = (
    "Write a short story (3-5 paragraphs) which only uses very simple words that a 3 year old child would "
    "understand."
)
_REPLACED = (
    (_OPENING, "Write a story."),
    (" Remember to only use simple words!", ""),
    ("\n\nPossible story:", ""),
    ("try to at some point use", "try to use"),
)
_BLOCK = 1 << 20  # characters of a shard read at a time
_LONGEST = 64 << 20  # characters of one item; more is no story
_GAP = re.compile(r"[\s,]*")


def rewrite_prompt(prompt: str) -> str:
    """A prompt of the data, shortened as instruct_storyteller_tinyllama2 does; a short one stays as it is."""
    for old, new in _REPLACED:
        prompt = prompt.replace(old, new)
    return prompt.strip().removesuffix(ENDING.strip()).rstrip() + ENDING


def story_prompt(words: Sequence[str], features: Sequence[str] = ()) -> str:
    """The prompt for a story with a verb, a noun and an adjective; features by name or in own words."""
    if len(words) != 3 or not all(word.strip() for word in words):
        given = ", ".join(map(repr, words)) or "none"
        raise UserError(f"words: three are wanted, a verb, a noun and an adjective; given were {given}")
    verb, noun, adjective = (word.strip() for word in words)
    asked = (
        f'{_OPENING} In the story, try to at some point use the verb "{verb}", the noun "{noun}" and the '
        f'adjective "{adjective}".'
    )
    if features:
        listed = ", ".join(map(_asked_for, features))
        asked += f" The story has the following features: {listed}."
    return rewrite_prompt(asked)


def _asked_for(feature: str) -> str:
    """A feature in a prompt's words: those of its name, or the ones given, if they are a phrase."""
    if feature not in FEATURES and " " not in feature.strip():
        raise UserError(
            f"features: {feature!r} is none of {', '.join(FEATURES)}; own words are a phrase, such as "
            '"the story has a dog in it"'
        )
    return FEATURES.get(feature, feature)


def conversation_of(item: Any) -> list[dict[str, str]] | str:
    """An item of a shard as a conversation, or what is wrong with it in a few words."""
    if not isinstance(item, dict) or not isinstance(item.get("story"), str):
        return "not an object with a story"
    instruction = item.get("instruction")
    prompt = instruction.get("prompt:") if isinstance(instruction, dict) else None
    if not isinstance(prompt, str):
        return 'no instruction with a "prompt:" (the colon belongs to the key)'
    if not item["story"].strip():
        return "the story is empty"
    messages = [
        {"role": "user", "content": rewrite_prompt(prompt)},
        {"role": "assistant", "content": item["story"].strip()},
    ]
    return message_faults(messages) or messages


def shards_of(directory: Path) -> list[Path]:
    """The shards dataNN.json in `directory`, or in TinyStories_all_data below it, in order."""
    for place in (directory, directory / "TinyStories_all_data"):
        found = [path for path in place.glob("data*.json") if SHARD.fullmatch(path.name)]
        if found:
            return sorted(found, key=lambda path: (len(path.name), path.name))
    raise UserError(
        f"{directory} holds no shards data00.json, data01.json, …; "
        "`tutelage data download tinystories` fetches them"
    )


def items_of(path: Path) -> Iterator[Any]:
    """The items of a shard, one JSON array, read piece by piece: only some of its text is held at a time."""
    decoder, number = json.JSONDecoder(), 0
    with path.open(encoding="utf-8") as file:
        try:
            text = file.read(_BLOCK)
            if not text.lstrip().startswith("["):
                raise UserError(f"{path} is no shard of TinyStories, which is one JSON array")
            place = text.index("[") + 1
            while True:
                place = _between(text, place)
                try:
                    if text[place] == "]":
                        return
                    item, place = decoder.raw_decode(text, place)
                except (ValueError, IndexError) as error:
                    more = file.read(_BLOCK)
                    if not more or len(text) - place > _LONGEST:
                        raise UserError(_damaged(path, number, error)) from error
                    text, place = text[place:] + more, 0
                    continue
                number += 1
                yield item
        except (UnicodeDecodeError, RecursionError) as error:
            raise UserError(_damaged(path, number, error)) from error


def _between(text: str, place: int) -> int:
    found = _GAP.match(text, place)
    assert found is not None
    return found.end()


def _damaged(path: Path, number: int, error: Exception) -> str:
    what = "it ends in the middle of an item" if isinstance(error, IndexError) else str(error)
    return f"{path} is damaged after its item {number:,} ({what}); remove it and download it anew"
