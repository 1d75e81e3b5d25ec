"""A script that renders a stranger's Jinja chat template: inputs as JSON on stdin, texts as JSON on stdout.

It runs in a process of its own, so that a template which loops or grows without end harms nobody: the process
has so many seconds and so much memory, and no more. `sandbox.py` starts it; nothing imports it."""

import datetime
import json
import resource
import sys
from contextlib import suppress
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 10
DAY = datetime.datetime(2024, 9, 25)  # of which `llama3.2_instruct` tells too
MEMORY = 1 << 30
LONGEST = 1_000_000  # characters of all the texts together


class Generation(Extension):
    """Lets `{% generation %}` pass, with which some templates mark what a model says."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


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
    """A day that does not change, so that a template is the same one tomorrow."""
    return DAY.strftime(form)


def environment() -> ImmutableSandboxedEnvironment:
    """Jinja as transformers sets it up for chat templates."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = strftime_now
    return made


def render_all(source: str, inputs: list[dict[str, Any]]) -> list[str | None]:
    """One text for each input, None where the template refuses it; TemplateError where it is no template."""
    template = environment().from_string(source)
    texts: list[str | None] = []
    left = LONGEST
    for each in inputs:
        try:
            pieces = []
            for piece in template.generate(each):
                left -= len(piece)
                if left < 0:
                    raise MemoryError
                pieces.append(piece)
            texts.append("".join(pieces))
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError):
            texts.append(None)
    return texts


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    with suppress(ValueError, OSError):  # macOS knows no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    given = json.load(sys.stdin)
    try:
        answer = {"texts": render_all(given["source"], given["inputs"])}
    except (TemplateError, RecursionError, SyntaxError) as error:
        answer = {"fault": f"it is not valid Jinja: {error}"}
    except MemoryError:
        answer = {
            "fault": f"its output grew past {LONGEST} characters, or its memory past {MEMORY >> 20} MiB"
        }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
