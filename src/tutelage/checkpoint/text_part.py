"""The language model inside one that sees images too (Gemma 3 from 4B), read as a model of its own.

The image part is left out, and so it is of what is written: to transformers that is another, smaller model.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tutelage.checkpoint.source import Source

_TEXT = {"gemma3": "gemma3_text"}  # model_type of the whole, and of its language model
_SHARED = ("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype")
_INSIDE = {"language_model.": "", "model.language_model.": "model."}  # older files, and newer ones
_IMAGES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


def text_values(values: dict[str, Any]) -> dict[str, Any]:
    """What a config.json says of the language model; one that is nothing else stays as it is."""
    inside, kind = values.get("text_config"), _TEXT.get(str(values.get("model_type")))
    if kind is None or not isinstance(inside, Mapping):
        return values
    shared = {key: values[key] for key in _SHARED if values.get(key) is not None}
    return {**shared, **inside, "model_type": kind}


def text_weights(source: Source) -> Source:
    """The weights of the language model, under the names that it has alone."""
    is_whole = any(name.startswith(tuple(_INSIDE)) for name in source.shapes)
    return _TextPart(source) if is_whole else source


class _TextPart:
    def __init__(self, whole: Source):
        self._whole = whole
        self._stored = {_alone(name): name for name in whole.shapes if not name.startswith(_IMAGES)}
        self.where, self.problems = whole.where, whole.problems
        self.shapes = {name: whole.shapes[stored] for name, stored in self._stored.items()}

    @property
    def dtype(self) -> torch.dtype:
        """Of most of the weights of the whole."""
        return self._whole.dtype

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start..stop of a tensor."""
        return self._whole.rows(self._stored[name], start, stop)


def _alone(name: str) -> str:
    """`language_model.model.norm.weight` -> `model.norm.weight`"""
    prefix = next((prefix for prefix in _INSIDE if name.startswith(prefix)), "")
    return _INSIDE.get(prefix, "") + name.removeprefix(prefix)
