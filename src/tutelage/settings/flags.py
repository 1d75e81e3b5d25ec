"""Flags as people write them: cut into names and words here, given their types in `config`.

`--flag value`, `--flag=value`, `--betas 0.9 0.999`, hyphens or underscores, `--pack_samples`,
`--no_pack_samples`, `--pack_samples false`. A word such as `-1` or `-.5e3` is a value; any other word that
begins with a hyphen and holds no space is a flag, so a value that looks like one is written `--flag=-value`.
After `--` everything is a value."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

_FLAG = re.compile(r"--?[A-Za-z][\w-]*(=|$)")
_TRUTH = {"true", "false", "yes", "no", "on", "off", "1", "0"}

Arity = int | Literal["one", "switch", "many"]


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag of the command line: its key, in underscores, and the words that belong to it."""

    key: str
    words: list[str]
    joined: bool = False  # written --flag=value

    @property
    def shown(self) -> str:
        return f"--{self.key}"


def read_flags(argv: list[str], kinds: dict[str, Any], problems: list[str]) -> tuple[list[Flag], list[str]]:
    """The flags of `argv` in order, and the words that belong to none of them.

    `kinds` gives the type of every known flag, which tells how many words it takes; mistakes go to
    `problems`."""
    flags: list[Flag] = []
    stray: list[str] = []
    for flag, words in _cut(argv):
        if not flag:
            stray += words
            continue
        if not flag.startswith("--"):
            problems.append(
                f"{flag}: flags begin with two hyphens; a value that begins with one is written --flag={flag}"
            )
            continue
        key, joined, value = flag[2:].partition("=")
        key = key.replace("-", "_")
        if (
            key not in kinds
            and key.startswith("no_")
            and _takes(kinds.get(key[3:])) == "switch"
            and not joined
        ):
            key, value, joined = key[3:], "false", "="
        taken, rest = (
            ([value], words) if joined else _take(words, _takes(kinds[key]) if key in kinds else "many")
        )
        stray += rest
        flags.append(Flag(key, taken, bool(joined)))
    return flags, stray


def _cut(argv: list[str]) -> list[tuple[str, list[str]]]:
    """Each flag with every word up to the next one; words before the first flag and after `--` come under
    ""."""
    runs: list[tuple[str, list[str]]] = [("", [])]
    for place, word in enumerate(argv):
        if word == "--":
            return [*runs, ("", argv[place + 1 :])]
        if _FLAG.match(word) and (not re.search(r"\s", word) or "=" in word.split()[0]):
            runs.append((word, []))
        else:
            runs[-1][1].append(word)
    return runs


def _take(words: list[str], arity: Arity) -> tuple[list[str], list[str]]:
    """The words a flag of this arity owns, and what is left over."""
    if arity == "many":
        return words, []
    if arity == "switch":
        given = bool(words) and words[0].lower() in _TRUTH
        return (words[:1], words[1:]) if given else (["true"], words)
    count = 1 if arity == "one" else int(arity)
    return words[:count], words[count:]


def _takes(kind: Any) -> Arity:
    """How many words a flag of this type owns."""
    if kind is bool:
        return "switch"
    if get_origin(kind) is list:
        return "many"
    if get_origin(kind) is tuple:
        return "many" if Ellipsis in get_args(kind) else len(get_args(kind))
    members = get_args(kind) if get_origin(kind) is not Literal else ()
    arities: list[Arity] = [_takes(member) for member in members]
    return next((arity for arity in arities if arity != "one"), "one")
