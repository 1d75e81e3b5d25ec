"""Data written beside its place and moved in when it is whole; of what stood there only our own files go."""

import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tutelage.disk import move_in
from tutelage.errors import UserError

_SHARD = r"meta\.json|shard-\d{5,}\.(tokens\.bin|offsets\.bin|json)"
SHARD_FILES = re.compile(rf"{_SHARD}|\.({_SHARD})\.\d+\.partial")  # what a kill leaves has a dot in front


@contextmanager
def written_aside(directory: Path, *, last: str, ours: re.Pattern[str] | None = None) -> Iterator[Path]:
    """A folder to write into, whose files then replace those of `directory` that `ours` fits.

    `last` goes first and comes last: where it is, all is whole. After an error nothing was touched.
    """
    aside = directory / f".{last}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    made = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    aside.mkdir(parents=True)
    try:
        yield aside
        move_in(aside, directory, last=last, stale=_files(directory, ours) if ours else ())
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        for folder in made:
            if not any(folder.iterdir()):
                folder.rmdir()


def remove_files(directory: Path, ours: re.Pattern[str]) -> None:
    """Remove the files that are ours from a folder, and the folder if nothing else is in it."""
    for path in _files(directory, ours):
        path.unlink()
    if directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()


def _files(directory: Path, ours: re.Pattern[str]) -> list[Path]:
    inside = [*directory.glob("*"), *directory.glob("*/*")]
    return [path for path in inside if ours.fullmatch(str(path.relative_to(directory)))]


def refuse_within(directory: Path, sources: Iterable[Path]) -> None:
    """Refuse to write into a folder that what is read lies in."""
    for source in sources:
        if source.resolve().is_relative_to(directory.resolve()):
            raise UserError(
                f"{source} lies in {directory}, where what is made of it goes; give another --output_dir"
            )
