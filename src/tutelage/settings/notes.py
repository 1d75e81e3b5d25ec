"""What the source of a config class says about its fields: comments that Python itself forgets.

A field is explained by the comment behind it, the comment lines right above it, or the string below it. A
comment line after an empty line, or the first line of the class, is the heading of the fields that follow
it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import re
import textwrap
import tokenize

_FOR_TOOLS = re.compile(r"#\s*(noqa|pyright|type)\b(: ?\w*(\[\w*\])?)?")


@dataclasses.dataclass(frozen=True, slots=True)
class Note:
    """The explanation of a field, and the heading it stands under."""

    text: str = ""
    group: str = ""


def field_notes(config_class: type) -> dict[str, Note]:
    """The note of every field, those of base classes included; nothing for a class without a source file."""
    notes: dict[str, Note] = {}
    for parent in reversed(config_class.__mro__):
        if dataclasses.is_dataclass(parent):
            for name, note in _notes_of_one(parent).items():
                known = notes.get(name, Note())  # a new default in a subclass need not repeat what it means
                notes[name] = Note(note.text or known.text, note.group or known.group)
    return notes


def _notes_of_one(config_class: type) -> dict[str, Note]:
    try:
        source = textwrap.dedent(inspect.getsource(config_class))
    except (OSError, TypeError):
        return {}
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.ClassDef)
    lines = source.splitlines()
    comments = _comments(source)
    notes: dict[str, Note] = {}
    group, previous_end = "", definition.lineno
    for place, node in enumerate(definition.body):
        above = [n for n in range(previous_end + 1, node.lineno) if n in comments]
        heads = [n for n in above if not lines[n - 2].strip() or n == definition.lineno + 1]
        group = comments[heads[-1]] if heads else group
        previous_end = node.end_lineno or node.lineno
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            behind = [comments[n] for n in range(node.lineno, previous_end + 1) if n in comments]
            texts = (
                [comments[n] for n in above if n not in heads]
                + behind
                + _string_below(definition.body, place)
            )
            notes[node.target.id] = Note(" ".join(texts), group)
    return notes


def _comments(source: str) -> dict[int, str]:
    """Line number to the text of the comment on it."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    return {line: _FOR_TOOLS.sub("", text).lstrip("#: ") for line, text in comments.items()}


def _string_below(body: list[ast.stmt], place: int) -> list[str]:
    below = body[place + 1] if place + 1 < len(body) else None
    if (
        isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    ):
        return [" ".join(below.value.value.split())]
    return []
