"""The directory of a run: what lies in it, and how one is opened without hurting a run already there."""

import dataclasses
import datetime
import platform
import shlex
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tutelage import dist
from tutelage.config import dump
from tutelage.errors import UserError

_PARTS = (
    "config.yaml",
    "metrics.jsonl",
    "samples.jsonl",
    "tensorboard",
    "checkpoints",
    "model",
    "adapter",
    "report.html",
)


def open_run(config: Any, stage: str) -> Path:
    """Make OUT and write OUT/config.yaml, which reruns the run; refuse to write over another run unasked.

    With --resume config.yaml stays as it is: `note_settings` is for when the run has been gone on with.
    """
    return dist.by_rank_zero(lambda: _open(config, stage))


def note_settings(config: Any, stage: str) -> None:
    """Write OUT/config.yaml, which reruns the run."""
    directory: Path = config.output_dir
    # What was about this start only is not in it.
    lasting = dataclasses.replace(config, resume=False, overwrite=False, dry_run=False)
    try:
        (directory / "config.yaml").write_text(_header(stage, directory) + dump(lasting))
    except OSError as error:
        raise UserError(f"{error.filename} cannot be written: {error.strerror}") from error


def check_place(config: Any) -> None:
    """Refuse an OUT that holds a run already, unasked; and to throw away what the new run starts from."""
    directory: Path = config.output_dir
    found = _found(directory)
    if found and not config.overwrite and not config.resume:
        raise UserError(
            f"{directory} already holds a run ({', '.join(found)}); give --resume to go on with it, "
            "--overwrite to throw it away, or another --output_dir"
        )
    if not config.overwrite:
        return
    doomed = [directory.resolve(), *((directory / part).resolve() for part in found)]
    for flag in ("ckpt_paths", "tokenizer", "train_data_paths", "val_data_paths"):
        given = getattr(config, flag, None) or ()
        for path in (given,) if isinstance(given, str | Path) else given:
            needed = Path(str(path).split(":", 1)[-1]).expanduser()
            if needed.exists() and (
                needed.resolve() in doomed or set(doomed[1:]) & set(needed.resolve().parents)
            ):
                raise UserError(
                    f"--overwrite would throw away {path}, which --{flag} needs; give another --output_dir"
                )


def _found(directory: Path) -> list[str]:
    return [part for part in _PARTS if (directory / part).exists()]


def _open(config: Any, stage: str) -> Path:
    check_place(config)
    directory: Path = config.output_dir
    for part in _found(directory) if config.overwrite else []:
        path = directory / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{directory} cannot be made: {error.strerror}") from error
    if not (directory / "config.yaml").exists():
        note_settings(config, stage)
    return directory


def _header(stage: str, directory: Path) -> str:
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    versions = ", ".join(f"{name} {version(name)}" for name in ("tutelage", "torch", "tokenizers", "numpy"))
    return (
        f"# tutelage {stage} --config {shlex.quote(str(directory / 'config.yaml'))}\n"
        f"# written {when} by: {shlex.join(['tutelage', *sys.argv[1:]])}\n"
        f"# {versions}, python {platform.python_version()}\n"
    )
