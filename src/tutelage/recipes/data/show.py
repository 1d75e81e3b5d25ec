"""Look at data as training would see it: what is learned, who says it, how long it is, what would be cut.

    tutelage data show --train_data_paths jsonl:chats.jsonl --ckpt_paths MODEL

MODEL gives the tokenizer and, unless --template_config names one, the chat template; weights are not read.
Rows are named as messages about them name them, `<path>-<line>`: --ids 0-17 shows line 17 of the first path.
Records that compare answers, as dpo and reward take them, are shown answer by answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tutelage.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from tutelage.data.paths import DataPath
    from tutelage.data.store import SampleStore
    from tutelage.text.template import Template
    from tutelage.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class DataShowConfig:
    # Data
    train_data_paths: tuple[str, ...]
    """jsonl:FILE with messages or text, text:FILE, document:FILE, local:DIR, encoded:DIR, hub ids"""
    train_data_splits: tuple[
        str, ...
    ] = ()  # of each path that is a data set of the hub or local:; - for files
    train_data_shapes: tuple[str, ...] = ()  # of each path, where its records do not say it
    data_fields: tuple[str, ...] = ()  # OLD=NEW, other names for keys, like question=instruction
    train_num_samples: tuple[float, ...] = ()  # of each path: above 1 a count, up to 1 a share, -1 all
    skip_bad_rows: bool = False  # count rows that cannot be used and go on without them
    num_data_workers: int = 1  # processes that encode
    cache_dir: Path | None = None  # of encoded data; default ~/.cache/tutelage

    # Model and text
    ckpt_paths: tuple[str, ...]  # whose tokenizer it is: an HF directory, a hub id or a .gguf file
    template_config: str | None = None  # a built-in name, a YAML file, or `model`; default: recognised
    max_seq_len: int = 4096  # positions of the longest document that is not cut
    too_long: Literal["truncate", "drop", "split"] = "truncate"  # what happens to longer ones

    # What is shown
    num_samples: int = 5  # documents, drawn by chance
    ids: tuple[str, ...] = ()  # these documents instead
    seed: int = 1234  # of the drawing

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)}, must be at least {least}"
            for name, least in (("max_seq_len", 1), ("num_data_workers", 1), ("num_samples", 0), ("seed", 0))
            if getattr(self, name) < least
        ]
        if not self.train_data_paths:
            problems.append("train_data_paths names no path")
        if len(self.ckpt_paths) != 1:
            problems.append(f"ckpt_paths names {len(self.ckpt_paths)} models, and data is encoded for one")
        if problems:
            raise UserError("\n  ".join(problems))


def run(config: DataShowConfig) -> None:
    """Encode as training would, print documents, a histogram and what would be cut."""
    from rich.console import Console
    from rich.text import Text

    from tutelage.data.cut import cut
    from tutelage.data.dataset import encode_paths
    from tutelage.data.encoded import encoded_directories, holds_answers
    from tutelage.data.paths import find_data
    from tutelage.data.sources import compares
    from tutelage.recipes.saying import say
    from tutelage.report.inspect import histogram, show_line

    directories = encoded_directories(config.train_data_paths)
    files = find_data(
        () if directories else config.train_data_paths,
        config.train_data_splits,
        cache_dir=config.cache_dir,
        log=say,
        flag="--train_data_splits",
        shapes=config.train_data_shapes,
        fields=config.data_fields,
    )
    ranked = holds_answers(directories[0]) if directories else compares(files)
    if ranked and config.too_long == "split":
        raise UserError("too_long is split, and answers that are compared are truncated or dropped")
    tokenizer, template = _text_of(config, files, ranked=ranked)
    store, faults = encode_paths(
        directories or files,
        num_samples=config.train_num_samples,
        template=template,
        tokenizer=tokenizer,
        skip_bad_rows=config.skip_bad_rows,
        workers=config.num_data_workers,
        cache_dir=config.cache_dir,
        log=say,
        ranked=ranked,
    )
    length, too_long = config.max_seq_len, config.too_long
    kept, report = cut(store, max_seq_len=length, too_long=too_long, faults=faults, ranked=ranked)
    console = Console()
    _show(config, store, kept, tokenizer, console)
    for line in ["", *histogram(store.lengths, limit=config.max_seq_len + 1), "", *report.lines()]:
        show_line(console, Text(line))


def _text_of(
    config: DataShowConfig, files: list[DataPath], *, ranked: bool
) -> tuple[Tokenizer, Template | None]:
    """The tokenizer, and a template if there are conversations to render."""
    from tutelage.checkpoint.tokenizer import load_tokenizer
    from tutelage.data.sources import parse_sources
    from tutelage.text.jinja_template import template_of

    sources = parse_sources(files, ranked=ranked)  # none where there are tokens already
    tokenizer = load_tokenizer(config.ckpt_paths[0])
    if all(source.kind == "text" for source in sources):
        return tokenizer, None
    return tokenizer, template_of(tokenizer, config.template_config)


def _show(
    config: DataShowConfig, store: SampleStore, kept: SampleStore, tokenizer: Tokenizer, console: Console
) -> None:
    """The documents asked for, as they are after cutting; one that was dropped, as it was before."""
    import numpy as np

    from tutelage.report.inspect import show_samples

    if not config.ids:
        shown = kept if len(kept) else store  # all dropped: seeing why is what the person is here for
        chosen = np.random.default_rng(config.seed).permutation(len(shown))[: config.num_samples]
        named = {shown.id(index) for index in chosen.tolist()}
        whole = [index for name, places in _places(shown).items() if name in named for index in places]
        show_samples(shown, whole, tokenizer, console)
        return
    places = [_places(each) for each in (kept, store)]
    unknown = [name for name in config.ids if not any(name in each for each in places)]
    if unknown:
        raise UserError(
            f"no document is called {', '.join(unknown)}: ids are <path>-<line>, the first path is 0"
        )
    for name in config.ids:
        if name in places[0]:
            show_samples(kept, places[0][name], tokenizer, console)
        else:
            show_samples(store, places[1][name], tokenizer, console, note=" (would be dropped)")


def _places(store: SampleStore) -> dict[str, list[int]]:
    """Where the documents of each id stand: one, or the answers to one prompt."""
    places: dict[str, list[int]] = {}
    for index, name in enumerate(store.ids):
        places.setdefault(name, []).append(index)
    return places
