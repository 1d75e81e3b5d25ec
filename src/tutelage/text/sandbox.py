"""Renders the Jinja chat template of a stranger's model without trusting it: see `jinja_process.py`."""

import json
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutelage.errors import UserError
from tutelage.text.tokenizer import Tokenizer

LEARNED_BEGIN, LEARNED_END = "\ufdd2", "\ufdd3"  # what the process writes for `{% generation %}` and its end
_SCRIPT = Path(__file__).with_name("jinja_process.py")
_SECONDS = 30  # by the wall clock, for one request; the process itself is given less of the processor's time
_LONGEST = 1_000_000  # characters of all texts of a request together, besides what the messages account for


@dataclass(frozen=True)
class Probe:
    """A conversation to render, and whether a reply is asked for."""

    messages: list[dict[str, Any]]
    reply: bool
    tools: list[Any] | None = None


@dataclass(frozen=True)
class Input:
    """A conversation, and the cuts of it to render: (how many messages, whether a reply is asked for)."""

    messages: list[dict[str, Any]]
    cuts: list[tuple[int, bool]]
    tools: list[Any] | None = None


@dataclass
class Sandbox:
    """A process that renders one template, started when it is first asked and stopped with this program."""

    source: str
    values: dict[str, str]  # bos_token and its kin
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def render(self, inputs: list[Input]) -> tuple[list[list[str | None]], list[str | None]]:
        """The texts of each input, None where the template refuses one, and each input's first reason."""
        asked = [
            {"messages": each.messages, "cuts": each.cuts, "values": {"tools": each.tools, **self.values}}
            for each in inputs
        ]
        content = json.dumps(asked)
        cuts = max((len(each.cuts) for each in inputs), default=1)
        request = {"source": self.source, "longest": _LONGEST + 2 * cuts * len(content)}
        line = json.dumps(request)[:-1] + f', "inputs": {content}}}\n'
        answer = self._answer(line.encode())
        if "fault" in answer:
            raise UserError(f"the model's own chat template cannot be rendered: {answer['fault']}")
        return answer["texts"], answer["reasons"]

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None}  # a process that encodes data starts one of its own

    def _answer(self, line: bytes) -> dict[str, Any]:
        process = self._process or self._started()
        assert process.stdin is not None and process.stdout is not None
        deadline, received = time.monotonic() + _SECONDS, b""
        try:
            process.stdin.write(line)
            process.stdin.flush()
            while not received.endswith(b"\n"):
                ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
                if not ready:
                    self.close()
                    return {"fault": f"it is not done after {_SECONDS} seconds"}
                read = os.read(process.stdout.fileno(), 1 << 20)
                if not read:
                    raise BrokenPipeError
                received += read
        except BrokenPipeError:
            _, errors = process.communicate()
            self._process = None
            if process.returncode < 0:
                return {"fault": "it was stopped, for it took too much time or memory"}
            return {"fault": (errors.decode().strip().splitlines() or ["the process failed"])[-1]}
        return json.loads(received)

    def _started(self) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-P",
            str(_SCRIPT),
        ]  # -P: modules beside the script are not importable there
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
        return self._process


def sandbox_of(source: str, tokenizer: Tokenizer) -> Sandbox:
    """The process for a template that is given the names of a tokenizer's control tokens."""
    return Sandbox(source, {k: text for k, text in tokenizer.named.items() if k.endswith("_token")})


def render_jinja(source: str, probes: list[Probe], tokenizer: Tokenizer) -> list[str | None]:
    """What a model's own chat template makes of each probe; None where it refuses one."""
    sandbox = sandbox_of(source, tokenizer)
    try:
        texts, _ = sandbox.render(
            [Input(each.messages, [(len(each.messages), each.reply)], each.tools) for each in probes]
        )
    finally:
        sandbox.close()
    marks = str.maketrans("", "", LEARNED_BEGIN + LEARNED_END)
    return [text and text.translate(marks) for (text,) in texts]
