"""Score answers with a reward model.

    tutelage reward score OUT --input answers.jsonl --output scored.jsonl

A line of the input holds {"messages": [...]} that end with the assistant, and gets a "score"; or it is what
`tutelage reward` trains on, and gets "scores" in the order of its answers: how often that is the data's order
is told. Lines go out as they came in, with the scores added; without --output to standard output. Where a
line has a "score" or "scores" already, as ranked answers may, that becomes "given_score" or "given_scores".
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.errors import UserError
from tutelage.recipes.inference import LoadedConfig, load_text, load_weights, open_output
from tutelage.recipes.saying import say
from tutelage.recipes.stage.quantizing import quant_problems
from tutelage.text.messages import has_half_character, with_tools

if TYPE_CHECKING:
    from tutelage.data.comparison import Comparison, Messages
    from tutelage.model.transformer import Transformer
    from tutelage.text.pieces import Encoded
    from tutelage.text.template import Template
    from tutelage.text.tokenizer import Tokenizer

_AT_ONCE = 1024  # texts that are sorted by length together
_SHOWN = 10  # faults


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardScoreConfig(LoadedConfig):
    # Data
    input: Path  # JSON lines
    output: Path | None = None  # the same lines with scores; default: standard output
    normalizer: Path | None = None  # file for the gain and bias that give all scores mean 0 and deviation 1
    tokens_at_once: int = 8192  # in a forward pass
    overwrite: bool = False  # replace an output that is there

    def __post_init__(self) -> None:
        problems = [] if self.ckpt_paths else ["ckpt_paths names no model"]
        if self.tokens_at_once < 1:
            problems.append(f"tokens_at_once is {self.tokens_at_once}, must be at least 1")
        problems += quant_problems(self.quant, self.quant_double)
        if problems:
            raise UserError("\n  ".join(problems))


@dataclass(slots=True)
class _Record:
    """A line of the input, and what of it is scored."""

    number: int
    line: dict[str, Any]
    comparison: Comparison | None  # None: a conversation, which is one text
    conversations: list[Messages]
    texts: Sequence[Encoded] = ()


def run(config: RewardScoreConfig) -> None:
    """Score line by line; at the end say how the scores lie, and how often their order is the data's."""
    from tutelage.recipes.stage.chain import chain_of, shape_of

    _check_places(config)
    shape = shape_of(chain_of(config.ckpt_paths))
    if shape.head != "score":
        raise UserError(
            f"{config.ckpt_paths[-1]} has no score head: it is a language model; `tutelage reward` makes a "
            "reward model of one"
        )
    tokenizer, template = load_text(config)
    assert template is not None
    records = _records(config.input, template, tokenizer, shape.max_positions)
    output = open_output(config.output)
    model = load_weights(config, writes=False)
    texts = [text for record in records for text in record.texts]
    scores = _scores(model, texts, config.tokens_at_once)
    if not np.isfinite(scores).all():
        raise UserError(f"{config.ckpt_paths[-1]} gives scores that are no numbers; try --precision fp32")
    ends = np.cumsum([len(record.texts) for record in records])
    given = [part.tolist() for part in np.split(scores, ends[:-1])]
    for record, own in zip(records, given, strict=True):
        print(_scored(record.line, own), file=output or sys.stdout)
    if output is not None:
        output.close()
    _summarise(config, records, given)


def _check_places(config: RewardScoreConfig) -> None:
    """Refuse what cannot be written, or should not be, before anything is read."""
    problems = []
    for name in ("output", "normalizer"):
        path = getattr(config, name)
        if path is None:
            continue
        if path.resolve() == config.input.resolve():
            problems.append(f"{name} would overwrite input")
        elif path.is_dir():
            problems.append(f"{name}: {path} is a directory; name a file in it")
        elif not path.parent.is_dir():
            problems.append(f"{name}: there is no directory {path.parent} to write {path.name} in")
        elif path.exists() and not config.overwrite:
            problems.append(f"{path} exists; give --overwrite to replace it, or another --{name}")
    if config.output and config.normalizer and config.output.resolve() == config.normalizer.resolve():
        problems.append("normalizer would overwrite output")
    if problems:
        raise UserError("\n  ".join(problems))


def _scored(line: dict[str, Any], scores: list[float]) -> str:
    """The line with its scores, as JSON; scores that it came with are kept beside them."""
    name, value = ("score", scores[0]) if len(scores) == 1 else ("scores", scores)
    given = {f"given_{name}": line[name]} if name in line else {}
    record = {**line, name: value, **given}
    text = json.dumps(record, ensure_ascii=False)
    # Half a surrogate pair, which a key beside the texts may have, can be spelled and not written.
    return json.dumps(record) if has_half_character(text) else text


def _records(path: Path, template: Template, tokenizer: Tokenizer, context: int) -> list[_Record]:
    """Every line, its texts as tokens; what cannot be scored is refused, the first ten at once."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"input: cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    read = [_record(number, raw, template) for number, raw in enumerate(lines, start=1) if raw.strip()]
    records = [each for each in read if isinstance(each, _Record)]
    faults = [each for each in read if not isinstance(each, _Record)]
    whole = [conversation for record in records for conversation in record.conversations]
    encoded = iter(template.encode_batch(whole, tokenizer))
    for record in records:
        record.texts = [next(encoded) for _ in record.conversations]
        longest = max(len(text.tokens) for text in record.texts)
        if longest > context:
            faults.append((record.number, f"{longest:,} tokens, and the model's context holds {context:,}"))
    if faults:
        told = [f"{path}:{number}: {fault}" for number, fault in sorted(faults)[:_SHOWN]]
        more = [f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
        raise UserError("\n".join([f"{len(faults)} records cannot be scored", *told, *more]))
    if not records:
        raise UserError(f"input: {path} holds nothing to score")
    return records


def _record(number: int, raw: bytes, template: Template) -> _Record | tuple[int, str]:
    """What a line says, its texts not yet tokens; or its number and why it cannot be scored."""
    from tutelage.data.compared_shapes import says_which_is_better
    from tutelage.data.comparison import comparison_fault, read_comparison

    try:
        line = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return number, f"not JSON: {error}"
    if isinstance(line, dict) and "messages" in line and not says_which_is_better(line):
        messages = with_tools(line["messages"], line.get("tools"))
        fault = template.fault(messages)
        if fault is None and messages[-1]["role"] != "assistant":
            fault = f"the messages end with the {messages[-1]['role']}, and the assistant's words are judged"
        return _Record(number, line, None, [messages]) if fault is None else (number, fault)
    fault = comparison_fault(line)
    if fault is not None:
        return number, fault
    comparison = read_comparison(line)
    conversations = [[*comparison.prompt, *answer] for answer in comparison.answers]
    fault = next((each for each in map(template.fault, conversations) if each), None)
    return _Record(number, line, comparison, conversations) if fault is None else (number, fault)


def _scores(model: Transformer, texts: Sequence[Encoded], tokens_at_once: int) -> np.ndarray:
    """The score of each text, at its last token, (texts,)."""
    from tutelage.report.progress import ProgressBar

    scores = np.zeros(len(texts))
    batches = list(_batches([len(text.tokens) for text in texts], tokens_at_once))
    with ProgressBar(steps=len(batches), print_freq=max(len(batches) // 10, 1), title="scoring") as bar:
        for number, chosen in enumerate(batches, start=1):
            scores[chosen] = _score(model, [texts[index] for index in chosen])
            bar.advance(number)
    return scores


def _batches(lengths: Sequence[int], tokens_at_once: int) -> Iterator[list[int]]:
    """Numbers of texts of like length that together have at most so many tokens, or of one that has more."""
    for start in range(0, len(lengths), _AT_ONCE):
        window = range(start, min(start + _AT_ONCE, len(lengths)))
        chosen: list[int] = []
        filled = 0
        for index in sorted(window, key=lengths.__getitem__):
            if chosen and filled + lengths[index] > tokens_at_once:
                yield chosen
                chosen, filled = [], 0
            chosen.append(index)
            filled += lengths[index]
        yield chosen


def _score(model: Transformer, texts: Sequence[Encoded]) -> list[float]:
    import torch

    from tutelage.data.batch import Sample
    from tutelage.data.groups import judged
    from tutelage.data.pack import ROUND, collate
    from tutelage.objectives.base import learned_positions

    samples = [judged(Sample(text.tokens, text.weights, text.roles)) for text in texts]
    width = -(-sum(sample.positions for sample in samples) // ROUND) * ROUND
    with torch.inference_mode():
        batch = collate([samples], width).to(next(model.parameters()).device)
        hidden, _, weights, _ = learned_positions(model, batch)
        return model.scores(hidden)[weights > 0].tolist()


def normalizer_of(scores: np.ndarray) -> dict[str, float]:
    """The gain and bias that give scores (n,) mean 0 and deviation 1; refuses those that are all the same."""
    deviation = scores.std(ddof=1) if len(scores) > 1 else 0.0
    if not deviation:
        raise UserError("normalizer: all scores are the same, and nothing gives them a deviation of 1")
    return {"gain": 1 / deviation, "bias": -scores.mean() / deviation, "samples": len(scores)}


def _summarise(config: RewardScoreConfig, records: Sequence[_Record], given: Sequence[list[float]]) -> None:
    scores = np.array([score for own in given for score in own])
    mean, deviation = scores.mean(), scores.std(ddof=1) if len(scores) > 1 else 0.0
    lines = [f"{len(scores):,} texts scored: mean {mean:.4f}, standard deviation {deviation:.4f}"]
    gaps = [
        own[i] - own[j]
        for record, own in zip(records, given, strict=True)
        if record.comparison
        for i, better in enumerate(record.comparison.ranks)
        for j, worse in enumerate(record.comparison.ranks)
        if better < worse and len(own) > 1
    ]
    if gaps:
        right = np.mean(np.array(gaps) > 0)
        lines.append(f"{len(gaps):,} pairs: {right:.1%} in the data's order, mean gap {np.mean(gaps):.4f}")
    say("\n".join(lines))
    if config.normalizer:
        made = normalizer_of(scores)
        config.normalizer.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
        say(f"{config.normalizer}: gain {made['gain']:.6f}, bias {made['bias']:.6f}")
