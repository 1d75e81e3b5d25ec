"""Turn published data sets into preferences: prompts with a better and a worse answer, or several ranked.

    tutelage data build hh_rlhf --input train.jsonl.gz --output_dir data/hh_rlhf

Reads JSON lines, JSON, parquet and CSV, folders of them, `local:DIR` (from save_to_disk) and hub ids, and
writes train.jsonl and val.jsonl. Prompts are held out by their hash, so that equal ones stay together.
Rows that cannot be used are counted by reason, with the place of the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from tutelage.errors import UserError
from tutelage.recipes.data.building import Building, build, each


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildHhRlhfConfig(Building):
    kind: Literal["pairs", "chosen", "prompts"] = "pairs"
    """pairs, conversations with the chosen ending to fine-tune on, or prompts alone"""


def run_hh_rlhf(config: BuildHhRlhfConfig) -> None:
    """Write pairs, the conversations that were chosen, or their prompts."""
    from tutelage.data.builders.hh_rlhf import ranked_of
    from tutelage.data.builders.records import Choice

    build(config, each(ranked_of), Choice(kind=config.kind))


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildStackexchangeConfig(Building):
    kind: Literal["ranked", "best", "prompts"] = "ranked"
    """ranked answers, conversations with the best one to fine-tune on, or prompts alone"""
    min_answers: int = 2  # with different votes; a question with fewer is skipped
    max_answers: int = 8  # the best are kept
    min_words: int = 8  # of a question, and of each answer
    drop_zero_scores: bool = False  # leave out answers that nobody voted for

    def __post_init__(self) -> None:
        Building.__post_init__(self)
        if not 2 <= self.min_answers <= self.max_answers:
            raise UserError(
                f"min_answers is {self.min_answers} and max_answers {self.max_answers}; "
                "min_answers must be at least 2 and at most max_answers"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildPiqaConfig(Building):
    """PIQA's own train.jsonl with train-labels.lst beside it, or requests.jsonl.gz of an evaluation."""

    kind: Literal["pairs", "chosen", "prompts"] = "pairs"
    """pairs, conversations with the right answer to fine-tune on, or prompts alone"""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildUltrafeedbackConfig(Building):
    kind: Literal["ranked", "pairs", "best", "prompts"] = "ranked"
    """ranked answers, pairs of the best and a random worse one, conversations with the best, or prompts"""
    score: Literal["overall", "fine_grained"] = "overall"  # which of the two that raw rows have


def run_stackexchange(config: BuildStackexchangeConfig) -> None:
    """Write ranked answers, the best ones, or the questions."""
    from tutelage.data.builders.records import Choice
    from tutelage.data.builders.stackexchange import ranked_of

    of_row = partial(ranked_of, min_words=config.min_words, drop_zero_scores=config.drop_zero_scores)
    choice = Choice(kind=config.kind, min_answers=config.min_answers, max_answers=config.max_answers)
    build(config, each(of_row), choice)


def run_piqa(config: BuildPiqaConfig) -> None:
    """Write pairs of a right and a wrong answer, the right ones, or the goals."""
    from tutelage.data.builders.piqa import examples_of
    from tutelage.data.builders.records import Choice

    build(config, examples_of, Choice(kind=config.kind))


def run_ultrafeedback(config: BuildUltrafeedbackConfig) -> None:
    """Write ranked answers, pairs, the best ones, or the instructions."""
    from tutelage.data.builders.records import Choice
    from tutelage.data.builders.ultrafeedback import ranked_of

    of_row = partial(ranked_of, score=config.score)
    build(config, each(of_row), Choice(kind=config.kind, keep_ties=True))
