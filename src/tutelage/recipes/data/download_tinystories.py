"""Fetch TinyStories: five million small stories with the instructions they were written to.

    tutelage data download tinystories --output_dir data

Downloads TinyStories_all_data.tar.gz, 1.6 GB (CDLA-Sharing-1.0), and unpacks its 50 shards, several times
that, into OUTPUT_DIR/TinyStories_all_data. Stopped on the way, the same command goes on; what is there is
left alone. An example is printed at the end.
"""

from dataclasses import dataclass
from pathlib import Path

from tutelage.errors import UserError
from tutelage.recipes.saying import say

URL = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/TinyStories_all_data.tar.gz"


@dataclass(frozen=True, kw_only=True, slots=True)
class DownloadTinystoriesConfig:
    output_dir: Path = Path("data")
    url: str = URL  # of the archive, or of a copy of it nearer by

    def __post_init__(self) -> None:
        if not self.url.startswith(("https://", "http://")):
            raise UserError(f"url is {self.url}, must begin with https:// or http://")


def run(config: DownloadTinystoriesConfig) -> None:
    """Download, unpack, show a story."""
    from tutelage.data.download import download, recall, remember, unpack
    from tutelage.data.stories.storyteller import SHARD
    from tutelage.report.progress import ByteBar

    archive = config.output_dir / "TinyStories_all_data.tar.gz"
    directory = config.output_dir / "TinyStories_all_data"
    record = directory / ".complete"
    shards = recall(record)
    if not shards:
        with ByteBar("downloading") as bar:
            download(config.url, archive, bar.update)
        with ByteBar("unpacking") as bar:
            shards = unpack(archive, directory, SHARD, bar.update)
        remember(shards, record)
    say(
        f"{directory}: {len(shards)} shards; go on with "
        f"`tutelage data build storyteller --data_dir {config.output_dir}`"
    )
    _show(shards[0])


def _show(shard: Path) -> None:
    """Print the first item that is a story."""
    from tutelage.data.stories.storyteller import conversation_of, items_of

    for item in items_of(shard):
        messages = conversation_of(item)
        if not isinstance(messages, str):
            print("\n\n".join(message["content"] for message in messages))
            return
