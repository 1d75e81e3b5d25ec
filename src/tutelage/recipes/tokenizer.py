"""Learn a vocabulary from text, with control tokens for conversations to come.

    tutelage tokenizer train --train_data_paths text:stories.txt --vocab_size 768 --output_dir TOK

TOK is a directory that `tutelage pretrain --tokenizer TOK` and transformers' AutoTokenizer read. It has the
control tokens of --template_config and that chat template, so that conversations can follow later.

--algorithm byte_bpe merges bytes, as GPT-2, Llama 3 and Qwen do. sentencepiece merges characters and falls
back to bytes, as Llama 2 does; TOK then has a tokenizer.model too, which SentencePiece and llama.cpp read.
char makes every character a token, as toy models have it; characters not in the text are all <unk>.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tutelage.errors import UserError

if TYPE_CHECKING:
    from tutelage.data.read import Rows
    from tutelage.text.template import Template
    from tutelage.text.tokenizer import Tokenizer

_IN_MEMORY = 300_000_000  # bytes of text given to SentencePiece, which takes three times as much memory

_SPENT = {  # why a vocabulary is smaller than was asked for
    "byte_bpe": "nothing else occurs twice in the text",
    "sentencepiece": "every word of the text is a token already",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerTrainConfig:
    # the text
    train_data_paths: tuple[str, ...]
    """text:FILE, a text a line; document:FILE, one text; jsonl:FILE with messages or text; local:DIR, hub ids
    of data sets"""
    train_data_splits: tuple[str, ...] = ()
    """of each path that is a data set of the hub or local:; - for files"""
    train_num_samples: tuple[float, ...] = ()  # of each path: above 1 a count, up to 1 a share, -1 all
    max_train_bytes: int | None = None
    """of text to learn from, more is sampled; default: 3e8 for sentencepiece, about 1 GB of memory"""
    skip_bad_rows: bool = False  # count rows that cannot be used and go on without them
    cache_dir: Path | None = None  # of data sets written out as files; default ~/.cache/tutelage

    # the vocabulary
    algorithm: Literal["byte_bpe", "sentencepiece", "char"] = "byte_bpe"  # what a token is made of
    vocab_size: int = 4096  # tokens in all: control tokens, 256 bytes, and what is merged; of char, the most
    template_config: str = "chatml"  # chat template whose control tokens are kept: built-in or a YAML file
    reserved_tokens: int = 0  # control tokens without a meaning yet: <|reserved_special_token_0|> and on

    # the result
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
        if self.reserved_tokens < 0:
            problems.append(f"reserved_tokens is {self.reserved_tokens}, must be at least 0")
        if self.max_train_bytes is not None and self.max_train_bytes < 1:
            problems.append(f"max_train_bytes is {self.max_train_bytes}, must be at least 1")
        if problems:
            raise UserError("\n  ".join(problems))


def run(config: TokenizerTrainConfig) -> None:
    """Read, learn, write, and say how well the text is covered."""
    from tutelage.recipes.data.texts import choose, sample_bytes, texts
    from tutelage.recipes.saying import say
    from tutelage.text.template import Template

    template = Template.load(config.template_config)
    if (config.output_dir / "tokenizer.json").exists() and not config.overwrite:
        raise UserError(
            f"{config.output_dir} already holds a tokenizer; give --overwrite to replace it, "
            "or another --output_dir"
        )
    chosen = choose(
        config.train_data_paths,
        splits=config.train_data_splits,
        num_samples=config.train_num_samples,
        skip_bad_rows=config.skip_bad_rows,
        cache_dir=config.cache_dir,
        flags="--train_",
    )
    limit = config.max_train_bytes or (_IN_MEMORY if config.algorithm == "sentencepiece" else None)
    if limit is not None:
        chosen = sample_bytes(chosen, limit)
    tokenizer = _learn(config, chosen, template)
    try:
        (config.output_dir / "tokenizer.model").unlink(missing_ok=True)  # of another algorithm, overwritten
        tokenizer.save(config.output_dir, chat_template=template.jinja)
    except OSError as error:
        raise UserError(f"{config.output_dir} cannot be written: {error.strerror}") from error
    shown = [text for _, text in zip(range(1000), texts(chosen), strict=False)]
    n_tokens = max(1, sum(map(len, tokenizer.encode_batch(shown))))
    n_bytes = sum(len(text.encode()) for text in shown)
    say(f"{config.output_dir}: {tokenizer.size:,} tokens, {n_bytes / n_tokens:.2f} bytes of text in each")
    if tokenizer.size < config.vocab_size and config.algorithm in _SPENT:
        say(
            f"{config.vocab_size:,} were asked for, but {_SPENT[config.algorithm]}: "
            "give more of it, or a smaller --vocab_size"
        )


def _learn(config: TokenizerTrainConfig, chosen: list[Rows], template: Template) -> Tokenizer:
    from tutelage.recipes.data.texts import texts
    from tutelage.text.train import train_tokenizer
    from tutelage.text.train_char import train_char
    from tutelage.text.train_sentencepiece import train_sentencepiece

    train = {"byte_bpe": train_tokenizer, "sentencepiece": train_sentencepiece, "char": train_char}
    reserved = [f"<|reserved_special_token_{number}|>" for number in range(config.reserved_tokens)]
    return train[config.algorithm](texts(chosen), config.vocab_size, [*template.control, *reserved])
