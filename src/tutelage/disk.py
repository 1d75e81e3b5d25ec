"""What has to be on the disk before anything relies on it."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Return when a file, or what a directory lists, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
