"""Turn published tests with choices into conversations to fine-tune on, or into preferences.

    tutelage data build arc --input allenai/ai2_arc --output_dir data/arc

A question is asked with its choices under letters and answered in a sentence that names the right one; with
`--kind pairs` the same sentence about a wrong one is the worse answer. Writes train.jsonl and val.jsonl;
rows that cannot be used are counted by reason. What a model has learned from, it cannot be tested on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from tutelage.recipes.data.building import Building, build, each

if TYPE_CHECKING:
    from tutelage.data.builders.choices import Question
    from tutelage.data.builders.raw_rows import Row


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildChoicesConfig(Building):
    kind: Literal["chosen", "pairs", "prompts"] = "chosen"
    """conversations with the right answer, pairs of the right and a wrong one, or prompts alone"""
    system: str | None = None  # what the system says, "" for nothing; default: what is to be done


def run_arc(config: BuildChoicesConfig) -> None:
    """Write ARC, or OpenBookQA or CommonsenseQA, whose rows have the same shape."""
    from tutelage.data.builders.choices import arc

    _build(config, arc)


def run_hellaswag(config: BuildChoicesConfig) -> None:
    """Write HellaSwag."""
    from tutelage.data.builders.choices import hellaswag

    _build(config, hellaswag)


def run_winogrande(config: BuildChoicesConfig) -> None:
    """Write WinoGrande."""
    from tutelage.data.builders.choices import winogrande

    _build(config, winogrande)


def run_mmlu(config: BuildChoicesConfig) -> None:
    """Write MMLU."""
    from tutelage.data.builders.choices import mmlu

    _build(config, mmlu)


def run_truthful_qa(config: BuildChoicesConfig) -> None:
    """Write TruthfulQA: answers in full of `generation`, letters of `multiple_choice`."""
    from tutelage.data.builders.choices import truthful_qa
    from tutelage.data.builders.records import Choice

    of_row = partial(truthful_qa, seed=config.seed, system=config.system)
    build(config, each(of_row), Choice(kind=config.kind))


def _build(config: BuildChoicesConfig, question_of: Callable[[Row], Question | str]) -> None:
    from tutelage.data.builders.choices import ranked_of
    from tutelage.data.builders.records import Choice

    def of_row(row: Row):
        return ranked_of(question_of(row), system=config.system)

    build(config, each(of_row), Choice(kind=config.kind))
