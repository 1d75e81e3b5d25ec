"""A program that renders a stranger's Jinja chat template: requests come on stdin, a line each.

It is a process of its own, so that a template which loops or grows without end harms nobody: it has so many
seconds for a request, so much memory, and no more. `sandbox.py` starts it; nothing imports it."""

import datetime
import json
import resource
import sys
from contextlib import suppress
from functools import cache
from typing import Any, NoReturn

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 10
MEMORY = 1 << 30
LEARNED_BEGIN, LEARNED_END = "\ufdd2", "\ufdd3"  # around what stands in `{% generation %}`
DAY = datetime.datetime(2024, 9, 25)  # of which `llama3.2_instruct` tells too


class Generation(Extension):
    """Marks what stands in `{% generation %}`, with which some templates say what a model writes."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        begin, end = (nodes.Output([nodes.TemplateData(mark)]) for mark in (LEARNED_BEGIN, LEARNED_END))
        return [begin, *parser.parse_statements(("name:endgeneration",), drop_needle=True), end]


def raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as chat templates expect it: characters as they are, and no HTML escapes."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def strftime_now(form: str) -> str:
    """A day that does not change, so that a template writes tomorrow what it writes today."""
    return DAY.strftime(form)


@cache
def compiled(source: str) -> Template:
    """A template, as transformers sets Jinja up for chat templates."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = strftime_now
    return made.from_string(source)


def render_all(request: dict[str, Any]) -> dict[str, Any]:
    """For each input its texts, one a cut: its first so many messages, and whether a reply is asked for.

    A cut that the template refuses gives null, and the first reason for one stands under `reasons`."""
    template, left = compiled(request["source"]), request["longest"]
    answer: dict[str, Any] = {"texts": [], "reasons": []}
    for given in request["inputs"]:
        texts, reason = [], None
        for count, reply in given["cuts"]:
            values = {
                **given["values"],
                "messages": given["messages"][:count],
                "add_generation_prompt": reply,
            }
            try:
                pieces = []
                for piece in template.generate(values):
                    left -= len(piece)
                    if left < 0:
                        raise MemoryError
                    pieces.append(piece)
                texts.append("".join(pieces))
            except (
                TemplateError,
                TypeError,
                ValueError,
                LookupError,
                AttributeError,
                ArithmeticError,
            ) as error:
                texts.append(None)
                reason = reason or str(error) or type(error).__name__
        answer["texts"].append(texts)
        answer["reasons"].append(reason)
    return answer


def answered(request: dict[str, Any]) -> dict[str, Any]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + SECONDS, most))
    try:
        return render_all(request)
    except (TemplateError, RecursionError, SyntaxError) as error:
        return {"fault": f"it is not valid Jinja: {error}"}
    except MemoryError:
        longest = request["longest"]
        return {"fault": f"its output grew past {longest} characters, or its memory past {MEMORY >> 20} MiB"}


def main() -> None:
    with suppress(ValueError, OSError):  # macOS knows no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        print(json.dumps(answered(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
