"""Where a model lies: a path is taken as it is, a hub id is downloaded, and nothing in it is ever run."""

import re
from pathlib import Path

from tutelage.errors import UserError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model"]
_WANTED += ["adapter_model.bin"]  # of older adapters; read as tensors, never run
_UNWANTED = ["*/*", "consolidated*"]  # other frameworks' folders, and Mistral's second copy of the weights


def local_path(name: str | Path) -> Path:
    """The directory or file called `name`; a name like `org/model` that is neither comes from the hub."""
    path = Path(name).expanduser()
    if path.exists():
        return path
    if not _HUB_ID.fullmatch(str(name)):
        raise UserError(
            f"{name} does not exist; give a model directory, a model file (.gguf, .bin, .pt) "
            "or a hub id like org/name"
        )
    return _download(str(name))


def config_path(name: str) -> Path:
    """The config.json of the model called `name`, or the model here of that name; downloads no weights."""
    path = Path(name).expanduser()
    if path.exists() or not _HUB_ID.fullmatch(name):
        return local_path(name)
    return _download(name, wanted=["config.json"]) / "config.json"


def _download(name: str, wanted: list[str] = _WANTED) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=_UNWANTED))
    except GatedRepoError as error:
        raise UserError(
            f"{name} is gated: accept its terms on its page at the hub and log in with `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(f"{name} is neither a folder here nor a model on the hub") from error
    except OSError as error:  # the hub's own errors and those of the connection are both of this kind
        raise UserError(
            f"{name} is no folder here and could not be downloaded from the hub; "
            f"check the connection (and HF_HUB_OFFLINE), or give a local directory. {_first_line(error)}"
        ) from error


def _first_line(error: OSError) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
