"""The weights of a model directory, single or sharded, as one source: safetensors, or pytorch_model.bin."""

from collections import Counter
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tutelage.checkpoint.json_file import read_object
from tutelage.checkpoint.torch_file.read import HeldTensor, StoredTensor, read_state
from tutelage.errors import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class Shards:
    """Tensors in such files: shapes from the headers, rows when asked."""

    def __init__(self, directory: Path):
        self.where = str(directory)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.problems: list[str] = []
        self._files: dict[str, Path] = {}  # by tensor
        self._pickled: dict[str, StoredTensor | HeldTensor] = {}
        self._elements: Counter[str] = Counter()  # by dtype
        self._unreadable: set[str] = set()  # file names
        paths, placed = _weight_files(directory)
        self._index = PICKLED_INDEX if paths[0].suffix == ".bin" else INDEX
        for path in paths:
            self._read_header(path)
        self._compare_index(placed)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that most of the elements are stored in."""
        return _DTYPES[self._elements.most_common(1)[0][0]]

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start..stop of a tensor.

        The file is opened anew each time: pages read through a mapping stay in memory until it closes, so one
        mapping for a whole file would double the memory that loading takes.
        """
        if name in self._pickled:
            return self._pickled[name].rows(start, stop)
        with safe_open(self._files[name], framework="pt") as file:
            return file.get_slice(name)[start:stop]

    def _read_header(self, path: Path) -> None:
        if not path.exists():
            self.problems.append(f"{path.name} is missing")
            self._unreadable.add(path.name)
            return
        if path.suffix == ".bin":
            self._read_pickle(path)
            return
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    stored = file.get_slice(name)
                    self._add(name, tuple(stored.get_shape()), stored.get_dtype(), path)
        except (SafetensorError, OSError) as error:
            self._unreadable.add(path.name)
            self.problems.append(f"{path.name} is truncated or not a safetensors file ({error})")

    def _read_pickle(self, path: Path) -> None:
        try:
            state = read_state(path)
        except UserError as error:
            self._unreadable.add(path.name)
            self.problems.append(str(error))
            return
        kinds = {dtype: kind for kind, dtype in _DTYPES.items()}
        for name, tensor in state.items():
            self._add(name, tensor.shape, kinds.get(tensor.dtype, str(tensor.dtype)), path)
            self._pickled[name] = tensor

    def _add(self, name: str, shape: tuple[int, ...], dtype: str, path: Path) -> None:
        if name in self._files:
            self.problems.append(f"{name} is both in {self._files[name].name} and in {path.name}")
        if dtype not in _DTYPES and not name.endswith("rotary_emb.inv_freq"):
            self.problems.append(f"{name} is stored as {dtype}; supported are {', '.join(_DTYPES)}")
        self.shapes[name], self._files[name] = shape, path
        if dtype in _DTYPES:
            self._elements[dtype] += prod(shape)

    def _compare_index(self, placed: dict[str, str]) -> None:
        """The index must say of every tensor what the file that it names really holds."""
        for name, file in placed.items():
            held = name in self._files and self._files[name].name == file
            if not held and file not in self._unreadable:
                self.problems.append(f"{self._index} puts {name} in {file}, which does not hold it")


def _weight_files(directory: Path) -> tuple[list[Path], dict[str, str]]:
    """The files in the order that transformers looks for them, and where an index puts each tensor."""
    if (directory / SINGLE).exists():
        return [directory / SINGLE], {}
    if (index := directory / INDEX).exists():
        placed = _weight_map(index)
        return [directory / name for name in sorted(set(placed.values()))], placed
    found = sorted(directory.glob("*.safetensors"))
    if not found and (directory / PICKLED).exists():
        return [directory / PICKLED], {}
    if not found and (index := directory / PICKLED_INDEX).exists():
        placed = _weight_map(index)
        return [directory / name for name in sorted(set(placed.values()))], placed
    if (directory / "adapter_config.json").exists():
        raise UserError(
            f"{directory} is an adapter, not a model; give the model it belongs to first, then the adapter"
        )
    if len(found) == 1:
        return found, {}
    if found:
        raise UserError(
            f"{directory} holds {len(found)} safetensors files, but no {INDEX} that says what they are"
        )
    pickles = [path.name for pattern in _PICKLES for path in sorted(directory.glob(pattern))]
    if pickles:
        raise UserError(
            f"{directory} holds its weights only as {pickles[0]}, a pickle, which can run code when it is "
            "read; if you trust it, write safetensors with transformers: "
            "AutoModelForCausalLM.from_pretrained(DIRECTORY).save_pretrained(NEW)"
        )
    raise UserError(f"{directory} holds no weights; wanted {SINGLE} or {INDEX} with the files it names")


def _weight_map(index: Path) -> dict[str, str]:
    placed = read_object(index).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
        raise UserError(f"{index} is not an index of safetensors files: it has no weight_map of names")
    if not placed:
        raise UserError(f"{index} is not an index of safetensors files: its weight_map is empty")
    outside = [name for name in placed.values() if Path(name).name != name]
    if outside:
        raise UserError(f"{index} names {outside[0]}, which is not a file of its own directory")
    return placed
