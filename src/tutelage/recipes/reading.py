"""The documents of a stage: encoded before it, or read while it trains."""

from collections.abc import Callable
from typing import Literal

from tutelage.data.dataset import prepare
from tutelage.data.encode import Encoder
from tutelage.data.encoded import encoded_directories
from tutelage.data.paths import find_data
from tutelage.data.sources import parse_sources
from tutelage.data.store import SampleStore
from tutelage.data.streaming import Streaming
from tutelage.data.windows import Reading
from tutelage.errors import UserError
from tutelage.recipes.pretokenized import shard_directories
from tutelage.recipes.training import TrainingConfig
from tutelage.text.template import Template
from tutelage.text.tokenizer import Tokenizer

Say = Callable[[str], None]


def encoded(
    config: TrainingConfig,
    tokenizer: Tokenizer,
    template: Template | None,
    split: str,
    say: Say,
    *,
    too_long: Literal["truncate", "drop", "split"],
    allow_unmasked: bool = False,
    ranked: bool = False,
) -> SampleStore:
    """The documents of the train or the val paths, cut and counted aloud; `ranked` ones are answers."""
    training = split == "train"
    paths = config.train_data_paths if training else config.val_data_paths
    splits = config.train_data_splits if training else config.val_data_splits
    shapes = config.train_data_shapes if training else config.val_data_shapes
    directories = encoded_directories(paths)
    if directories and (splits or shapes or (config.data_fields and not config.val_data_paths)):
        flag = f"{split}_data_splits" if splits else f"{split}_data_shapes" if shapes else "data_fields"
        raise UserError(f"--{flag} is for records, and {directories[0]} holds tokens; leave it out")
    found = directories or find_data(
        paths,
        splits,
        shapes=shapes,
        fields=config.data_fields,
        cache_dir=config.cache_dir,
        log=say,
        flag=f"--{split}_data_splits",
    )
    return prepare(
        found,
        num_samples=config.train_num_samples if training else config.val_num_samples,
        template=template,
        tokenizer=tokenizer,
        max_seq_len=config.max_seq_len,
        too_long=too_long,
        max_cut_percent=config.max_cut_percent,
        skip_bad_rows=config.skip_bad_rows,
        allow_unmasked=allow_unmasked or bool(directories),  # whose weights no template can have got wrong
        workers=config.num_data_workers,
        cache_dir=config.cache_dir,
        log=say,
        split=split,
        ranked=ranked,
    )


def stream(
    config: TrainingConfig,
    tokenizer: Tokenizer,
    template: Template | None,
    say: Say,
    *,
    too_long: Literal["truncate", "drop", "split"],
    allow_unmasked: bool,
) -> Streaming:
    """The rows of the train paths, endless; what is wrong with the first window is refused here."""
    if shard_directories(config.train_data_paths) or encoded_directories(config.train_data_paths):
        raise UserError("streaming is for text and records; shards are read from disk as it is")
    found = find_data(
        config.train_data_paths,
        config.train_data_splits,
        shapes=config.train_data_shapes,
        fields=config.data_fields,
        streaming=True,
        cache_dir=config.cache_dir,
        log=say,
        flag="--train_data_splits",
    )
    sources = parse_sources(found)
    if template is None and any(source.kind != "text" for source in sources):
        raise UserError("conversations need a template; give only text to train_data_paths")
    reading = Reading(
        encoder=Encoder(template, tokenizer),
        max_seq_len=config.max_seq_len,
        too_long=too_long,
        max_cut_percent=config.max_cut_percent,
        skip_bad_rows=config.skip_bad_rows,
        allow_unmasked=allow_unmasked,
        window=config.shuffle_buffer_size,
        packed=config.pack_samples,
        seed=config.seed,
        log=say,
    )
    by_path = [[source for source in sources if source.number == path] for path in range(len(found))]
    for path, own in zip(found, by_path, strict=True):
        if len({source.kind for source in own}) > 1:
            raise UserError(f"{path} has conversations and plain texts; give them as two paths")
    streaming = Streaming(by_path, reading, weights=config.train_data_weights)
    streaming.beginning()
    return streaming
