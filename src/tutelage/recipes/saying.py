"""Lines for the person who watches, which go to standard error: standard output belongs to results."""

import sys

from tutelage import dist


def say(text: str) -> None:
    """Print a line, from one process of several."""
    if dist.rank() == 0:
        print(text, file=sys.stderr, flush=True)
