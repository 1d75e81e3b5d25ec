"""Model directories as Hugging Face libraries write and read them; other programs' files are read as one."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tutelage.checkpoint.adapter import StoredAdapter, fingerprint, merged
from tutelage.checkpoint.gguf import GGUFSource, gguf_config
from tutelage.checkpoint.hub import local_path
from tutelage.checkpoint.instructllama import InstructLlamaSource, find_instructllama
from tutelage.checkpoint.json_file import read_object
from tutelage.checkpoint.llama2c import Llama2cSource, find_llama2c
from tutelage.checkpoint.note import read_note
from tutelage.checkpoint.peft import CONFIG as ADAPTER_CONFIG
from tutelage.checkpoint.peft import read_peft
from tutelage.checkpoint.shards import INDEX, SINGLE, Shards
from tutelage.checkpoint.source import Source, check, fill, parameter_shapes
from tutelage.checkpoint.text_part import text_values, text_weights
from tutelage.checkpoint.tokenizer import find_gguf
from tutelage.checkpoint.torchllms_lora import find_torchllms, read_torchllms
from tutelage.errors import UserError
from tutelage.model.config import ModelConfig
from tutelage.model.families import FAMILIES
from tutelage.model.quantize import Quantization
from tutelage.model.transformer import Transformer


def load_config(path: str | Path) -> ModelConfig:
    """The shape of the model at `path` (a directory, a model file or a hub id); no weights are read."""
    path = local_path(path)
    if found := find_llama2c(path):
        return Llama2cSource(found).config
    if found := find_instructllama(path):
        return InstructLlamaSource(found).config
    if gguf := find_gguf(path):
        return gguf_config(gguf)
    return _config_of_directory(path)


def read_config(where: Path) -> ModelConfig:
    """The shape that a config.json describes, wherever it lies and whatever it is called."""
    values = read_object(where)
    if "auto_map" in values and not _is_plain(values):
        raise UserError(
            f"{where}: auto_map asks to run Python code that came with the model, which is never done; "
            "if the model is a plain one of its model_type, remove auto_map"
        )
    return ModelConfig.from_hf(text_values(values), where=str(where))


def _is_plain(values: dict[str, Any]) -> bool:
    """Whether auto_map names only code that transformers' class of the family computes too."""
    family, code = FAMILIES.get(str(values.get("model_type"))), values["auto_map"]
    if family is None or not isinstance(code, dict):
        return False
    return all(name in family.code for kind, name in code.items() if kind != "AutoTokenizer")


def check_files(path: str | Path) -> None:
    """Refuse weights that do not fit the config, by their headers alone and naming everything at once."""
    _open(local_path(path))


def load_model(
    path: str | Path,
    *,
    dtype: torch.dtype | Callable[[str], torch.dtype] | None = None,
    device: torch.device | str = "cpu",
    adapters: Sequence[str | Path] = (),
    force: bool = False,
    quantization: Quantization | None = None,
    as_trained: bool = True,
) -> Transformer:
    """The model at `path` (a directory, a model file or a hub id), in `dtype` or that of most of its weights.

    `adapters` are merged into it in turn, each refused on a model that it was not trained on, unless
    `force`d. `dtype` may differ by name. Peak memory is the weights and some tens of megabytes: they
    are read piece by piece into their place; quantized, the small weights and one matrix more. An
    adapter that was trained on quantized weights goes into what they stand for, unless not `as_trained`.
    """
    config, source = _open(local_path(path), adapters, force=force, as_trained=as_trained)
    return fill(config, source, dtype or source.dtype, device, quantization)


def config_of(path: str | Path, adapters: Sequence[str | Path]) -> ModelConfig:
    """The shape of a model with these adapters in it."""
    return _open(local_path(path), adapters, force=True)[0]


def stored_dtype(path: str | Path) -> torch.dtype:
    """The dtype of most of the weights of the model at `path`."""
    return _open(local_path(path))[1].dtype


def fingerprint_of(path: str | Path, adapters: Sequence[str | Path] = ()) -> str:
    """What tells the model at `path`, with these adapters in it, from others of its shape."""
    return fingerprint(*_open(local_path(path), adapters, force=True))


def read_adapter(path: str | Path, config: ModelConfig) -> StoredAdapter:
    """The adapter at `path`: a PEFT directory, or torchllms' .pth beside its lora_args.json."""
    path = local_path(path)
    torchllms = None if (path / ADAPTER_CONFIG).exists() else find_torchllms(path)
    return read_torchllms(torchllms, config) if torchllms else read_peft(path)


def is_adapter(path: Path) -> bool:
    """Whether an adapter lies at `path` and not a model."""
    return (path / ADAPTER_CONFIG).exists() or find_torchllms(path) is not None


def _open(
    path: Path,
    adapters: Sequence[str | Path] = (),
    *,
    force: bool = False,
    as_trained: bool = True,
) -> tuple[ModelConfig, Source]:
    """Config and weights of `path`, found to fit, with adapters in them."""
    config, source = _open_base(path)
    for adapter in adapters:
        adapter = local_path(adapter)
        rounding = read_note(adapter).rounding if as_trained else None
        stored = read_adapter(adapter, config)
        config, source = merged(config, source, stored, force=force, trained_on=rounding)
    return config, source


def _open_base(path: Path) -> tuple[ModelConfig, Source]:
    if found := find_llama2c(path):
        source = Llama2cSource(found)
        config = source.config
    elif found := find_instructllama(path):
        source = InstructLlamaSource(found)
        config = source.config
    elif gguf := find_gguf(path):
        config, source = gguf_config(gguf), GGUFSource(gguf)
    else:
        config, source = _config_of_directory(path), text_weights(Shards(path))
    check(config, source)
    return config, source


def _config_of_directory(directory: Path) -> ModelConfig:
    where = directory / "config.json"
    if not where.exists():
        raise UserError(f"{directory} is not a model directory: it has no config.json")
    config = read_config(where)
    generation = directory / "generation_config.json"
    eos = read_object(generation).get("eos_token_id") if generation.exists() else None
    if eos is None:
        return config
    return replace(config, eos=tuple(eos) if isinstance(eos, list) else (eos,))  # what generate() stops at


def save_model(
    model: Transformer | Mapping[str, Tensor],
    config: ModelConfig,
    directory: str | Path,
    *,
    dtype: torch.dtype,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Write a directory that transformers, vLLM and llama.cpp load; other files in it are left alone.

    Everything is written aside, then moved in, config.json last: where it is present, the model is whole.
    """
    directory = Path(directory)
    state = model.state_dict() if isinstance(model, Transformer) else model
    wanted, found = parameter_shapes(config), {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert found == wanted, f"not the weights of this config: {sorted(found.items() ^ wanted.items())[:4]}"
    size = sum(tensor.numel() for tensor in state.values()) * dtype.itemsize
    aside = directory / ".partial"
    with _room_for(size, directory):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        _write_weights(state, aside, dtype, shard_bytes)
        config = replace(config, dtype=str(dtype).removeprefix("torch."))
        _write_json(aside / "generation_config.json", _generation_config(config))
        _write_json(aside / "config.json", config.to_hf())
        for path in aside.iterdir():
            shutil.copymode(aside / "config.json", path)  # safetensors lets nobody but the owner read
            _sync(path)
        _move_in(aside, directory)


def _write_weights(
    state: Mapping[str, Tensor], directory: Path, dtype: torch.dtype, shard_bytes: int
) -> None:
    """One shard after the other, so that at most one is held converted."""
    shards = _shards(state, dtype.itemsize, shard_bytes)
    names = [SINGLE] if len(shards) == 1 else _shard_names(len(shards))
    for name, shard in zip(names, shards, strict=True):
        tensors = {key: state[key].detach().to("cpu", dtype).contiguous() for key in shard}
        save_file(tensors, directory / name, metadata={"format": "pt"})
    if len(shards) > 1:
        size = sum(tensor.numel() for tensor in state.values()) * dtype.itemsize
        placed = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        _write_json(directory / INDEX, {"metadata": {"total_size": size}, "weight_map": placed})


def _shards(state: Mapping[str, Tensor], itemsize: int, limit: int) -> list[list[str]]:
    """Names in order, cut where a shard would exceed `limit` bytes."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in state.items():
        size = tensor.numel() * itemsize
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _shard_names(count: int) -> list[str]:
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def _generation_config(config: ModelConfig) -> dict[str, Any]:
    eos = config.eos[0] if len(config.eos) == 1 else list(config.eos) or None
    values = {"bos_token_id": config.bos, "eos_token_id": eos, "pad_token_id": config.pad}
    return {key: value for key, value in values.items() if value is not None}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _move_in(aside: Path, directory: Path) -> None:
    """Replace the old model in `directory` by the one in `aside`: the old config.json goes first."""
    new = {path.name for path in aside.iterdir()}
    (directory / "config.json").unlink(missing_ok=True)
    for path in [*directory.glob("model*.safetensors"), directory / INDEX]:
        if path.name not in new:
            path.unlink(missing_ok=True)
    for name in sorted(new - {"config.json"}):
        os.replace(aside / name, directory / name)
    _sync(directory)
    os.replace(aside / "config.json", directory / "config.json")
    _sync(directory)
    aside.rmdir()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _room_for(size: int, directory: Path) -> Iterator[None]:
    """Say it in plain words, before writing or after, when the disk cannot hold `size` bytes more."""
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if free < size:
        raise UserError(
            f"{directory}: the model takes {_readable(size)} and the disk has {_readable(free)} left; "
            "free some or choose another place"
        )
    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(directory / ".partial", ignore_errors=True)
        if getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC}" in str(error):
            raise UserError(f"{directory}: the disk became full while the model was written") from error
        raise


def _readable(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
