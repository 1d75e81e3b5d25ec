"""Score answers with a reward model.

    tutelage reward score OUT --input answers.jsonl --output scored.jsonl

A line of the input holds {"messages": [...]} that end with the assistant, and gets a "score"; or it is what
`tutelage reward` trains on, and gets "scores" in the order of its answers: how often that is the data's order
is told. Lines go out as they came in, with the scores added; without --output to standard output.
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
from tutelage.recipes.inference import LoadedConfig, load_text, load_weights

if TYPE_CHECKING:
    from tutelage.data.comparison import Comparison
    from tutelage.model.transformer import Transformer
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
        for name in ("output", "normalizer"):
            path = getattr(self, name)
            if path is not None and path == self.input:
                problems.append(f"{name} would overwrite input")
            elif path is not None and path.exists() and not self.overwrite:
                problems.append(f"{path} exists; give --overwrite to replace it, or another --{name}")
        if problems:
            raise UserError("\n  ".join(problems))


@dataclass(frozen=True, slots=True)
class _Record:
    """A line of the input, and what of it is scored."""

    line: dict[str, Any]
    comparison: Comparison | None  # None: a conversation, which is one text
    texts: list[list[int]]


def run(config: RewardScoreConfig) -> None:
    """Score line by line; at the end say how the scores lie, and how often their order is the data's."""
    from tutelage.recipes.chain import chain_of, shape_of

    shape = shape_of(chain_of(config.ckpt_paths))
    if shape.head != "score":
        raise UserError(
            f"{config.ckpt_paths[-1]} has no score head: it is a language model; `tutelage reward` makes a "
            "reward model of one"
        )
    tokenizer, template = load_text(config)
    assert template is not None
    records = _records(config.input, template, tokenizer, shape.max_positions)
    model = load_weights(config, writes=False)
    texts = [text for record in records for text in record.texts]
    scores = iter(_scores(model, texts, config.tokens_at_once))
    output = config.output.open("w", encoding="utf-8") if config.output else sys.stdout
    given = []
    for record in records:
        own = [next(scores) for _ in record.texts]
        given.append(own)
        added = {"score": own[0]} if len(own) == 1 else {"scores": own}
        print(json.dumps(record.line | added, ensure_ascii=False), file=output)
    if config.output:
        output.close()
    _summarise(config, records, given)


def _records(path: Path, template: Template, tokenizer: Tokenizer, context: int) -> list[_Record]:
    """Every line, its texts as tokens; what cannot be scored is refused, the first ten at once."""
    from tutelage.data.comparison import comparison_fault, read_comparison

    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"input: cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    records, faults = [], []
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        comparison, whole, tokens = None, [], []
        try:
            line = json.loads(raw)
            fault = None
        except (ValueError, RecursionError) as error:
            line, fault = {}, f"not JSON: {error}"
        if fault is None and isinstance(line, dict) and "messages" in line:
            fault, whole = template.fault(line["messages"]), [line["messages"]]
        elif fault is None:
            fault = comparison_fault(line)
            if fault is None:
                comparison = read_comparison(line)
                whole = [[*comparison.prompt, *answer] for answer in comparison.answers]
                fault = next((each for each in map(template.fault, whole) if each), None)
        if fault is None:
            tokens = [each.tokens for each in template.encode_batch(whole, tokenizer)]
            longest = max(map(len, tokens))
            if longest > context:
                fault = f"{longest:,} tokens, and the model's context holds {context:,}"
        if fault is None:
            records.append(_Record(line, comparison, tokens))
        else:
            faults.append(f"{path}:{number}: {fault}")
    if faults:
        more = [f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
        raise UserError("\n".join([f"{len(faults)} records cannot be scored", *faults[:_SHOWN], *more]))
    if not records:
        raise UserError(f"input: {path} holds nothing to score")
    return records


def _scores(model: Transformer, texts: Sequence[list[int]], tokens_at_once: int) -> list[float]:
    """The score of each text, at its last token."""
    from tutelage.report.progress import ProgressBar

    scores = np.zeros(len(texts))
    batches = list(_batches(texts, tokens_at_once))
    with ProgressBar(steps=len(batches), print_freq=max(len(batches) // 10, 1), title="scoring") as bar:
        for number, chosen in enumerate(batches, start=1):
            scores[chosen] = _score(model, [texts[index] for index in chosen])
            bar.advance(number)
    return scores.tolist()


def _batches(texts: Sequence[list[int]], tokens_at_once: int) -> Iterator[list[int]]:
    """Numbers of texts of like length that together have at most so many tokens, or of one that has more."""
    for start in range(0, len(texts), _AT_ONCE):
        window = range(start, min(start + _AT_ONCE, len(texts)))
        chosen: list[int] = []
        filled = 0
        for index in sorted(window, key=lambda index: len(texts[index])):
            if chosen and filled + len(texts[index]) > tokens_at_once:
                yield chosen
                chosen, filled = [], 0
            chosen.append(index)
            filled += len(texts[index])
        yield chosen


def _score(model: Transformer, texts: Sequence[list[int]]) -> list[float]:
    import torch

    from tutelage.data.batch import Sample
    from tutelage.data.groups import judged
    from tutelage.data.pack import ROUND, collate
    from tutelage.objectives.base import learned_positions
    from tutelage.text.roles import ROLE_IDS

    samples = [
        judged(Sample(tokens, [0.0] * len(tokens), [ROLE_IDS["other"]] * len(tokens))) for tokens in texts
    ]
    width = -(-sum(sample.positions for sample in samples) // ROUND) * ROUND
    with torch.inference_mode():
        batch = collate([samples], width).to(next(model.parameters()).device)
        hidden, _, weights, _ = learned_positions(model, batch)
        return model.scores(hidden)[weights > 0].tolist()


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
    if config.normalizer:
        if not deviation:
            raise UserError("normalizer: all scores are the same, and nothing gives them a deviation of 1")
        made = {"gain": 1 / deviation, "bias": -mean / deviation, "samples": len(scores)}
        config.normalizer.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
        lines.append(f"{config.normalizer}: gain {made['gain']:.6f}, bias {made['bias']:.6f}")
    print("\n".join(lines), file=sys.stderr)
