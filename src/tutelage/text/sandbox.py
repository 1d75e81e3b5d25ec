"""Renders the Jinja chat template of a stranger's model without trusting it: see `jinja_process.py`."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.errors import UserError
from tutelage.text.tokenizer import Tokenizer

_SCRIPT = Path(__file__).with_name("jinja_process.py")
_SECONDS = 30  # by the wall clock; the script itself is given less of the processor's time


@dataclass(frozen=True)
class Probe:
    """A conversation to render, and whether a reply is asked for."""

    messages: list[dict[str, str]]
    reply: bool


def render_jinja(source: str, probes: list[Probe], tokenizer: Tokenizer) -> list[str | None]:
    """What a model's own chat template makes of each probe; None where it refuses one."""
    names = {name: text for name, text in tokenizer.named.items() if name.endswith("_token")}
    inputs = [
        {"messages": probe.messages, "add_generation_prompt": probe.reply, "tools": None, **names}
        for probe in probes
    ]
    answer = _run({"source": source, "inputs": inputs})
    if "fault" in answer:
        raise UserError(f"the model's own chat template cannot be rendered: {answer['fault']}")
    return answer["texts"]


def _run(request: dict[str, Any]) -> dict[str, Any]:
    command = [
        sys.executable,
        "-P",
        str(_SCRIPT),
    ]  # -P: the modules beside the script are not importable there
    try:
        done = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        return {"fault": f"it is not done after {_SECONDS} seconds"}
    if done.returncode < 0:
        return {"fault": "it was stopped, for it took too much time or memory"}
    if done.returncode:
        return {"fault": (done.stderr.strip().splitlines() or ["the process failed"])[-1]}
    return json.loads(done.stdout)
