"""Checkpoints that no kill can spoil: written aside, synced, renamed, through torch.distributed.checkpoint.

OUT/checkpoints/step-0000500/   .metadata, *.distcp    weights, optimizer state, random states
                                state.json             step, data position, what the run is
                                MANIFEST.json          every file's size, written last
"""

import json
import pickle
import re
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from tutelage import dist
from tutelage.disk import sync
from tutelage.errors import UserError, no_room
from tutelage.train.checkpoint_index import damaged, read_index

_NAME = re.compile(r"step-(\d{7,})")


class Saver:
    """Saves and restores a run: master weights, optimizer, random states, and a dict of plain values."""

    def __init__(
        self,
        directory: Path,
        parameters: Mapping[str, Tensor],
        optimizer: Optimizer,
        *,
        keep: int = 1,
        extra: Mapping[str, Tensor] | None = None,
    ):
        self.directory = directory
        self.parameters = parameters
        self.optimizer = optimizer
        self.extra = extra or {}  # more tensors of the run, such as averages of the weights
        self.keep = keep  # newest checkpoints that stay; 0: all
        self._crowded = True  # whether there may be more than `keep`, or what a kill left

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write step's checkpoint whole, or raise and leave the earlier ones as they were, until `prune`.

        A full disk is a UserError.
        """
        final = self.directory / f"step-{step:07d}"
        aside = self.directory / f".writing-{final.name}"
        if dist.by_rank_zero(lambda: _whole(final)):  # resumed and interrupted before another step
            return final

        def make_room() -> None:
            shutil.rmtree(final, ignore_errors=True)
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)

        def finish() -> None:
            (aside / "state.json").write_text(json.dumps({"step": step, **state}))
            _seal(aside)
            aside.rename(final)
            sync(self.directory)

        def unless_full(work: Callable[[], None]) -> None:
            try:
                work()
            except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
                if (why := no_room(error)) is None:
                    raise
                raise self.full_disk(why, f"the checkpoint of step {step}") from error

        try:
            dist.by_rank_zero(lambda: unless_full(make_room))
            dist.together(lambda: unless_full(lambda: _save_tensors(self._tensors(), aside)))
            dist.by_rank_zero(lambda: unless_full(finish))
        except Exception:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        self._crowded = True
        return final

    def full_disk(self, why: str, what: str) -> UserError:
        """What a person is told when there was no room for something."""
        last = newest(self.directory)
        kept = f"the last checkpoint, {last.name}, is whole" if last else "there is no checkpoint before it"
        return UserError(
            f"{self.directory}: {why}, {what} could not be written; {kept}. "
            "Free some space and run the same command with --resume"
        )

    def load(self, checkpoint: Path) -> dict[str, Any]:
        """Fill weights, optimizer and random states in place; return the plain values."""
        tensors = self._tensors()
        check_fits(checkpoint, tensors)
        stored = read_index(checkpoint).state_dict_metadata
        tensors = {name: tensor for name, tensor in tensors.items() if name in stored}
        try:
            _unwrapped(lambda: load(tensors, checkpoint_id=checkpoint, no_dist=dist.world_size() == 1))
        except (torch.OutOfMemoryError, PermissionError, torch.distributed.DistError):
            raise
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise damaged(checkpoint) from error
        if f"random.cpu.{dist.rank()}" in tensors:  # not where there are more processes than there were
            torch.set_rng_state(tensors[f"random.cpu.{dist.rank()}"])
        if f"random.cuda.{dist.rank()}" in tensors:  # not where a run moves from or to a GPU
            torch.cuda.set_rng_state(tensors[f"random.cuda.{dist.rank()}"])
        return read_state(checkpoint)

    def _tensors(self) -> dict[str, Tensor]:
        names = {id(p): name for name, p in self.parameters.items()}
        tensors = {f"model.{name}": p.detach() for name, p in self.parameters.items()}
        for p, state in self.optimizer.state.items():
            tensors |= {f"optimizer.{names[id(p)]}.{key}": value for key, value in state.items()}
        tensors |= {f"extra.{name}": value for name, value in self.extra.items()}
        tensors[f"random.cpu.{dist.rank()}"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors[f"random.cuda.{dist.rank()}"] = torch.cuda.get_rng_state()
        return tensors

    def prune(self) -> None:
        """Remove all but the newest `keep`. Called a step later than `save`: that step proves them good."""
        if not self._crowded or dist.rank():
            return
        self._crowded = False
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


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The plain values of a checkpoint: its step and what was given to `save`."""
    try:
        state = json.loads((checkpoint / "state.json").read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(checkpoint) from error
    if not isinstance(state, dict) or type(state.get("step")) is not int:
        raise damaged(checkpoint)
    return state


def check_fits(
    checkpoint: Path,
    tensors: Mapping[str, Tensor],
    kinds: tuple[str, ...] = ("model.", "optimizer.", "extra."),
) -> None:
    """Refuse a checkpoint whose tensors of these kinds differ from `tensors` in name, shape or dtype."""
    entries = read_index(checkpoint).state_dict_metadata
    there = {
        name: f"{_shape(entry.size)} {entry.properties.dtype}"
        for name, entry in entries.items()
        if name.startswith(kinds) and isinstance(entry, TensorStorageMetadata)
    }
    here = {
        name: f"{_shape(tensor.shape)} {tensor.dtype}"
        for name, tensor in tensors.items()
        if name.startswith(kinds)
    }
    odd = [name for name in sorted(there | here) if there.get(name) != here.get(name)]
    if odd:
        first = f"{odd[0]} is {there.get(odd[0], 'missing')} there and {here.get(odd[0], 'missing')} here"
        more = f", and {len(odd) - 1} more tensors differ" if len(odd) > 1 else ""
        raise UserError(
            f"{checkpoint} holds another model or optimizer than this run's: {first}{more}; resume with the "
            "settings in the run's config.yaml, or start anew with --overwrite"
        )


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def _whole(path: Path) -> bool:
    try:
        sizes = json.loads((path / "MANIFEST.json").read_text())
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _save_tensors(tensors: dict[str, Tensor], directory: Path) -> None:
    writer = FileSystemWriter(directory, single_file_per_rank=True, sync_files=True)
    _unwrapped(lambda: save(tensors, storage_writer=writer, no_dist=dist.world_size() == 1))


def _unwrapped(call: Callable[[], object]) -> None:
    """Make a call of torch.distributed.checkpoint; what fails in it, even Ctrl-C, is raised as it was."""
    failed: CheckpointException | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one process needs no process group, and torch says so
        try:
            call()
        except CheckpointException as error:
            failed = error
    if failed is not None:  # raised out here, where the cause keeps a context of its own
        raise next(iter(failed.failures.values()))[0]


def _seal(directory: Path) -> None:
    """Write the list of files and sizes last, with everything on the disk before it."""
    files = [path for path in directory.iterdir() if path.is_file()]
    for path in files:
        sync(path)
    manifest = directory / "MANIFEST.json"
    manifest.write_text(json.dumps({path.name: path.stat().st_size for path in files}))
    sync(manifest)
    sync(directory)
