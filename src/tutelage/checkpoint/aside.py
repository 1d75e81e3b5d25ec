"""Files of a model written beside their place and moved in when they are whole."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tutelage.disk import move_in
from tutelage.errors import UserError, no_room


@dataclass(frozen=True, slots=True)
class Beside:
    """What belongs to a model beside its weights, such as its tokenizer: it comes with them or not at all."""

    write: Callable[[Path], object] = lambda folder: None  # into this folder
    old: tuple[str, ...] = ()  # patterns of files that, not written anew, are of an earlier model


@contextmanager
def written_aside(
    directory: Path, size: int, *, last: str, old: Sequence[str] = (), beside: Beside | None = None
) -> Iterator[Path]:
    """A folder to write into, whose files then replace those of their names in `directory`.

    The file `last` goes first and comes last: where it is present, the model is whole. Files of the patterns
    `old` that were not written anew go too. That the disk cannot hold `size` bytes more is said in plain
    words, before writing or after.
    """
    beside = beside or Beside()
    aside = directory / ".partial"
    with room_for(size, directory):
        shutil.rmtree(aside, ignore_errors=True)  # of one that was killed
        try:
            aside.mkdir(parents=True)
            beside.write(aside)
            yield aside
            stale = [path for pattern in (*old, *beside.old) for path in directory.glob(pattern)]
            move_in(aside, directory, last=last, stale=stale)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def room_for(size: int, directory: Path) -> Iterator[None]:
    """Make a directory for files of `size` bytes; that they do not fit is said in plain words."""
    made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        free = shutil.disk_usage(directory).free
        if free < size:
            raise UserError(
                f"{directory}: the model takes {_readable(size)} and the disk has {_readable(free)} left; "
                "free some or choose another place"
            )
        yield
    except BaseException as error:
        if made:
            with suppress(OSError):  # there is something in it, from before the files moved in
                directory.rmdir()
        if why := no_room(error):
            raise UserError(f"{directory}: the model could not be written: {why}") from error
        raise


def _readable(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
