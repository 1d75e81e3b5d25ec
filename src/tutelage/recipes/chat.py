"""Talk to a model, which remembers what was said.

    tutelage chat MODEL

MODEL is a Hugging Face directory, a run's --output_dir, a hub id or a GGUF file. First you are asked for a
system message (empty: none), then you talk. Ctrl-C stops an answer, !!reset starts a new conversation, Ctrl-D
ends. Lines may also come through a pipe; then only the answers are printed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tutelage.errors import UserError
from tutelage.recipes.inference import InferenceConfig, load_text, load_weights, sampling_of
from tutelage.recipes.saying import say

if TYPE_CHECKING:
    from tutelage.infer.chat import ChatSession

RESET = "!!reset"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatConfig(InferenceConfig):
    temperature: float = 0.7  # lively; 0 always takes the likeliest token
    top_p: float = 0.95  # draw among the likeliest tokens that together have this probability

    # Conversation
    system: str | None = None  # the system message; default: you are asked for it


def run(config: ChatConfig) -> None:
    """Ask for lines and answer them until there are no more."""
    from tutelage.infer.chat import ChatSession

    tokenizer, template = load_text(config)
    assert template is not None
    model = load_weights(config)
    session = ChatSession(
        model, tokenizer, template, sampling_of(config), max_new_tokens=config.max_new_tokens
    )
    if sys.stdin.isatty():
        import readline  # noqa: F401  gives input() a history and editing

        say(f"template {template.name}; {RESET} starts anew, Ctrl-C stops an answer, Ctrl-D ends")
    try:
        session.reset(_line("system (empty: none): ") if config.system is None else config.system)
        while True:
            line = _line("you: ")
            if line.strip() == RESET:
                session.reset(_line("system (empty: none): "))
            elif line.strip():
                _answer(session, line)
    except EOFError:
        if sys.stdin.isatty():
            print()


def _line(question: str) -> str:
    """The next line that the person types or the pipe holds; EOFError after the last."""
    if sys.stdin.isatty():
        line = input(question)
    else:
        line = sys.stdin.readline()
        if not line:
            raise EOFError
    return (
        line.rstrip("\r\n").encode("utf-8", "replace").decode("utf-8")
    )  # a byte that is no text becomes "?"


def _answer(session: ChatSession, line: str) -> None:
    try:
        reply = session.ask(line, _write)
    except KeyboardInterrupt:
        _write("\n")
        return
    except UserError as error:
        say(f"error: {error}")
        return
    _write("\n")
    if reply.forgotten:
        say(f"(the context is full: the {reply.forgotten} oldest messages were forgotten)")
    if reply.stop_reason == "length":
        say(f"(stopped after {session.max_new_tokens} tokens; --max_new_tokens allows more)")
    if reply.stop_reason == "context":
        say("(stopped: the context is full)")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
