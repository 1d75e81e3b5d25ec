"""Write the stories that ship with the project.

    tutelage data build stories --output_dir data

Makes small stories up: stories.txt, a document a line, to pretrain on; chats.jsonl, conversations to
fine-tune on; pairs.jsonl, requests with a better and a worse story to learn preferences from; held_out.jsonl
and held_out_pairs.jsonl, about stories in none of them. A seed writes the same each time.
"""

from dataclasses import dataclass
from pathlib import Path

from tutelage.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildStoriesConfig:
    output_dir: Path
    stories: int = 24_000  # documents in stories.txt
    conversations: int = 12_000  # in chats.jsonl
    pairs: int = 4_000  # in pairs.jsonl; 0 writes none
    seed: int = 1

    def __post_init__(self) -> None:
        if self.stories < 1 or self.conversations < 1:
            raise UserError("stories and conversations must be at least 1")
        if self.pairs < 0:
            raise UserError(f"pairs is {self.pairs}, must be 0 or more")


def run(config: BuildStoriesConfig) -> None:
    """Write the files and name them."""
    from tutelage.data.stories.pairs import write_pairs
    from tutelage.data.stories.plots import write

    write(config.output_dir, stories=config.stories, conversations=config.conversations, seed=config.seed)
    write_pairs(config.output_dir, pairs=config.pairs, seed=config.seed)
    for file in sorted(config.output_dir.iterdir()):
        print(file)
