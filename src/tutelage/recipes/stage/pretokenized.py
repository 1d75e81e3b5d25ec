"""Shards that `tutelage data build pretrain` made, as the training data of a stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tutelage import dist
from tutelage.data.shards import TokenShards
from tutelage.data.store import SampleStore, split_documents
from tutelage.data.streams import TokenStreams
from tutelage.errors import UserError
from tutelage.recipes.saying import say
from tutelage.recipes.stage.training import TrainingConfig
from tutelage.text.tokenizer import Tokenizer

MOST_PACKED = 4_000_000  # documents and pieces: packing best-fit takes about 200 bytes of memory for each

ShardPacking = Literal["auto", "best_fit", "stream"]


@dataclass(frozen=True, slots=True)
class ShardSettings:
    """How rows are made of shards."""

    weights: Sequence[float] = ()
    packing: ShardPacking = "auto"


def shard_directories(paths: Sequence[str]) -> list[Path]:
    """The directories, if the paths are all `shards:DIR` or directories of shards; none if none is."""
    found = [place for path in paths if (place := _shard_directory(path)) is not None]
    if found and len(found) < len(paths):
        raise UserError(
            f"{', '.join(map(str, found))} is pretokenized and the other paths are not; run "
            "`tutelage data build pretrain` on those too"
        )
    return found


def _shard_directory(path: str) -> Path | None:
    place = Path(path.removeprefix("shards:"))
    try:
        place = place.expanduser()
        has_shards = (place / "meta.json").is_file()
        below = (place / "train" / "meta.json").is_file()
    except (OSError, RuntimeError):  # no such user, or no name of a file
        has_shards = below = False
    if path.startswith("shards:") and below and not has_shards:
        raise UserError(f"{place} holds shards in {place / 'train'}; give shards:{place / 'train'}")
    return place if has_shards or path.startswith("shards:") else None


def open_shards(
    config: TrainingConfig,
    settings: ShardSettings,
    directories: list[Path],
    tokenizer: Tokenizer,
    split: str,
) -> SampleStore | TokenStreams:
    """The documents of these directories, if they are of this tokenizer; said aloud."""
    if config.train_num_samples if split == "train" else config.val_num_samples:
        raise UserError(
            f"--{split}_num_samples chooses rows of files; for shards give --train_data_weights, or build "
            "shards of less text"
        )
    if not config.pack_samples:
        raise UserError("shards are read in full rows: --pack_samples cannot be off")
    sources = [TokenShards(directory) for directory in directories]
    for source in sources:
        source.check(tokenizer.fingerprint)
        if dist.rank() == 0:
            source.check_contents()
    if config.train_data_splits if split == "train" else config.val_data_splits:
        raise UserError(f"--{split}_data_splits is for data sets of the hub, and shards are none")
    weights = settings.weights if split == "train" else ()
    streams = TokenStreams(sources, list(weights) or None)
    for source, share in zip(sources, streams.shares or [None] * len(sources), strict=True):
        passes = 0.0 if share is None else share * streams.positions / max(source.positions, 1)
        mixed = "" if share is None else f", {share:.1%} of the rows: {passes:.1f} passes an epoch"
        say(
            f"{split} data: {source.directory}: {source.meta['documents']:,} documents, "
            f"{source.meta['tokens']:,} tokens{mixed}"
        )
    documents = sum(source.meta["documents"] for source in sources)
    pieces = documents + streams.positions // config.max_seq_len
    if settings.packing == "stream" or (settings.packing == "auto" and (weights or pieces > MOST_PACKED)):
        say(f"{split} data: rows are cut from the text as it stands")
        return streams
    shards = [shard for path, source in enumerate(sources) for shard in source.samples(path)]
    store = SampleStore.of_shards(shards)
    return split_documents(store.take(store.lengths > 1), config.max_seq_len)
