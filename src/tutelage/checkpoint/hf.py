"""Model directories as Hugging Face libraries write and read them; other programs' files are read as one."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.checkpoint.adapter import StoredAdapter, fingerprint, merged
from tutelage.checkpoint.aside import Beside, written_aside
from tutelage.checkpoint.config_values import check_values
from tutelage.checkpoint.generation_config import with_generation_config, write_generation_config
from tutelage.checkpoint.gguf.model import GGUFSource, gguf_config
from tutelage.checkpoint.hub import local_path
from tutelage.checkpoint.json_file import read_object
from tutelage.checkpoint.litgpt.model import LitGPTSource, find_litgpt
from tutelage.checkpoint.llama2c.model import Llama2cSource, find_llama2c
from tutelage.checkpoint.note import read_note
from tutelage.checkpoint.peft import CONFIG as ADAPTER_CONFIG
from tutelage.checkpoint.peft import read_peft
from tutelage.checkpoint.pth import find_pth, open_pth
from tutelage.checkpoint.safetensors_file import write_shards
from tutelage.checkpoint.shards import INDEX, Shards
from tutelage.checkpoint.source import Source, check, fill, parameter_shapes
from tutelage.checkpoint.streamed import Held, streamed
from tutelage.checkpoint.text_part import text_values, text_weights
from tutelage.checkpoint.tokenizer import find_gguf
from tutelage.checkpoint.torchllms_lora import find_torchllms, is_part, read_torchllms
from tutelage.errors import UserError
from tutelage.model.config import ModelConfig
from tutelage.model.families import FAMILIES
from tutelage.model.quantize import Quantization
from tutelage.model.transformer import Transformer

SHARD_BYTES = 5 * 10**9  # of a file, what transformers took for years


def load_config(path: str | Path) -> ModelConfig:
    """The shape of the model at `path` (a directory, a model file or a hub id); no weights are read."""
    path = local_path(path)
    if found := find_llama2c(path):
        return Llama2cSource(found).config
    if found := find_litgpt(path):
        return LitGPTSource(found).config
    if found := find_pth(path):
        return open_pth(found).config
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
    values = text_values(values)
    check_values(values, where)
    try:
        return ModelConfig.from_hf(values, where=str(where))
    except UserError as error:
        raise UserError(f"{where}: {str(error).removeprefix(f'{where}: ')}") from error
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        raise UserError(f"{where} has a value of the wrong kind: {error}") from error


def _is_plain(values: dict[str, Any]) -> bool:
    """Whether auto_map names only code that transformers' class of the family computes too."""
    family, code = FAMILIES.get(str(values.get("model_type"))), values["auto_map"]
    if family is None or not isinstance(code, dict):
        return False
    return all(name in family.code for kind, name in code.items() if kind != "AutoTokenizer")


def check_files(path: str | Path) -> None:
    """Refuse weights that do not fit the config, by their headers alone and naming everything at once."""
    open_source(path)


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
    config, source = open_source(path, adapters, force=force, as_trained=as_trained)
    return fill(config, source, dtype or source.dtype, device, quantization)


def config_of(path: str | Path, adapters: Sequence[str | Path]) -> ModelConfig:
    """The shape of a model with these adapters in it."""
    return open_source(path, adapters, force=True)[0]


def stored_dtype(path: str | Path) -> torch.dtype:
    """The dtype of most of the weights of the model at `path`."""
    return open_source(path)[1].dtype


def fingerprint_of(path: str | Path, adapters: Sequence[str | Path] = ()) -> str:
    """What tells the model at `path`, with these adapters in it, from others of its shape."""
    return fingerprint(*open_source(path, adapters, force=True))


def read_adapter(path: str | Path, config: ModelConfig) -> StoredAdapter:
    """The adapter at `path`: a PEFT directory, torchllms' .pth beside its lora_args.json, or a .pth with
    weights in full.
    """
    path = local_path(path)
    if is_part(path):
        return read_torchllms(path, config)
    torchllms = None if (path / ADAPTER_CONFIG).exists() else find_torchllms(path)
    return read_torchllms(torchllms, config) if torchllms else read_peft(path)


def is_adapter(path: Path) -> bool:
    """Whether an adapter lies at `path` and not a model."""
    return (path / ADAPTER_CONFIG).exists() or find_torchllms(path) is not None


def open_source(
    path: str | Path,
    adapters: Sequence[str | Path] = (),
    *,
    force: bool = False,
    as_trained: bool = True,
) -> tuple[ModelConfig, Source]:
    """Config and weights of the model at `path`, found to fit, with adapters in them; nothing is read yet."""
    config, source = _open_base(local_path(path))
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
    elif found := find_litgpt(path):
        source = LitGPTSource(found)
        config = source.config
    elif found := find_pth(path):
        source = open_pth(found)
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
    return with_generation_config(read_config(where), directory)


def save_model(
    model: Transformer | Mapping[str, Tensor] | Source,
    config: ModelConfig,
    directory: str | Path,
    *,
    dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
    beside: Beside | None = None,
) -> None:
    """Write a directory that transformers, vLLM and llama.cpp load; other files in it are left alone.

    Of a source, rows are read as they are written, so the memory it takes does not grow with the model.
    Everything is written aside, then moved in, config.json last: where it is present, the model is whole.
    """
    state = model.state_dict() if isinstance(model, Transformer) else model
    source = Held(state) if isinstance(state, Mapping) else state
    check(config, source)
    tensors = streamed(source, list(parameter_shapes(config)), dtype)
    size, old = sum(tensor.n_bytes for tensor in tensors), ("model*.safetensors", INDEX)
    with written_aside(Path(directory), size, last="config.json", old=old, beside=beside) as aside:
        write_shards(tensors, aside, shard_bytes)
        config = replace(config, dtype=str(dtype).removeprefix("torch."))
        write_generation_config(config, aside)
        _write_json(aside / "config.json", config.to_hf())


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
