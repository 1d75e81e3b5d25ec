"""Finds the template that a model was trained with, by what the model's own Jinja chat template writes.

Texts are compared, not sources: the same template has been published in many spellings."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tutelage.text.messages import with_tools
from tutelage.text.sandbox import Probe, render_jinja
from tutelage.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tutelage.text.template import Template

_SYSTEM = {"role": "system", "content": " Answer in verse.\n"}
_USER = {"role": "user", "content": "  Who are you?\n"}
_REPLY = {"role": "assistant", "content": "\n A model. "}
_AGAIN = {"role": "user", "content": "Zażółć\n\ngęślą?"}
_NOTHING = {"role": "system", "content": ""}
_TOOL = {"name": "pogoda", "description": "Będzie <ciepło>?", "parameters": {"type": "object"}}
_PROBES = [
    Probe([_USER], reply=True),  # shows a default system text
    Probe([_SYSTEM, _USER], reply=True),
    Probe([_USER, _REPLY, _AGAIN], reply=True),
    Probe([_SYSTEM, _USER, _REPLY, _AGAIN], reply=True),
    Probe([_USER, _REPLY], reply=False),
    Probe([_SYSTEM, _USER, _REPLY], reply=False),
    Probe([_NOTHING, _USER], reply=True),
]
_WITH_TOOLS = Probe([_USER], reply=True, tools=[{"type": "function", "function": _TOOL}])


def first_that_writes(
    source: str, templates: Iterable["Template"], tokenizer: Tokenizer
) -> "Template | None":
    """The first of the templates that writes what the Jinja template `source` writes.

    The best tells of tools as it does; after it come those that refuse tools, and last those that tell of
    them where it says nothing."""
    *texts, told = render_jinja(source, [*_PROBES, _WITH_TOOLS], tokenizer)
    found = [template for template in templates if _writes(template, texts, tokenizer)]
    silent = told in (None, texts[0])
    for wanted in (
        lambda template: _tells(template, told, tokenizer) or (silent and template.file.tools is None),
        lambda template: template.file.tools is None,
        lambda template: silent,
    ):
        if best := next(filter(wanted, found), None):
            return best
    return None


def writes_always(source: str, template: "Template", tokenizer: Tokenizer) -> bool:
    """Whether the Jinja template `source` writes every conversation that the template does as it does."""
    *texts, told = render_jinja(source, [*_PROBES, _WITH_TOOLS], tokenizer)
    if not all(
        _same(template, probe, text, texts, tokenizer, exactly=True)
        for probe, text in zip(_PROBES, texts, strict=True)
    ):
        return False
    return template.file.tools is None or _tells(template, told, tokenizer)


def _tells(template: "Template", told: str | None, tokenizer: Tokenizer) -> bool:
    """Whether a template has a form for tools, and it is that of a text in which a model is told of them."""
    if template.file.tools is None:
        return False
    pieces = template.render(with_tools(_WITH_TOOLS.messages, _WITH_TOOLS.tools), reply=True).pieces
    return told == "".join(piece.text for piece in template.named(pieces, tokenizer))


def _writes(template: "Template", texts: list[str | None], tokenizer: Tokenizer) -> bool:
    return all(
        _same(template, probe, text, texts, tokenizer, exactly=False)
        for probe, text in zip(_PROBES, texts, strict=True)
        if not _dropped(template, probe)
    )


def _same(
    template: "Template",
    probe: Probe,
    text: str | None,
    texts: list[str | None],
    tokenizer: Tokenizer,
    *,
    exactly: bool,
) -> bool:
    if template.fault(probe.messages, answered=False):  # no form for a system message, say
        return text is None or text == _without_system(probe, texts)
    written = [template.render(probe.messages, reply=probe.reply).pieces]
    if not exactly:  # some older templates always end by asking for a reply
        written.append([*template.render(probe.messages).pieces, *template.file.reply])
    return text in ["".join(p.text for p in template.named(pieces, tokenizer)) for pieces in written]


def _without_system(probe: Probe, texts: list[str | None]) -> str | None:
    """What the model's template makes of the probe without its system message, if that is a probe too."""
    rest = Probe(probe.messages[1:], probe.reply)
    return texts[_PROBES.index(rest)] if rest in _PROBES else None


def _dropped(template: "Template", probe: Probe) -> bool:
    """Mistral's Jinja writes the system text only where a user message is the very last; ours keeps it."""
    into = template.file.into
    return (
        into is not None
        and into.user == "last_user"
        and probe.messages[0]["role"] == "system"
        and not probe.reply
    )
