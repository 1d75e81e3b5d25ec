"""Meta's own files (https://github.com/meta-llama/llama-models), and torchllms', which has their names.

consolidated.NN.pth are a model cut for as many devices: rows of queries, keys, values, gate, up and head,
columns of the two matrices back into the residual; norms are in each. Of the embedding Llama 1 and 2 cut
columns, Llama 3 rows. Rows of queries and keys are pairs, where Hugging Face's are halves.
"""

import re
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tutelage.checkpoint.meta.names import BLOCK, OLMO2, from_meta
from tutelage.checkpoint.meta.params import PARAMS, config_of
from tutelage.checkpoint.rotary import is_turned, rows_as_halves
from tutelage.checkpoint.source import EMBEDDING, HEAD, same_rows
from tutelage.checkpoint.streamed import below_each_other
from tutelage.checkpoint.torch_file.read import HeldTensor, StoredTensor, read_state
from tutelage.errors import UserError

SHARD = re.compile(r"consolidated\.(\d\d)\.pth")
_COLUMNS = ("o_proj.weight", "down_proj.weight")  # which devices have of these; of all other matrices rows


class MetaSource:
    """The tensors of such a model under Hugging Face names, whole, and in its order of rows."""

    def __init__(self, paths: list[Path]) -> None:
        where = paths[0].parent / PARAMS
        self.where = str(paths[0] if len(paths) == 1 else paths[0].parent)
        self.problems: list[str] = []
        self._shards = _shards_of(paths)
        self._join: dict[str, int | None] = {}  # along which axis a tensor is cut; None: it is not
        self.shapes = self._whole_shapes()
        tied = HEAD not in self.shapes or same_rows(self, HEAD, EMBEDDING)
        self.config = config_of(where, self.shapes, tied=tied)
        if tied:
            self.shapes.pop(HEAD, None)
        self._check_rows(paths)

    @property
    def dtype(self) -> torch.dtype:
        """That of the embedding."""
        return self._shards[0][EMBEDDING].dtype

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start..stop of a tensor, in Hugging Face's order."""
        if is_turned(name):
            return rows_as_halves(partial(self._rows, name), start, stop, self.config.head_dim)
        return self._rows(name, start, stop)

    def _rows(self, name: str, start: int, stop: int) -> Tensor:
        parts = [shard[name] for shard in self._shards]
        if self._join[name] is None:
            return parts[0].rows(start, stop)
        if self._join[name] == 1:
            return torch.cat([part.rows(start, stop) for part in parts], dim=1)
        return below_each_other([part.rows for part in parts], [part.shape[0] for part in parts])(start, stop)

    def _whole_shapes(self) -> dict[str, tuple[int, ...]]:
        first, count = self._shards[0], len(self._shards)
        if EMBEDDING not in first:
            raise UserError(
                f"{self.where} has no tok_embeddings.weight; if it holds a part, give the model first"
            )
        dim = first["model.norm.weight"].shape[0] if "model.norm.weight" in first else 0
        shapes = {}
        for name, tensor in first.items():
            shape = list(tensor.shape)
            axis = int(name.endswith(_COLUMNS))
            if name == EMBEDDING:
                axis = 0 if shape[-1] == dim else 1
            if "norm" in name or count == 1 or len(shape) <= axis:  # too flat: refused by its shape
                axis = None
            if axis is not None:
                shape[axis] *= count
            self._join[name], shapes[name] = axis, tuple(shape)
        return shapes

    def _check_rows(self, paths: list[Path]) -> None:
        """How many devices the model was cut for follows from params.json too."""
        name, count = "model.layers.0.self_attn.q_proj.weight", len(paths)
        wanted = self.config.n_heads * self.config.head_dim
        rows = self.shapes.get(name, (wanted,))[0]
        if rows != wanted and rows and wanted % rows == 0 and SHARD.fullmatch(paths[0].name):
            missing = f"consolidated.{count:02d}.pth"
            raise UserError(
                f"{paths[0].parent}: {missing} is missing: params.json says {wanted} rows of queries, in "
                f"{'the file' if count == 1 else f'the {count} files'} there are {rows}"
            )


def _shards_of(paths: list[Path]) -> list[dict[str, StoredTensor | HeldTensor]]:
    """By Hugging Face names; what differs from device to device, and should not, is refused."""
    shards = [read_named(path) for path in paths]
    for path, shard in zip(paths[1:], shards[1:], strict=True):
        if odd := sorted(shard.keys() ^ shards[0].keys()):
            here, there = (path, paths[0]) if odd[0] in shard else (paths[0], path)
            raise UserError(f"{here} holds {odd[0]}, and {there.name} does not; they are not of one model")
        for name, tensor in shard.items():
            first = shards[0][name]
            if (tensor.shape, tensor.dtype) != (first.shape, first.dtype):
                raise UserError(
                    f"{path}: {name} is {_kind(tensor)}, in {paths[0].name} {_kind(first)}; "
                    "they are not of one model"
                )
            if "norm" in name and not torch.equal(tensor.whole(), first.whole()):
                raise UserError(
                    f"{path}: {name} has other values than in {paths[0].name}; they are not of one model"
                )
    return shards


def read_named(path: Path) -> dict[str, StoredTensor | HeldTensor]:
    """The tensors of one .pth by Hugging Face names, in Meta's order of rows, without rotary frequencies."""
    state = read_state(path)
    if any("lora_" in name for name in state):
        raise UserError(f"{path} holds LoRA weights, and no lora_args.json beside it says how to merge them")
    block = OLMO2 if any(name.endswith("attention.q_norm.weight") for name in state) else BLOCK
    named = {}
    for name, tensor in state.items():
        if name.endswith("rope.freqs"):
            continue
        ours = from_meta(name, block=block)
        if ours is None:
            raise UserError(f"{path} holds {name}, which is no part of a Llama")
        named[ours] = tensor
    return named


def _kind(tensor: StoredTensor | HeldTensor) -> str:
    return f"{'x'.join(map(str, tensor.shape))} {str(tensor.dtype).removeprefix('torch.')}"
