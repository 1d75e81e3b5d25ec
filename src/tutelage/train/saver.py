"""Checkpoints that no kill can spoil: written aside, synced, renamed, through torch.distributed.checkpoint.

OUT/checkpoints/step-0000500/   .metadata, *.distcp    weights, optimizer state, random states
                                state.json             step, data position, what the run is
                                MANIFEST.json          every file's size, written last
"""

import errno
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.optim import Optimizer

from tutelage import dist
from tutelage.errors import UserError

_NAME = re.compile(r"step-(\d{7,})")


class Saver:
    """Saves and restores a run: master weights, optimizer, random states, and a dict of plain values."""

    def __init__(
        self, directory: Path, parameters: Mapping[str, Tensor], optimizer: Optimizer, *, keep: int = 1
    ):
        self.directory = directory
        self.parameters = parameters
        self.optimizer = optimizer
        self.keep = keep  # newest checkpoints that stay; 0: all

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write step's checkpoint whole, or raise and leave the earlier ones as they were.

        A full disk is a UserError.
        """
        final = self.directory / f"step-{step:07d}"
        aside = self.directory / f".writing-{final.name}"
        if _whole(final):  # resumed and interrupted before another step: nothing has changed
            return final
        try:
            shutil.rmtree(final, ignore_errors=True)
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            _save_tensors(self._tensors(), aside)
            (aside / "state.json").write_text(json.dumps({"step": step, **state}))
            _seal(aside)
            aside.rename(final)
            _sync(self.directory)
        except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
            shutil.rmtree(aside, ignore_errors=True)
            if not _disk_full(error, self.directory):
                raise
            last = newest(self.directory)
            kept = f"the last one, {last.name}, is whole" if last else "there was none before"
            raise UserError(
                f"{self.directory}: the disk is full, the checkpoint of step {step} could not be written; "
                f"{kept}. Free some space and run the same command with --resume"
            ) from error
        self._prune()
        return final

    def load(self, checkpoint: Path) -> dict[str, Any]:
        """Fill weights, optimizer and random states in place; return the plain values."""
        tensors = self._tensors()
        stored = set(dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata)
        if stored != set(tensors):
            odd = sorted(stored ^ set(tensors))
            raise UserError(
                f"{checkpoint}: holds another model or optimizer than this run's ({len(odd)} tensors differ, "
                f"first {odd[0]}); resume with the settings in the run's config.yaml"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one process needs no process group, and says so
            dcp.load(tensors, checkpoint_id=checkpoint, no_dist=True)
        torch.set_rng_state(tensors[f"random.cpu.{dist.rank()}"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors[f"random.cuda.{dist.rank()}"])
        return json.loads((checkpoint / "state.json").read_text())

    def _tensors(self) -> dict[str, Tensor]:
        names = {id(p): name for name, p in self.parameters.items()}
        tensors = {f"model.{name}": p.detach() for name, p in self.parameters.items()}
        for p, state in self.optimizer.state.items():
            tensors |= {f"optimizer.{names[id(p)]}.{key}": value for key, value in state.items()}
        tensors[f"random.cpu.{dist.rank()}"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors[f"random.cuda.{dist.rank()}"] = torch.cuda.get_rng_state()
        return tensors

    def _prune(self) -> None:
        for old in complete(self.directory)[: -self.keep or None] if self.keep else []:
            # Renamed first: a kill in the middle must not leave half a directory with a whole one's name.
            doomed = old.with_name(f".deleting-{old.name}")
            old.rename(doomed)
            shutil.rmtree(doomed)
        for left in [*self.directory.glob(".writing-*"), *self.directory.glob(".deleting-*")]:
            shutil.rmtree(left, ignore_errors=True)


def complete(directory: Path) -> list[Path]:
    """The whole checkpoints in a directory, oldest first."""
    named = [(int(m[1]), p) for p in directory.glob("step-*") if (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(named) if _whole(path)]


def newest(directory: Path) -> Path | None:
    """The whole checkpoint of the highest step, or None."""
    found = complete(directory)
    return found[-1] if found else None


def _whole(path: Path) -> bool:
    try:
        sizes = json.loads((path / "MANIFEST.json").read_text())
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _save_tensors(tensors: dict[str, Tensor], directory: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writer = dcp.FileSystemWriter(directory, single_file_per_rank=True, sync_files=True)
        dcp.save(tensors, storage_writer=writer, no_dist=True)


def _seal(directory: Path) -> None:
    """Write the list of files and sizes last, with everything on the disk before it."""
    files = [path for path in directory.iterdir() if path.is_file()]
    for path in files:
        _sync(path)
    manifest = directory / "MANIFEST.json"
    manifest.write_text(json.dumps({path.name: path.stat().st_size for path in files}))
    _sync(manifest)
    _sync(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_full(error: BaseException, directory: Path) -> bool:
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left" in str(chain):
            return True
        chain = chain.__cause__ or chain.__context__
    return shutil.disk_usage(directory if directory.exists() else directory.parent).free < 1 << 20
