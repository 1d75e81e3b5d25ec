"""Finds the template that a model was trained with, by what the model's own Jinja chat template writes.

Texts are compared, not sources: the same template has been published in many spellings."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tutelage.text.sandbox import Probe, render_jinja
from tutelage.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tutelage.text.template import Template

_SYSTEM = {"role": "system", "content": " Answer in verse.\n"}
_USER = {"role": "user", "content": "  Who are you?\n"}
_REPLY = {"role": "assistant", "content": "\n A model. "}
_AGAIN = {"role": "user", "content": "Zażółć\n\ngęślą?"}
_NOTHING = {"role": "system", "content": ""}
_PROBES = [
    Probe([_USER], reply=True),  # shows a default system text
    Probe([_SYSTEM, _USER], reply=True),
    Probe([_USER, _REPLY, _AGAIN], reply=True),
    Probe([_SYSTEM, _USER, _REPLY, _AGAIN], reply=True),
    Probe([_USER, _REPLY], reply=False),
    Probe([_SYSTEM, _USER, _REPLY], reply=False),
    Probe([_NOTHING, _USER], reply=True),
]


def first_that_writes(
    source: str, templates: Iterable["Template"], tokenizer: Tokenizer
) -> "Template | None":
    """The first of the templates that writes what the Jinja template `source` writes."""
    texts = render_jinja(source, _PROBES, tokenizer)
    return next((template for template in templates if _writes(template, texts, tokenizer)), None)


def _writes(template: "Template", texts: list[str | None], tokenizer: Tokenizer) -> bool:
    return all(
        _same(template, probe, text, texts, tokenizer)
        for probe, text in zip(_PROBES, texts, strict=True)
        if not _dropped(template, probe)
    )


def _same(
    template: "Template", probe: Probe, text: str | None, texts: list[str | None], tokenizer: Tokenizer
) -> bool:
    if template.fault(probe.messages, answered=False):  # no form for a system message, say
        return text is None or text == _without_system(probe, texts)
    # some older templates always end by asking for a reply
    asking = [*template.render(probe.messages).pieces, *template.file.reply]
    written = (template.render(probe.messages, reply=probe.reply).pieces, asking)
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
