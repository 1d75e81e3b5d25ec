"""What has to be on the disk before anything relies on it."""

import os
from collections.abc import Iterable
from pathlib import Path


def move_in(aside: Path, directory: Path, *, last: str, stale: Iterable[Path] = ()) -> None:
    """Move the files of a folder that lies in `directory` to their places there, and remove the stale ones.

    The file `last` goes first and comes last: where it is, all of them are there, and on the disk.
    """
    new = sorted(path.relative_to(aside) for path in aside.rglob("*") if path.is_file())
    for name in new:
        sync(aside / name)
    (directory / last).unlink(missing_ok=True)
    for path in stale:
        if path.relative_to(directory) not in new:
            path.unlink(missing_ok=True)
    for name in new:
        if name != Path(last):
            (directory / name).parent.mkdir(exist_ok=True)
            os.replace(aside / name, directory / name)
    sync(directory)
    os.replace(aside / last, directory / last)
    sync(directory)


def write(path: Path, data: bytes) -> None:
    """Write a file, and return when it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Return when a file, or what a directory lists, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
