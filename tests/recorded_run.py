"""A command that notes the samples of its steps as it takes them, and dies at once with whoever started it.

python tests/recorded_run.py NOTES pretrain --train_data_paths ...
"""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

from tutelage import cli
from tutelage.train.trainer import Trainer

PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


def main(notes: Path, words: list[str]) -> None:
    """Run the command; each step adds a line to the notes of its rank."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # torchrun's processes outlive its kill -9
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
