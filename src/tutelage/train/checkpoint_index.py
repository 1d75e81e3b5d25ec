"""The list of what a checkpoint holds, which torch.distributed.checkpoint keeps as a pickle and would run."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata

from tutelage.errors import UserError

_DCP = "torch.distributed.checkpoint"
_ALLOWED = {  # what torch writes there, by exact name: a module has others, os.system among them
    *((f"{_DCP}.metadata", name) for name in ("Metadata", "TensorStorageMetadata", "TensorProperties")),
    *((f"{_DCP}.metadata", name) for name in ("ChunkStorageMetadata", "MetadataIndex", "StorageMeta")),
    *((f"{_DCP}.metadata", name) for name in ("_MEM_FORMAT_ENCODING", "BytesStorageMetadata")),
    (f"{_DCP}.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED or (
            module == "torch" and isinstance(vars(torch).get(name), torch.dtype)
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_index(checkpoint: Path) -> Metadata:
    """The list, of which nothing is run; what is no such list is refused."""
    try:
        with (checkpoint / ".metadata").open("rb") as file:
            found = _Unpickler(file).load()
    except Exception as error:  # of what a pickle may hold, of many kinds
        raise damaged(checkpoint) from error
    if not isinstance(found, Metadata) or not isinstance(vars(found).get("state_dict_metadata"), dict):
        raise damaged(checkpoint)
    return found


def damaged(checkpoint: Path) -> UserError:
    """What a person is told of a checkpoint that cannot be read."""
    return UserError(
        f"{checkpoint} is damaged and cannot be read; remove it and run the same command with "
        "--resume, which goes on from the one before if there is one"
    )
