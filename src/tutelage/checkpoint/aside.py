"""Files of a model written beside their place and moved in when they are whole."""

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tutelage.errors import UserError


@contextmanager
def written_aside(directory: Path, size: int, *, last: str, old: Sequence[str] = ()) -> Iterator[Path]:
    """A folder to write into, whose files then replace those of their names in `directory`.

    The file `last` goes first and comes last: where it is present, the model is whole. Files of the patterns
    `old` that were not written anew go too. That the disk cannot hold `size` bytes more is said in plain
    words, before writing or after.
    """
    aside = directory / ".partial"
    with _room_for(size, directory):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        for path in aside.iterdir():
            sync(path)
        _move_in(aside, directory, last, old)


def _move_in(aside: Path, directory: Path, last: str, old: Sequence[str]) -> None:
    new = {path.name for path in aside.iterdir()}
    (directory / last).unlink(missing_ok=True)
    for path in [path for pattern in old for path in directory.glob(pattern)]:
        if path.name not in new:
            path.unlink(missing_ok=True)
    for name in sorted(new - {last}):
        os.replace(aside / name, directory / name)
    sync(directory)
    os.replace(aside / last, directory / last)
    sync(directory)
    aside.rmdir()


def sync(path: Path) -> None:
    """Return when a file, or what a directory lists, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _room_for(size: int, directory: Path) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if free < size:
        raise UserError(
            f"{directory}: the model takes {_readable(size)} and the disk has {_readable(free)} left; "
            "free some or choose another place"
        )
    try:
        yield
    except BaseException as error:
        shutil.rmtree(directory / ".partial", ignore_errors=True)
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise UserError(f"{directory}: the disk became full while the model was written") from error
        raise


def _readable(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
