"""The documents of a stage: encoded before it, or read while it trains."""

from typing import Literal, NamedTuple

from tutelage.data.dataset import by_path, prepare
from tutelage.data.encode import Encoder
from tutelage.data.encoded import encoded_directories
from tutelage.data.paths import DataPath, find_data
from tutelage.data.sources import parse_sources
from tutelage.data.store import SampleStore
from tutelage.data.streaming import Streaming
from tutelage.data.windows import Reading
from tutelage.errors import UserError
from tutelage.recipes.saying import say
from tutelage.recipes.stage.pretokenized import shard_directories
from tutelage.recipes.stage.training import TrainingConfig
from tutelage.text.template import Template
from tutelage.text.tokenizer import Tokenizer


def encoded(
    config: TrainingConfig,
    tokenizer: Tokenizer,
    template: Template | None,
    split: str,
    *,
    too_long: Literal["truncate", "drop", "split"],
    allow_unmasked: bool = False,
    ranked: bool = False,
) -> SampleStore:
    """The documents of the train or the val paths, cut and counted aloud; `ranked` ones are answers."""
    given = _given(config, split)
    directories = encoded_directories(given.paths)
    if directories and (given.splits or given.shapes or (config.data_fields and not config.val_data_paths)):
        flags = {"data_splits": given.splits, "data_shapes": given.shapes}
        flag = next((f"{split}_{name}" for name, values in flags.items() if values), "data_fields")
        raise UserError(f"--{flag} is for records, and {directories[0]} holds tokens; leave it out")
    found = directories or _files(config, split)
    return prepare(
        found,
        num_samples=given.num_samples,
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
    *,
    too_long: Literal["truncate", "drop", "split"],
    allow_unmasked: bool,
) -> Streaming:
    """The rows of the train paths, endless; what is wrong with the first window is refused here."""
    if shard_directories(config.train_data_paths) or encoded_directories(config.train_data_paths):
        raise UserError("streaming is for text and records; shards are read from disk as it is")
    found = _files(config, "train", streaming=True)
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
    streaming = Streaming(by_path(sources, len(found), say), reading, weights=config.train_data_weights)
    streaming.beginning()
    return streaming


class _Given(NamedTuple):
    paths: tuple[str, ...]
    splits: tuple[str, ...]
    shapes: tuple[str, ...]
    num_samples: tuple[float, ...]


def _given(config: TrainingConfig, split: str) -> _Given:
    if split == "val":
        return _Given(
            config.val_data_paths, config.val_data_splits, config.val_data_shapes, config.val_num_samples
        )
    return _Given(
        config.train_data_paths, config.train_data_splits, config.train_data_shapes, config.train_num_samples
    )


def _files(config: TrainingConfig, split: str, *, streaming: bool = False) -> list[DataPath]:
    given = _given(config, split)
    return find_data(
        given.paths,
        given.splits,
        shapes=given.shapes,
        fields=config.data_fields,
        streaming=streaming,
        cache_dir=config.cache_dir,
        log=say,
        flag=f"--{split}_data_splits",
    )
