"""Data sets of the `datasets` library, saved or on the hub: written out once as JSON lines, read as such."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tutelage.data.tables import FORMAT, arrow_rows, write_once, write_rows
from tutelage.errors import UserError

NO_SPLIT = "-"  # the word for a path that has none, where others do
_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?")
_FILE = re.compile(r"\.(jsonl|ndjson|txt|parquet|csv|tsv|json)(\.gz|\.zst)?$", re.IGNORECASE)


def is_data_set(path: str) -> bool:
    """Whether a path is a data set of the library: `local:DIR`, a directory that it saved, or a hub id."""
    return path.startswith("local:") or is_hub_id(path) or _is_saved(path)


def written_rows(path: str, split: str, cache_dir: Path, log: Callable[[str], None], flag: str) -> Path:
    """The rows of a data set as JSON lines in the cache; `flag` is the flag that the split came from."""
    data = load(path if path.startswith("local:") or is_hub_id(path) else f"local:{path}", split, flag)
    name = re.sub(r"\W+", "-", f"{path}-{data._fingerprint}").strip("-")
    return write_once(
        place := cache_dir / "datasets" / f"{name}-{FORMAT}.jsonl",
        lambda file: write_rows(arrow_rows(data, path), file),
        lambda: log(f"{path}: writing {len(data):,} rows to {place}"),
    )


def is_hub_id(path: str) -> bool:
    """Whether a path is a data set's name on the hub, `OWNER/NAME` or `OWNER/NAME:CONFIG`."""
    return bool(_HUB_ID.fullmatch(path)) and not Path(path).exists() and not _FILE.search(path)


def _is_saved(path: str) -> bool:
    """Whether a path is a directory that save_to_disk wrote."""
    return any((Path(path) / name).is_file() for name in ("state.json", "dataset_dict.json"))


def load(path: str, split: str, flag: str) -> Any:
    """The data set that `local:DIR` or a hub id names; of several splits, the one that was chosen."""
    data = _saved(Path(path[6:])) if path.startswith("local:") else _from_hub(path, split, flag)
    if isinstance(data, dict):
        if split not in data:
            raise UserError(f"{path} has the splits {', '.join(data)}; choose with {flag}")
        return data[split]
    if path.startswith("local:") and split != NO_SPLIT and str(data.split or split) != split:
        raise UserError(f"{path} has no split {split}: it is {data.split} alone; write {NO_SPLIT} for it")
    return data


def _saved(directory: Path) -> Any:
    from datasets import load_from_disk
    from pyarrow import ArrowException

    try:
        return load_from_disk(str(directory.expanduser()))
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"{directory} is not a data set that save_to_disk wrote: {error}") from error
    except (OSError, LookupError, TypeError, AttributeError, ArrowException) as error:  # of JSON that is else
        raise UserError(
            f"{directory} is damaged, one of its files is not as save_to_disk wrote it: {error}"
        ) from error


def _from_hub(name: str, split: str, flag: str) -> Any:
    from datasets import load_dataset
    from huggingface_hub.errors import (
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]  of the library that it asks with
    )

    if split == NO_SPLIT:
        raise UserError(
            f"{name} looks like a data set of the hub, which needs a split: give {flag}, train say"
        )
    found = _HUB_ID.fullmatch(name)
    assert found
    try:
        return load_dataset(found[1], found[2], split=split)
    except (HTTPError, OSError, ValueError) as error:  # not found, out of reach, no such config or split
        raise UserError(f"{name}, split {split}, cannot be had from the hub: {error}") from error
