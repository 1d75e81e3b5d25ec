"""Turn TinyStories into conversations: the instruction, shortened, and the story that answers it.

    tutelage data download tinystories --output_dir data
    tutelage data build storyteller --data_dir data --output_dir data/storyteller

Writes train.jsonl and val.jsonl to fine-tune on, and train_stories.jsonl and val_stories.jsonl, the same
stories alone, to pretrain on. The first shard is held out as val; of a single shard, --val_share. Stopped on
the way, the same command goes on from the last finished shard.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.errors import UserError
from tutelage.recipes.saying import say

if TYPE_CHECKING:
    from tutelage.data.stories.storyteller_build import Shard


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildStorytellerConfig:
    data_dir: Path = Path("data")  # holds data00.json, data01.json, …, or TinyStories_all_data with them
    output_dir: Path = Path("data/storyteller")
    val_share: float = 0.01  # of the stories, where there is only one shard
    skip_bad_rows: bool = False  # count items that are not as they should be and go on without them
    num_data_workers: int = 2  # processes, a shard each
    overwrite: bool = False  # build anew what was built from other shards

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.val_share <= 0.5:
            problems.append(f"val_share is {self.val_share}, must be above 0 and at most 0.5")
        if self.num_data_workers < 1:
            problems.append(f"num_data_workers is {self.num_data_workers}, must be at least 1")
        if problems:
            raise UserError("\n  ".join(problems))


def run(config: BuildStorytellerConfig) -> None:
    """Write the files and name them."""
    from tutelage.data.stories.storyteller import shards_of
    from tutelage.data.stories.storyteller_build import DONE, NAMES, build, plan_shards
    from tutelage.report.progress import ByteBar

    shards = plan_shards(
        shards_of(config.data_dir), val_share=config.val_share, skip_bad_rows=config.skip_bad_rows
    )
    if not _built(config, shards):
        (config.output_dir / DONE).unlink(missing_ok=True)
        with ByteBar("reading") as bar:
            total = build(shards, config.output_dir, workers=config.num_data_workers, on_bytes=bar.update)
        say(f"{total.train:,} stories to train on, {total.val:,} held out")
        if total.skipped:
            say(f"{total.skipped:,} skipped, the first of them {total.first_skipped}")
    for name in NAMES.values():
        print(config.output_dir / name)


def _built(config: BuildStorytellerConfig, shards: list[Shard]) -> bool:
    """Whether output_dir holds just this data set already; another one is refused."""
    from tutelage.data.stories.storyteller_build import DONE, origins

    done = config.output_dir / DONE
    if not done.exists() or config.overwrite:
        return False
    if json.loads(done.read_text(encoding="utf-8"))["shards"] != origins(shards):
        raise UserError(
            f"{config.output_dir} was built from other shards or with other settings; "
            "give --overwrite to build it anew, or another --output_dir"
        )
    say(f"{config.output_dir} is already built")
    return True
