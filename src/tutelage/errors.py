"""What may stop a command without being a bug of ours, and the exit code each has."""

import errno

_NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota of the disk is used up",
    errno.EFBIG: "a file is larger than its disk, or `ulimit -f`, lets it be (FAT ends at 4 GB)",
}
_FILE_THERE = "a file may stand where a directory is wanted"
_NO_PLACE = {
    errno.EEXIST: _FILE_THERE,
    errno.ENOTDIR: _FILE_THERE,
    errno.EISDIR: "a directory stands where a file is wanted",
    errno.EACCES: "it belongs to somebody else",
    errno.EPERM: "nothing may be written there",
    errno.EROFS: "nothing may be written there",
    errno.ENOENT: "it is not there, and cannot be made",
    errno.ENAMETOOLONG: "give a shorter one",
    errno.ELOOP: "its links lead round",
}


class UserError(ValueError):
    """A mistake the user can mend: the command line prints it as one paragraph, without a traceback, and
    exits 2."""

    told_by_all = False  # every process of the run raises it, so one prints it


class Interrupted(BaseException):
    """A signal ended the run after everything worth keeping was saved; the exit code is 128 + the signal's
    number.

    Not an `Exception`, so that no handler of ordinary errors swallows it on its way up."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"interrupted by signal {int(signal)}")
        self.exit_code = 128 + int(signal)


def no_room(error: BaseException) -> str | None:
    """In which way there was no room for a file, where that is among the causes of an error."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.errno in _NO_ROOM:
            return _NO_ROOM[chain.errno]
        chain = chain.__cause__ or chain.__context__
    return None


def no_place(error: BaseException) -> str | None:
    """What is wrong with the path that an error names, where it is the path's fault."""
    if not isinstance(error, OSError) or not error.filename or error.errno not in _NO_PLACE:
        return None
    return f"{error.filename}: {(error.strerror or '').lower()}; {_NO_PLACE[error.errno]}"
