"""The types a setting may have: reading one from text, and saying in words what it takes.

int, float, bool, str, Path, `Literal` choices, lists and tuples of these, and any of them or None."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

_SHOWN = 200  # characters of a value
_WORDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    NoneType: "null",
}


def convert(value: Any, kind: Any) -> Any:
    """`value`, text or None or a list of these, as a `kind`; a ValueError says what it was and what is
    accepted."""
    if value is None and NoneType in members(kind):
        return None
    for member in sorted(
        members(kind), key=lambda member: member is str
    ):  # any text is a str, so that comes last
        try:
            return _convert_member(value, member)
        except ValueError:  # pydantic's ValidationError is one
            continue
    words = value if isinstance(value, list) else [value]
    shown = " ".join("null" if word is None else f'"{word}"' for word in words) if words else "nothing"
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
    raise ValueError(f"was {shown}, accepted: {accepted(kind)}")


def _convert_member(value: Any, kind: Any) -> Any:
    """One alternative of a union. Lists, tuples and choices are ours, pydantic reads the rest."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {str(choice): choice for choice in parts}[value] if value in map(str, parts) else _refuse()
    if origin in (list, tuple):
        words = value if isinstance(value, list) else [value]
        if origin is list or Ellipsis in parts:
            return origin(convert(word, parts[0]) for word in words)
        return tuple(convert(word, part) for word, part in zip(words, parts, strict=True))
    if not isinstance(value, str):
        _refuse()
    if kind is Path:
        return Path(value).expanduser() if value else _refuse()
    if kind is float:
        value = re.sub(r"^([+-]?)\.(inf)$", r"\1\2", value, flags=re.IGNORECASE)  # as YAML spells infinity
    from pydantic import TypeAdapter  # a tenth of a second that --help need not wait for

    result = TypeAdapter(kind).validate_python(value)
    return _refuse() if isinstance(result, float) and math.isnan(result) else result


def _refuse() -> NoReturn:
    raise ValueError("not of this type")


def members(kind: Any) -> tuple[Any, ...]:
    """The alternatives of a union; a plain type is its own only one."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def is_list(kind: Any) -> bool:
    return any(get_origin(member) in (list, tuple) for member in members(kind))


def accepted(kind: Any) -> str:
    """What a setting of this type takes, in words."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return series([accepted(part) for part in parts], "or")
    if origin is Literal:
        return series([str(choice) for choice in parts], "or")
    if origin is list or Ellipsis in parts:
        return f"a list, each {accepted(parts[0])}"
    if origin is tuple:
        return f"{len(parts)} values: " + ", ".join(accepted(part) for part in parts)
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))


def series(words: list[str], conjunction: str) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {conjunction} {words[-1]}"


def metavar(kind: Any) -> str:
    """The placeholder of a setting's value in the help, empty for a switch."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return "|".join(metavar(part) for part in parts if part is not NoneType)
    if origin is Literal:
        return "{" + ",".join(str(choice) for choice in parts) + "}"
    if origin is list or Ellipsis in parts:
        return f"{metavar(parts[0])} ..."
    if origin is tuple:
        return " ".join(metavar(part) for part in parts)
    return {int: "INTEGER", float: "NUMBER", bool: "", str: "TEXT", Path: "PATH"}.get(kind, "VALUE")


def shown(value: Any) -> str:
    """A value as the command line or a YAML file would write it."""
    if isinstance(value, list | tuple):
        return " ".join(shown(item) for item in value) if value else "none"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
