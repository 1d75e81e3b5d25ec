"""Turn published data sets of instructions, questions or dialogues into conversations to fine-tune on.

    tutelage data build dolly --input databricks-dolly-15k.jsonl --output_dir data/dolly

Reads JSON lines, JSON, parquet and CSV, folders of them, `local:DIR` (from save_to_disk) and hub ids, and
writes train.jsonl and val.jsonl. What is asked first is held out by its hash, so that equal questions, and
all about one paragraph, stay together. Rows that cannot be used are counted by reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tutelage.errors import UserError
from tutelage.recipes.data.building import FORMS, Building, build, each

if TYPE_CHECKING:
    from tutelage.data.builders.conversations import Wanted


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chats(Building):
    kind: Literal["chats", "prompts"] = "chats"  # conversations, or the same without the last answer


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildInstructionsConfig(_Chats):
    min_words: int = 5  # of an instruction; a shorter one is left out
    skip_words: tuple[str, ...] = ("photo", "video", "movie", "youtube")  # instructions that name one go

    @property
    def wanted(self) -> Wanted:
        """Which questions are kept."""
        from tutelage.data.builders.conversations import Wanted

        return Wanted(self.min_words, self.skip_words)


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildSquadConfig(BuildInstructionsConfig):
    min_words: int = 0  # of a question; a shorter one is left out
    answerable_only: bool = False  # leave out what SQuAD 2.0 asks and the text does not say


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildCommonsenseConfig(_Chats):
    with_context: bool = False  # a system message says what the dialogue is about


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildMathematicsConfig(_Chats):
    modules: tuple[str, ...] = ()
    """only files of these names, without .txt; algebra__* are all that begin so; default: every file"""
    max_samples: int | None = None  # of each file, the first ones; they are in no order

    def __post_init__(self) -> None:
        Building.__post_init__(self)
        if self.max_samples is not None and self.max_samples < 1:
            raise UserError(f"max_samples is {self.max_samples}, must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildGsm8kConfig(_Chats):
    keep_calculations: bool = False  # the marks between << and >>, for models that call a calculator


def run_dolly(config: BuildInstructionsConfig) -> None:
    """Write an instruction, with the text that it is about, and the response of each row."""
    from tutelage.data.builders.conversations import dolly
    from tutelage.data.builders.records import Choice

    build(config, each(partial(dolly, wanted=config.wanted)), Choice(kind=config.kind))


def run_alpaca(config: BuildInstructionsConfig) -> None:
    """The same of Alpaca's rows."""
    from tutelage.data.builders.conversations import alpaca
    from tutelage.data.builders.records import Choice

    build(config, each(partial(alpaca, wanted=config.wanted)), Choice(kind=config.kind))


def run_squad(config: BuildSquadConfig) -> None:
    """Write a conversation about each paragraph."""
    from tutelage.data.builders.conversations import squad
    from tutelage.data.builders.records import Choice

    read = partial(squad, wanted=config.wanted, unanswerable=not config.answerable_only)
    build(config, read, Choice(kind=config.kind))


def run_commonsense(config: BuildCommonsenseConfig) -> None:
    """Write the dialogues."""
    from tutelage.data.builders.conversations import commonsense
    from tutelage.data.builders.records import Choice

    build(config, each(partial(commonsense, with_context=config.with_context)), Choice(kind=config.kind))


def run_mathematics(config: BuildMathematicsConfig) -> None:
    """Write the questions and answers of the chosen files."""
    from tutelage.data.builders.conversations import mathematics
    from tutelage.data.builders.records import Choice

    def chosen(path: Path) -> bool:
        name = path.name.split(".")[0]
        return not config.modules or any(fnmatch(name, module) for module in config.modules)

    read = partial(mathematics, max_samples=config.max_samples)
    build(config, read, Choice(kind=config.kind), ("text", *FORMS), chosen)


def run_gsm8k(config: BuildGsm8kConfig) -> None:
    """Write the questions, with the steps to the answer."""
    from tutelage.data.builders.conversations import gsm8k
    from tutelage.data.builders.records import Choice

    build(config, each(partial(gsm8k, keep_calculations=config.keep_calculations)), Choice(kind=config.kind))
