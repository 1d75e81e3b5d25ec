"""What a repository of the hub holds, and which of its files a person wants: names, sizes and checksums.

Data sets are taken as the hub converts them, parquet files under SUBSET/SPLIT/, so that every one looks alike
and no code of its authors runs; or as its authors laid them out. (The branch refs/convert/parquet:
https://huggingface.co/docs/dataset-viewer/parquet.)"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Literal

from tutelage.errors import UserError

CONVERTED = "refs/convert/parquet"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_OTHER_WEIGHTS = ("*/*", "*.h5", "*.msgpack", "*.onnx", "*.tflite", "*.ot", "*.ckpt")
_PICKLED_WEIGHTS = ("*.bin", "*.pth", "*.pt", "consolidated*")


@dataclass(frozen=True, slots=True)
class ShortName:
    """A data set that has a name of its own here, and the subsets of it that are usual."""

    repository: str
    subsets: tuple[str, ...] = ()


SHORT_NAMES = {
    "dolly": ShortName("databricks/databricks-dolly-15k"),
    "alpaca": ShortName("yahma/alpaca-cleaned"),
    "squad": ShortName("rajpurkar/squad_v2"),
    "gsm8k": ShortName("openai/gsm8k", ("main", "socratic")),
    "ai2_arc": ShortName("allenai/ai2_arc", ("ARC-Challenge", "ARC-Easy")),
    "hellaswag": ShortName("Rowan/hellaswag"),
    "winogrande": ShortName("allenai/winogrande", ("winogrande_xl",)),
    "mmlu": ShortName("cais/mmlu", ("all",)),
    "truthful_qa": ShortName("truthfulqa/truthful_qa", ("generation", "multiple_choice")),
}


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on the hub."""

    path: str
    size: int
    url: str
    sha256: str | None  # of large files
    git_sha1: str | None  # of small ones: of the blob that git keeps


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository as it was at one commit."""

    name: str
    commit: str
    files: list[RemoteFile]

    def subset(self, subsets: Sequence[str], splits: Sequence[str]) -> list[RemoteFile]:
        """The files of these subsets and splits, all where none is named; of a converted data set."""
        laid_out = [
            (file, file.path.split("/")[0], _split(file.path.split("/")[1]))
            for file in self.files
            if file.path.count("/") == 2
        ]
        there = {"subset": {each[1] for each in laid_out}, "split": {each[2] for each in laid_out}}
        for kind, wanted in (("subset", subsets), ("split", splits)):
            if unknown := [name for name in wanted if name not in there[kind]]:
                raise UserError(
                    f"{self.name} has no {kind} {', '.join(unknown)}; it has {', '.join(sorted(there[kind]))}"
                )
        chosen = [
            file
            for file, subset, split in laid_out
            if (not subsets or subset in subsets) and (not splits or split in splits)
        ]
        if not chosen:
            raise UserError(f"{self.name} has no file of the subsets and splits that were asked for together")
        return chosen

    def matching(self, patterns: Sequence[str]) -> list[RemoteFile]:
        """The files whose paths are like one of `patterns`."""
        chosen = [file for file in self.files if any(fnmatch(file.path, pattern) for pattern in patterns)]
        if not chosen:
            some = ", ".join(file.path for file in self.files[:5])
            raise UserError(f"{self.name} has no file like {', '.join(patterns)}; it has {some}, ...")
        return chosen

    def model_files(self) -> list[RemoteFile]:
        """The files of a model that can be loaded here, weights as safetensors where there are any."""
        safe = any(file.path.endswith(".safetensors") for file in self.files)
        left_out = _OTHER_WEIGHTS + (_PICKLED_WEIGHTS if safe else ())
        return [file for file in self.files if not any(fnmatch(file.path, pattern) for pattern in left_out)]


def look(name: str, kind: Literal["dataset", "model"], revision: str) -> Repository:
    """The repository at the newest commit of `revision`; HF_ENDPOINT and HF_TOKEN are honoured."""
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]  of the library that it asks with
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()
    try:
        commit = api.repo_info(name, repo_type=kind, revision=revision).sha or revision
        entries = list(api.list_repo_tree(name, repo_type=kind, revision=commit, recursive=True))
    except GatedRepoError as error:
        raise UserError(
            f"{name} is gated: agree to its terms on its page on the hub, and log in with `hf auth login` or "
            "HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        other = "a model, say so with --repo model" if kind == "dataset" else "a data set, leave out --repo"
        raise UserError(
            f"the hub has no {kind} {name}, or it is private (then set HF_TOKEN); if it is {other}"
        ) from error
    except RevisionNotFoundError as error:
        if revision == CONVERTED:
            raise UserError(
                f"the hub has not converted {name} to parquet; take its own files, with --files '*' say"
            ) from error
        raise UserError(f"{name} has no revision {revision}") from error
    except HFValidationError as error:
        raise UserError(f"{name!r} is no id of the hub: {error}") from error
    except (HTTPError, OSError) as error:
        raise UserError(f"the hub cannot be reached for {name}: {error}; check the connection") from error
    files = [
        RemoteFile(
            entry.path,
            entry.size,
            hf_hub_url(name, entry.path, repo_type=kind, revision=commit, endpoint=api.endpoint),
            entry.lfs.sha256 if entry.lfs else None,
            None if entry.lfs else entry.blob_id,
        )
        for entry in entries
        if isinstance(entry, RepoFile)
    ]
    return Repository(name, commit, files)


def headers() -> dict[str, str]:
    """What the hub wants to be told with every request, a person's token among it."""
    from huggingface_hub.utils import build_hf_headers

    return build_hf_headers(library_name="tutelage")


def _split(directory: str) -> str:
    """The split of a folder of converted files: of a large data set only a part may be converted."""
    return directory.removeprefix("partial-")
