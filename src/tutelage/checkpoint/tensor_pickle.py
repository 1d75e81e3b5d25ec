"""Pickles of tensors by name (torch.save), read without running what else a pickle may hold."""

from pathlib import Path

import torch
from torch import Tensor

from tutelage.errors import UserError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a file of torch.save, by name; they stay on disk until they are used."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # of pickle, zip and torch, of many kinds
        raise UserError(f"{path} is damaged, or holds more than tensors, which is never loaded") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, not tensors by name")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{path} holds a {type(value).__name__} as {name!r}, not tensors by name")
    return found
