"""Complete prompts: one answer to each, in order, and nothing else on standard output.

    tutelage generate MODEL --prompt "What is the capital of France?"
    tutelage generate MODEL --input questions.jsonl --output answers.jsonl
    tutelage generate MODEL --raw --prompt "Once upon a time"
    tutelage generate MODEL --words climb ring messy --stop "The end." --include_stop --stream

MODEL is a Hugging Face directory, a run's --output_dir, a hub id, a GGUF file or one of llama2.c. A line of
a file holds {"prompt": "..."} or {"messages": [...]} that end with the user's. Answers are greedy unless
--temperature is above 0; then each prompt has a seed of its own, and no answer depends on the others.
--words asks a storyteller (`tutelage data build storyteller`) for a story in the words it was trained on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.errors import UserError
from tutelage.recipes.inference import InferenceConfig, load_text, load_weights, open_output, sampling_of
from tutelage.recipes.saying import say

if TYPE_CHECKING:
    from tutelage.text.pieces import Encoded
    from tutelage.text.template import Template
    from tutelage.text.tokenizer import Tokenizer

_SHOWN = 10  # bad rows told at once


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateConfig(InferenceConfig):
    # Prompts
    prompt: tuple[str, ...] = ()  # one or several
    input: Path | None = None  # JSON lines, each with prompt or messages
    output: Path | None = None  # JSON lines: the input and the answers, instead of standard output
    system: str | None = None  # a system message before every prompt
    raw: bool = False  # take prompts as they are, without the chat template
    words: tuple[str, ...] = ()  # instead of a prompt: verb, noun and adjective of a story to be told
    features: tuple[str, ...] = ()  # of that story: Dialogue, BadEnding, MoralValue, Twist, … or own words
    batch_size: int = 16  # prompts side by side

    # Answers
    stop: tuple[str, ...] = ()  # texts at which an answer ends, besides the model's own end token
    include_stop: bool = False  # keep the text at which an answer ended, such as a story's "The end."
    stream: bool = False  # print the answer while it is written; for a single prompt

    def __post_init__(self) -> None:
        InferenceConfig.__post_init__(self)
        problems = []
        if [bool(self.prompt), self.input is not None, bool(self.words)].count(True) != 1:
            problems.append("give one of prompt, input and words")
        if self.features and not self.words:
            problems.append("features are those of a story, so give its words too")
        if self.words and self.raw:
            problems.append("words make a prompt for the chat template, and raw prompts have none")
        if not all(self.stop):
            problems.append("stop holds an empty text, which is everywhere")
        if self.stream and (self.input is not None or self.output is not None or len(self.prompt) > 1):
            problems.append("stream prints the answer to a single prompt, without input and output")
        if self.raw and (self.system is not None or self.template_config is not None):
            problems.append(
                "raw prompts have no template, so system and template_config have no place in them"
            )
        if self.batch_size < 1:
            problems.append(f"batch_size is {self.batch_size}, must be at least 1")
        if self.output is not None and self.output == self.input:
            problems.append("output would overwrite input")
        if problems:
            raise UserError("\n  ".join(problems))


@dataclass(frozen=True, slots=True)
class _Request:
    """A record of the input, and the prompt it makes."""

    record: dict[str, Any]
    prompt: Encoded


class _Answer:
    """The text of one completion, which ends at a stop string and is printed at once if it is streamed."""

    def __init__(self, config: GenerateConfig, tokenizer: Tokenizer) -> None:
        from tutelage.text.stop import StoppedText

        self._text = StoppedText(tokenizer, config.stop, included=config.include_stop)
        self._streamed = config.stream
        self._pieces: list[str] = []

    def push(self, token: int) -> bool:
        """Whether the answer ends with this token."""
        self._take(self._text.push(token))
        return self._text.ended

    def finish(self) -> str:
        """All of the text that is not printed yet."""
        self._take(self._text.flush())
        return "".join(self._pieces)

    def _take(self, piece: str) -> None:
        if self._streamed:
            print(piece, end="", flush=True)
        else:
            self._pieces.append(piece)


def run(config: GenerateConfig) -> None:
    """Check every prompt, then load the weights, then answer batch by batch."""
    from tutelage.infer.chat import stop_tokens
    from tutelage.infer.engine import generate

    tokenizer, template = load_text(config, raw=config.raw)
    requests = _requests(config, tokenizer, template)
    output = open_output(config.output)
    model = load_weights(config)
    sampling, stop = sampling_of(config), stop_tokens(model, tokenizer, template)
    for start in range(0, len(requests), config.batch_size):
        batch = requests[start : start + config.batch_size]
        answers = [_Answer(config, tokenizer) for _ in batch]
        completions = generate(
            model,
            [request.prompt.tokens for request in batch],
            replace(sampling, seed=sampling.seed + start),  # so that the batch size changes no answer
            max_new_tokens=config.max_new_tokens,
            stop=stop,
            roles=[request.prompt.roles for request in batch],
            on_token=_pusher(answers) if config.stop or config.stream else None,
            rows=config.batch_size,
        )
        for request, answer, completion in zip(batch, answers, completions, strict=True):
            watched = config.stop or config.stream
            text = answer.finish() if watched else tokenizer.decode(completion.tokens)
            line = text if output is None else json.dumps(_answered(request.record, text), ensure_ascii=False)
            print(line, file=output or sys.stdout, flush=True)
    if output is not None:
        output.close()
        say(f"{config.output}: {len(requests)} answers")


def _pusher(answers: list[_Answer]) -> Callable[[int, int], bool]:
    """Gives a token of a prompt to its answer."""
    return lambda place, token: answers[place].push(token)


def _requests(config: GenerateConfig, tokenizer: Tokenizer, template: Template | None) -> list[_Request]:
    """Every prompt, encoded; what cannot be one is refused, the first ten at once."""
    from tutelage.data.encode import Encoder
    from tutelage.recipes.stage.chain import chain_of, shape_of
    from tutelage.text.pieces import Encoded

    context = shape_of(chain_of(config.ckpt_paths)).max_positions
    encoder = Encoder(None, tokenizer)
    requests: list[_Request] = []
    faults: list[str] = []
    for where, record in _records(config, faults):
        fault = _fault(record, config, template)
        if fault is None and template is None:
            prompt = encoder.prompt(record["prompt"])
        elif fault is None and template is not None:
            prompt = template.encode(_messages(record, config), tokenizer, reply=True)
        else:
            prompt = Encoded([], [], [])
        if fault is None and not prompt.tokens:
            fault = "the prompt is empty; a model needs at least one token to go on from"
        if fault is None and len(prompt.tokens) >= context:
            fault = (
                f"{len(prompt.tokens)} tokens, and the model's context holds {context}, the answer included"
            )
        if fault is None:
            requests.append(_Request(record, prompt))
        else:
            faults.append(f"{where}: {fault}")
    if faults:
        more = [f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
        raise UserError("\n".join([f"{len(faults)} prompts cannot be used", *faults[:_SHOWN], *more]))
    return requests


def _records(config: GenerateConfig, faults: list[str]) -> Iterator[tuple[str, Any]]:
    """(where it stands, record) for every prompt, in order; lines that are no JSON go to `faults`."""
    if config.input is None:
        from tutelage.data.stories.storyteller import story_prompt

        prompts = [story_prompt(config.words, config.features)] if config.words else config.prompt
        yield from ((f"prompt {number}", {"prompt": text}) for number, text in enumerate(prompts, start=1))
        return
    try:
        lines = config.input.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(
            f"input: cannot read {config.input}: {(error.strerror or str(error)).lower()}"
        ) from error
    if not any(line.strip() for line in lines):
        raise UserError(f"input: {config.input} holds no prompts")
    for number, line in enumerate(lines, start=1):
        where = f"{config.input}:{number}"
        try:
            if line.strip():
                yield where, json.loads(line)
        except (ValueError, RecursionError) as error:
            faults.append(f"{where}: not JSON: {error}")


def _fault(record: Any, config: GenerateConfig, template: Template | None) -> str | None:
    """What is wrong with a record, in a few words, or None."""
    if not isinstance(record, dict) or ("prompt" in record) == ("messages" in record):
        return 'not an object with either "prompt" or "messages"'
    if "prompt" in record:
        if not isinstance(record["prompt"], str):
            return "prompt is not a string"
        return template.fault(_messages(record, config), answered=False) if template else None
    from tutelage.text.messages import with_tools

    if template is None:
        return "messages need a chat template, and --raw takes prompts as they are"
    fault = template.fault(with_tools(record["messages"], record.get("tools")), answered=False)
    if fault is None and config.system and record["messages"][0]["role"] == "system":
        return "messages begin with a system message, and --system is given too"
    return fault


def _messages(record: dict[str, Any], config: GenerateConfig) -> list[dict[str, Any]]:
    from tutelage.text.messages import with_tools

    messages = record.get("messages") or [{"role": "user", "content": record["prompt"]}]
    if config.system:
        messages = [{"role": "system", "content": config.system}, *messages]
    return with_tools(messages, record.get("tools"))


def _answered(record: dict[str, Any], text: str) -> dict[str, Any]:
    """The record with the answer: as one more message, or beside its prompt."""
    if "messages" in record:
        return record | {"messages": [*record["messages"], {"role": "assistant", "content": text}]}
    return record | {"completion": text}
