"""Tokenize text once, for pretraining: documents become memory-mapped shards.

    tutelage data build pretrain --tokenizer TOK --train_data_paths text:a.txt --output_dir SHARDS
    tutelage pretrain --tokenizer TOK --train_data_paths shards:SHARDS/train --output_dir OUT

Works in parallel and holds little in memory, whatever the size of the files. Interrupted, the same command
goes on where it was. With --val_percent 1 a hundredth of the documents, drawn by their content so that
copies stay together, goes to SHARDS/val instead. Build each source by itself to mix them with
--train_data_weights later.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from tutelage.errors import UserError
from tutelage.recipes.saying import say


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildPretrainConfig:
    tokenizer: Path  # a directory with a tokenizer: the one that pretraining will use
    train_data_paths: tuple[str, ...]
    """text:FILE with a document a line, jsonl:FILE with a text in each object, document:FILE, one document"""
    train_data_splits: tuple[
        str, ...
    ] = ()  # of each path that is a data set of the hub or local:; - for files
    cache_dir: Path | None = None  # of data sets written out as files; default ~/.cache/tutelage
    output_dir: Path = Path("shards")
    val_percent: float = 0.0  # of the documents, kept out of training
    skip_bad_rows: bool = False  # count rows that cannot be used and go on without them
    overwrite: bool = False  # replace shards of other sources or settings in output_dir
    num_data_workers: int | None = None  # processes that tokenize; default: as many as there are cores

    def __post_init__(self) -> None:
        problems = []
        if not self.train_data_paths:
            problems.append("train_data_paths names no path")
        if not 0 <= self.val_percent < 100:
            problems.append(f"val_percent is {self.val_percent:g}, must be 0 or more and below 100")
        if self.num_data_workers is not None and self.num_data_workers < 1:
            problems.append(f"num_data_workers is {self.num_data_workers}, must be at least 1")
        if problems:
            raise UserError("\n  ".join(problems))


def run(config: BuildPretrainConfig) -> None:
    """Read, tokenize, write, and say how much it is."""
    from tutelage.checkpoint.tokenizer import load_tokenizer
    from tutelage.data.paths import find_data
    from tutelage.data.shard_build import build
    from tutelage.data.sources import parse_sources
    from tutelage.report.progress import ByteBar

    tokenizer = load_tokenizer(config.tokenizer)
    found = find_data(
        config.train_data_paths,
        config.train_data_splits,
        cache_dir=config.cache_dir,
        log=say,
        flag="--train_data_splits",
    )
    sources = parse_sources(found)
    try:
        with ByteBar("tokenizing") as bar:
            built = build(
                sources,
                tokenizer,
                config.output_dir,
                tokenizer_name=str(config.tokenizer),
                val_percent=config.val_percent,
                skip_bad_rows=config.skip_bad_rows,
                overwrite=config.overwrite,
                workers=config.num_data_workers or os.cpu_count() or 1,
                progress=bar.update,
            )
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise UserError(f"{error.filename} cannot be written: {error.strerror}") from error
    for split, meta in built.items():
        left_out = [f"{meta['empty']:,} empty ones"] if meta["empty"] else []
        left_out += [f"{meta['bad_rows_skipped']:,} bad rows"] if meta["bad_rows_skipped"] else []
        say(
            f"{config.output_dir / split}: {meta['tokens']:,} tokens of {meta['documents']:,} documents, "
            f"{meta['text_bytes'] / max(meta['tokens'], 1):.2f} bytes of text in each token"
            + (f"; left out of all: {', '.join(left_out)}" if left_out and split == "train" else "")
        )
