"""Measures of one tokenizer, or of two side by side, as a table to read and as a record for programs."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.table import Table

from tutelage.report.inspect import visible
from tutelage.text.measure import Measures

_Shown = Callable[[Measures], str]
_Value = Callable[[Measures], float]
# What each row shows, and the number whose ratio of two tokenizers tells something, where there is one.
_ROWS: list[tuple[str, _Shown, _Value | None]] = [
    ("vocabulary", lambda m: f"{m.vocabulary:,}", lambda m: m.vocabulary),
    ("of it control tokens", lambda m: f"{m.control:,}", None),
    ("tokens", lambda m: f"{m.tokens:,}", lambda m: m.tokens),
    ("tokens a text", lambda m: f"{m.tokens / m.texts:,.1f}", None),
    ("bytes a token", lambda m: f"{m.per_token(m.bytes):.3f}", lambda m: m.per_token(m.bytes)),
    ("characters a token", lambda m: f"{m.per_token(m.characters):.3f}", None),
    ("vocabulary used", lambda m: _share(m.used_share), None),
    ("tokens that are bytes", lambda m: _share(m.of_tokens(m.byte_tokens)), None),
    ("unknown tokens", lambda m: _share(m.of_tokens(m.unknown)), None),
    ("texts that come back", lambda m: _share(1 - m.changed / m.texts), None),
]


def table(measures: Mapping[str, Measures]) -> Table:
    """A column for every tokenizer, by its name; where there are two, a column of the first by the second."""
    found = list(measures.values())
    made = Table(title=f"{found[0].texts:,} texts, {found[0].bytes:,} bytes", title_justify="left")
    made.add_column()
    for name in measures:
        made.add_column(name, justify="right", overflow="fold")
    if len(found) == 2:
        made.add_column("ratio", justify="right")
    for title, shown, value in _ROWS:
        cells = [shown(each) for each in found]
        if len(found) == 2:
            cells.append(f"{value(found[0]) / value(found[1]):.3f}" if value and value(found[1]) else "")
        made.add_row(title, *cells)
    for script, (count, _) in found[0].scripts.items():
        shares = (each.scripts.get(script, (1, 0)) for each in found)
        title = f"{script}, {_share(count / found[0].characters)}"
        made.add_row(title, *(f"{_share(whole / seen)} whole" for seen, whole in shares))
    made.add_row("longest", *("\n".join(map(_visible, each.longest)) for each in found))
    return made


def record(name: str, measures: Measures) -> dict[str, Any]:
    """The same as plain values: counts, and the ratios of the table."""
    counts = {key: getattr(measures, key) for key in _COUNTS}
    return {
        "tokenizer": name,
        **counts,
        "tokens_per_text": measures.tokens / measures.texts,
        "bytes_per_token": measures.per_token(measures.bytes),
        "characters_per_token": measures.per_token(measures.characters),
        "used_share": measures.used_share,
        "scripts": {
            script: {"characters": seen, "whole": whole} for script, (seen, whole) in measures.scripts.items()
        },
    }


_COUNTS = ("vocabulary", "control", "texts", "bytes", "characters", "tokens", "used", "byte_tokens")
_COUNTS += ("unknown", "changed", "changed_named", "longest")


def _share(share: float) -> str:
    """A percentage that says 0 only of nothing and 100 only of all."""
    if 0 < share < 0.0001:
        return "< 0.01 %"
    if 0.9999 < share < 1:
        return "> 99.99 %"
    return f"{share:.2%}".replace("%", " %")


def _visible(token: str) -> str:
    return "".join(characters for characters, _ in visible(token))
