"""What may stop a command without being a bug of ours, and the exit code each has."""


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
