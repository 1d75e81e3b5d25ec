"""Write a data set that ships with the project.

    tutelage data build stories --output_dir data

`stories` makes small stories up: stories.txt, a document a line, to pretrain on; chats.jsonl, conversations
to fine-tune on; held_out.jsonl, conversations about stories in neither. A seed writes the same each time.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tutelage.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class DataBuildConfig:
    builder: Literal["stories"]  # what to write
    output_dir: Path
    stories: int = 24_000  # documents in stories.txt
    conversations: int = 12_000  # in chats.jsonl
    seed: int = 1

    def __post_init__(self) -> None:
        if self.stories < 1 or self.conversations < 1:
            raise UserError("stories and conversations must be at least 1")


def run(config: DataBuildConfig) -> None:
    """Write the files and name them."""
    from tutelage.data.stories import write

    write(config.output_dir, stories=config.stories, conversations=config.conversations, seed=config.seed)
    for file in sorted(config.output_dir.iterdir()):
        print(file)
