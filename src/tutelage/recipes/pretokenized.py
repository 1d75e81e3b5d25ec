"""Shards that `tutelage data build pretrain` made, as the training data of a stage."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tutelage.data.shards import TokenShards
from tutelage.data.store import SampleStore, split_documents
from tutelage.data.streams import TokenStreams
from tutelage.errors import UserError
from tutelage.recipes.training import TrainingConfig
from tutelage.text.tokenizer import Tokenizer

MOST_PACKED = 4_000_000  # documents: packing best-fit takes about 200 bytes of memory for each

ShardPacking = Literal["auto", "best_fit", "stream"]


@dataclass(frozen=True, slots=True)
class ShardSettings:
    """How rows are made of shards."""

    weights: Sequence[float] = ()
    packing: ShardPacking = "auto"


def shard_directories(paths: Sequence[str]) -> list[Path]:
    """The directories, if the paths are all `shards:DIR` or directories of shards; none if none is."""
    found = [
        Path(path.removeprefix("shards:")).expanduser()
        for path in paths
        if path.startswith("shards:") or (Path(path).expanduser() / "meta.json").is_file()
    ]
    if found and len(found) < len(paths):
        raise UserError(
            f"{', '.join(map(str, found))} is pretokenized and the other paths are not; run "
            "`tutelage data build pretrain` on those too"
        )
    return found


def open_shards(
    config: TrainingConfig,
    settings: ShardSettings,
    directories: list[Path],
    tokenizer: Tokenizer,
    split: str,
    say: Callable[[str], None],
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
    weights = settings.weights if split == "train" else ()
    streams = TokenStreams(sources, list(weights) or None)
    for source, share in zip(sources, streams.shares or [None] * len(sources), strict=True):
        mixed = "" if share is None else f", {share:.1%} of the rows"
        say(
            f"{split} data: {source.directory}: {source.meta['documents']:,} documents, "
            f"{source.meta['tokens']:,} tokens{mixed}"
        )
    documents = sum(source.meta["documents"] for source in sources)
    if settings.packing == "stream" or (settings.packing == "auto" and (weights or documents > MOST_PACKED)):
        say(f"{split} data: rows are cut from the text as it stands")
        return streams
    shards = [shard for path, source in enumerate(sources) for shard in source.samples(path)]
    store = SampleStore.of_shards(shards)
    return split_documents(store.take(store.lengths > 1), config.max_seq_len)
