"""A command that notes the samples of its steps as it takes them.

python tests/recorded_run.py NOTES pretrain --train_data_paths ...
"""

import json
import os
import sys
from pathlib import Path

from tutelage import cli
from tutelage.train.trainer import Trainer


def main(notes: Path, words: list[str]) -> None:
    """Run the command; each step adds a line to the notes of its rank."""
    path = notes.with_suffix(f".rank{os.environ.get('RANK', '0')}.jsonl")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    train_step = Trainer.train_step

    def noted(trainer, batches):
        line = json.dumps([trainer.step + 1, trainer.source.last_ids]) + "\n"
        os.write(descriptor, line.encode())
        return train_step(trainer, batches)

    Trainer.train_step = noted
    cli.main(words)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
