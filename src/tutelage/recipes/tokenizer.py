"""Learn a vocabulary from text: byte-level BPE, whose tokens spell every text there is.

    tutelage tokenizer train --train_data_paths text:stories.txt --vocab_size 768 --output_dir TOK

TOK is a directory that `tutelage pretrain --tokenizer TOK` and transformers' AutoTokenizer read. It has the
control tokens of --template_config and that chat template, so that conversations can follow later.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.errors import UserError

if TYPE_CHECKING:
    from tutelage.data.read import Rows


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerTrainConfig:
    train_data_paths: tuple[str, ...]  # text:FILE, a document a line, or jsonl:FILE with messages; joined
    train_num_samples: tuple[float, ...] = ()  # of each path: above 1 a count, up to 1 a share, -1 all
    skip_bad_rows: bool = False  # count rows that cannot be used and go on without them
    vocab_size: int = 4096  # tokens in all: control tokens, 256 bytes, and what is merged of them
    template_config: str = "chatml"  # chat template whose control tokens are kept: built-in or a YAML file
    output_dir: Path = Path("tokenizer")
    overwrite: bool = False  # replace a tokenizer that is already in output_dir

    def __post_init__(self) -> None:
        problems = []
        if not self.train_data_paths:
            problems.append("train_data_paths names no path")
        if len(self.train_num_samples) not in (0, len(self.train_data_paths)):
            problems.append(
                f"train_num_samples has {len(self.train_num_samples)} numbers "
                f"for {len(self.train_data_paths)} paths"
            )
        if problems:
            raise UserError("\n  ".join(problems))


def run(config: TokenizerTrainConfig) -> None:
    """Read, learn, write, and say how well the text is covered."""
    from tutelage.text.template import Template
    from tutelage.text.train import train_tokenizer

    template = Template.load(config.template_config)
    if (config.output_dir / "tokenizer.json").exists() and not config.overwrite:
        raise UserError(
            f"{config.output_dir} already holds a tokenizer; give --overwrite to replace it, "
            "or another --output_dir"
        )
    chosen = _choose(config)
    tokenizer = train_tokenizer(_texts(chosen), config.vocab_size, template.file.control)
    try:
        tokenizer.save(config.output_dir, chat_template=template.jinja)
    except OSError as error:
        raise UserError(f"{config.output_dir} cannot be written: {error.strerror}") from error
    shown = [text for _, text in zip(range(1000), _texts(chosen), strict=False)]
    n_tokens = max(1, sum(map(len, tokenizer.encode_batch(shown))))
    n_bytes = sum(len(text.encode()) for text in shown)
    _say(f"{config.output_dir}: {tokenizer.size:,} tokens, {n_bytes / n_tokens:.2f} bytes of text in each")
    if tokenizer.size < config.vocab_size:
        _say(
            f"{config.vocab_size:,} were asked for, but nothing else occurs twice in the text: "
            "give more of it, or a smaller --vocab_size"
        )


def _choose(config: TokenizerTrainConfig) -> list[Rows]:
    """The rows to learn from; bad ones are refused, or skipped aloud."""
    from tutelage.data.read import Faults, parse_sources, scan

    faults, chosen = Faults(), []
    amounts = config.train_num_samples or (-1.0,) * len(config.train_data_paths)
    for source, amount in zip(parse_sources(config.train_data_paths), amounts, strict=True):
        rows = scan(source)
        faults.extend(rows.faults)
        chosen.append((rows, amount))
    if faults.count and config.skip_bad_rows:
        _say(f"{faults.count:,} bad rows skipped, the first of them {faults.named[0]}")
    elif faults.count:
        faults.refuse()
    return [rows.sample(amount) for rows, amount in chosen]


def _texts(chosen: Sequence[Rows]) -> Iterator[str]:
    """Every line of text, and what every message of a conversation says."""
    from tutelage.data.read import load_rows

    for rows in chosen:
        for row in load_rows(rows.source, rows.offsets):
            if isinstance(row, str):
                yield row
            else:
                yield from (message["content"] for message in row)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
