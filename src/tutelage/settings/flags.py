"""Flags as people write them: cut into names and words here, given their types in `config`.

`--flag value`, `--flag=value`, `--betas 0.9 0.999`, hyphens or underscores, `--pack_samples`,
`--no_pack_samples`, `--pack_samples false`. A word such as `-1` or `-.5e3` is a value; any other word that
begins with a hyphen and holds no space is a flag, so a value that looks like one is written `--flag=-value`.
After `--` everything is a value."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

_FLAG = re.compile(r"--?[A-Za-z][\w-]*(=|\Z)")
_TRUTH = {"true", "false", "yes", "no", "on", "off", "1", "0"}


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag of the command line: its key, in underscores, and the words that belong to it."""

    key: str
    words: list[str]

    @property
    def shown(self) -> str:
        return f"--{self.key}"


def read_flags(argv: list[str], kinds: dict[str, Any], problems: list[str]) -> tuple[list[Flag], list[str]]:
    """The flags of `argv` in order, and the words that belong to none of them.

    `kinds` has the type of each known flag, which says how many it takes; mistakes go to `problems`."""
    flags: list[Flag] = []
    stray: list[str] = []
    for flag, words in _cut(argv):
        if not flag:
            stray += words
            continue
        if not flag.startswith("--"):
            problems.append(
                f"{flag}: flags begin with two hyphens, a value like this is written --flag={flag}"
            )
            continue
        key, joined, value = flag[2:].partition("=")
        key = key.replace("-", "_")
        if key not in kinds and _takes(kinds.get(key.removeprefix("no_"))) == 0 and not joined:
            flags.append(Flag(key.removeprefix("no_"), ["false"]))
            stray += words
            continue
        count = _takes(kinds[key]) if key in kinds else None
        taken, rest = ([value], words) if joined else _take(words, count)
        flags.append(Flag(key, taken))
        stray += rest
    return flags, stray


def _cut(argv: list[str]) -> list[tuple[str, list[str]]]:
    """Each flag with every word up to the next one. Words that follow none have the flag ""."""
    runs: list[tuple[str, list[str]]] = [("", [])]
    for place, word in enumerate(argv):
        if word == "--":
            return [*runs, ("", argv[place + 1 :])]
        if _FLAG.match(word):
            runs.append((word, []))
        else:
            runs[-1][1].append(word)
    return runs


def _take(words: list[str], count: int | None) -> tuple[list[str], list[str]]:
    """The words that a flag of this count owns, and what is left over."""
    if count == 0:
        given = bool(words) and words[0].lower() in _TRUTH
        return (words[:1], words[1:]) if given else (["true"], words)
    return words[:count], words[count:] if count else []


def _takes(kind: Any) -> int | None:
    """How many words a flag of this type owns: None for all that follow, 0 for a switch, which needs none."""
    if kind is bool:
        return 0
    if get_origin(kind) is list:
        return None
    if get_origin(kind) is tuple:
        return None if Ellipsis in get_args(kind) else len(get_args(kind))
    members = get_args(kind) if get_origin(kind) is not Literal else ()
    return next((count for count in map(_takes, members) if count != 1), 1)
