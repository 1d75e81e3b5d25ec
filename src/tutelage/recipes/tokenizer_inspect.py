"""Measure how well a tokenizer fits a text, best one it was not learned from; or compare two.

    tutelage tokenizer inspect TOK --data_paths held_out.txt --other MODEL

TOK and MODEL are directories with a tokenizer.json or tokenizer.model, .gguf files or hub ids. The table says
how many bytes of text a token holds, how much of the vocabulary is used, what has to be spelled in bytes or
is unknown, and which texts do not come back as they were; --json prints it for programs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tutelage.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerInspectConfig:
    # the tokenizer
    tokenizer: str  # a directory, a tokenizer.model, a .gguf file or a hub id
    other: str | None = None  # one to compare it with: the ratio is of the first by this

    # the text
    data_paths: tuple[str, ...]
    """text:FILE, a text a line; document:FILE, one text; jsonl:FILE with messages or text; local:DIR, hub ids
    of data sets"""
    data_splits: tuple[str, ...] = ()
    """of each path that is a data set of the hub or local:; - for files"""
    num_samples: tuple[float, ...] = ()  # of each path: above 1 a count, up to 1 a share, -1 all
    skip_bad_rows: bool = False  # count rows that cannot be used and go on without them
    cache_dir: Path | None = None  # of data sets written out as files; default ~/.cache/tutelage

    # the result
    json: bool = False  # print one JSON object instead of a table

    def __post_init__(self) -> None:
        problems = []
        if not self.data_paths:
            problems.append("data_paths names no path")
        if len(self.num_samples) not in (0, len(self.data_paths)):
            problems.append(
                f"num_samples has {len(self.num_samples)} numbers for {len(self.data_paths)} paths"
            )
        if problems:
            raise UserError("\n  ".join(problems))


def run(config: TokenizerInspectConfig) -> None:
    """Tokenize the text with each tokenizer, count, and print."""
    import json

    from rich.console import Console
    from rich.markup import escape

    from tutelage.checkpoint.tokenizer import load_tokenizer
    from tutelage.recipes.data.texts import choose, placed_texts
    from tutelage.report.tokenizer_table import record, table
    from tutelage.text.measure import measure

    names = list(dict.fromkeys(name for name in (config.tokenizer, config.other) if name is not None))
    tokenizers = {name: load_tokenizer(name) for name in names}
    chosen = choose(
        config.data_paths,
        splits=config.data_splits,
        num_samples=config.num_samples,
        skip_bad_rows=config.skip_bad_rows,
        cache_dir=config.cache_dir,
        flags="--",
    )
    measures = {name: measure(tokenizer, placed_texts(chosen)) for name, tokenizer in tokenizers.items()}
    if config.json:
        found = [record(name, each) for name, each in measures.items()]
        print(json.dumps({"data_paths": config.data_paths, "tokenizers": found}, ensure_ascii=False))
        return
    console = Console()
    short = {name: Path(name).name for name in names}
    shown = short if len(set(short.values())) == len(names) else dict(zip(names, names, strict=True))
    console.print(table({escape(shown[name]): each for name, each in measures.items()}))
    for name, each in measures.items():
        if each.changed:
            print(f"{name}: {each.changed:,} texts do not come back as they were, the first of them")
            print("\n".join(f"  {named}" for named in each.changed_named))
