"""Fetch a data set or a model from the hub, or any file by its URL.

    tutelage data download gsm8k --output_dir raw
    tutelage data download owner/name --subsets main --splits train validation --output_dir raw
    tutelage data download https://example.com/corpus.tar.gz --sha256 HEX --output_dir raw

A data set comes as parquet files, OUTPUT_DIR/owner_name/SUBSET/SPLIT/; with --files its own, as its authors
laid them out. Stopped on the way, the same command goes on where it was. Files are checked against the hub's
checksums, a URL's against --sha256. HF_TOKEN opens what asks for a token.
Short names: dolly, alpaca, squad, gsm8k, ai2_arc, hellaswag, winogrande, mmlu, truthful_qa.
"""

from __future__ import annotations

import json
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tutelage.errors import UserError
from tutelage.recipes.saying import say

if TYPE_CHECKING:
    from tutelage.data.hub import RemoteFile, Repository

RECORD = ".downloaded"  # which commit a directory holds; no name that a folder of data is searched for


@dataclass(frozen=True, kw_only=True, slots=True)
class DownloadConfig:
    name: str  # a short name, an id of the hub, or a URL
    output_dir: Path = Path("data")
    repo: Literal["dataset", "model"] = "dataset"  # what an id of the hub is of
    subsets: tuple[str, ...] = ()  # of a data set, main say; default: those usual of a short name, else all
    splits: tuple[str, ...] = ()  # of a data set, train say; default: all
    files: tuple[str, ...] = ()  # instead: the repository's own files whose paths are like these, data/*.json
    revision: str | None = None  # a branch, tag or commit of the repository's own files; default main
    sha256: str | None = None  # of the file at a URL

    def __post_init__(self) -> None:
        problems = []
        url = self.name.startswith(("https://", "http://"))
        if self.sha256 is not None and not url:
            problems.append("sha256 is for a URL; files of the hub are checked against its own")
        if self.sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", self.sha256):
            problems.append(f"sha256 is {self.sha256}, must be 64 hexadecimal digits")
        if url and (self.subsets or self.splits or self.files or self.revision or self.repo == "model"):
            problems.append("repo, subsets, splits, files and revision are of the hub, and this is a URL")
        if (self.subsets or self.splits) and (self.files or self.revision or self.repo == "model"):
            problems.append("subsets and splits are of converted data sets; files and revision take others")
        if problems:
            raise UserError("\n  ".join(problems))


def run(config: DownloadConfig) -> None:
    """Fetch what was asked for, and name it."""
    if config.name.startswith(("https://", "http://")):
        _fetch_url(config)
    else:
        _fetch_repository(config)


def _fetch_url(config: DownloadConfig) -> None:
    from tutelage.data.download import Expected, download
    from tutelage.report.progress import ByteBar

    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(config.name).path)).name
    if not name:
        raise UserError(f"{config.name} names no file")
    path = config.output_dir / name
    _say_if_there(path)
    with ByteBar("downloading") as bar:
        download(config.name, path, bar.update, expected=Expected(sha256=config.sha256))
    print(path)


def _fetch_repository(config: DownloadConfig) -> None:
    from tutelage.data.hub import look

    name, subsets = _resolved(config)
    repository = look(name, config.repo, _revision(config))
    if config.files:
        chosen = repository.matching(config.files)
    elif config.repo == "model":
        chosen = repository.model_files()
    elif config.revision is not None:
        chosen = repository.files
    else:
        chosen = repository.subset(subsets, config.splits)
    directory = config.output_dir / name.replace("/", "_")
    _claim(directory, repository)
    _fetch_files(chosen, directory)
    print(directory)


def _resolved(config: DownloadConfig) -> tuple[str, tuple[str, ...]]:
    """The id of the repository, and the subsets of it."""
    from difflib import get_close_matches

    from tutelage.data.hub import HUB_ID, SHORT_NAMES

    if short := SHORT_NAMES.get(config.name):
        whole = config.files or config.revision
        return short.repository, () if whole else config.subsets or short.subsets
    if not HUB_ID.fullmatch(config.name):
        near = get_close_matches(config.name, SHORT_NAMES, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; short names are {', '.join(SHORT_NAMES)}"
        raise UserError(
            f"{config.name} is neither a short name, an id of the hub (owner/name) nor a URL{hint}"
        )
    return config.name, config.subsets


def _revision(config: DownloadConfig) -> str:
    from tutelage.data.hub import CONVERTED

    own_files = config.files or config.revision or config.repo == "model"
    return (config.revision or "main") if own_files else CONVERTED


def _claim(directory: Path, repository: Repository) -> None:
    """Note which commit a directory holds; refuse one with files of another, which would be mixed."""
    record = directory / RECORD
    if record.exists():
        commit = json.loads(record.read_text(encoding="utf-8"))["commit"]
        if commit != repository.commit:
            raise UserError(
                f"{directory} holds {repository.name} as it was at {commit[:12]}, and what is asked for is "
                f"{repository.commit[:12]}; remove the directory, or give another --output_dir"
            )
    directory.mkdir(parents=True, exist_ok=True)
    noted = {"repository": repository.name, "commit": repository.commit}
    record.write_text(json.dumps(noted) + "\n", encoding="utf-8")


def _fetch_files(files: list[RemoteFile], directory: Path) -> None:
    """Download what is missing, under one bar."""
    from tutelage.data.download import Expected, download
    from tutelage.data.hub import headers
    from tutelage.report.progress import ByteBar

    total = sum(file.size for file in files)
    say(f"{len(files)} files, {total / 1e6:,.1f} MB")
    done = 0
    with ByteBar("downloading") as bar:
        for file in files:
            path = directory / file.path
            if not path.resolve().is_relative_to(directory.resolve()):
                raise UserError(f"the hub names a file {file.path}, which would lie outside {directory}")
            before = done
            download(
                file.url,
                path,
                lambda here, _, before=before: bar.update(before + here, total),
                expected=Expected(file.size, file.sha256, file.git_sha1),
                headers=headers(),
            )
            done += file.size
            bar.update(done, total)


def _say_if_there(path: Path) -> None:
    if path.exists():
        say(f"{path} is there already")
