"""What ckpt_paths name: a model, then adapters on it, each a path, a hub id or a run's directory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tutelage.checkpoint.adapter import StoredAdapter, attach_, check_trained_on, for_tied
from tutelage.checkpoint.hf import (
    config_of,
    fingerprint_of,
    is_adapter,
    load_config,
    load_model,
    open_source,
    read_adapter,
)
from tutelage.checkpoint.hub import local_path
from tutelage.checkpoint.json_file import read_object
from tutelage.checkpoint.note import read_note
from tutelage.checkpoint.peft import CONFIG as ADAPTER_CONFIG
from tutelage.checkpoint.source import Source
from tutelage.checkpoint.torchllms_lora import is_part
from tutelage.errors import UserError
from tutelage.model.config import ModelConfig
from tutelage.model.quantize import Quantization
from tutelage.model.roles import PARAMETER as ROLES
from tutelage.model.score import PARAMETER as SCORE
from tutelage.model.transformer import Transformer, add_role_embeddings_, give_score_head_, untie_


@dataclass(frozen=True, slots=True)
class Chain:
    """A model and the adapters that belong on it, in their order."""

    base: Path
    adapters: tuple[Path, ...] = ()
    name: str = ""  # of the base, for files: a path from the root, or its hub id

    @property
    def text(self) -> Path:
        """Where the tokenizer and its template lie: with the last adapter that has them, else the model."""
        having = [path for path in self.adapters if (path / "tokenizer.json").exists()]
        return having[-1] if having else self.base


def chain_of(
    ckpt_paths: Sequence[str], *, adapters_first: bool = False, seen: tuple[Path, ...] = ()
) -> Chain:
    """The model and adapters of these names; an adapter alone brings the model it was trained on.

    A run that has both, its adapter and a merged model, is the model, unless `adapters_first`.
    """
    paths = [
        _resolved(name, model_first=number == 0 and not adapters_first)
        for number, name in enumerate(ckpt_paths)
    ]
    adapters = [path.resolve() for path in paths if is_adapter(path)]
    if twice := [
        name for name, path in zip(ckpt_paths, paths, strict=True) if adapters.count(path.resolve()) > 1
    ]:
        raise UserError(f"ckpt_paths names the adapter {twice[0]} twice")
    if is_adapter(paths[0]):
        if len(adapters) < len(paths):
            raise UserError(
                f"ckpt_paths begins with {ckpt_paths[0]}, an adapter; the model comes first, then those on it"
            )
        known = _trained_on(paths[0], seen)
        return Chain(known.base, (*known.adapters, *paths), known.name)
    for name, path in zip(ckpt_paths[1:], paths[1:], strict=True):
        if not is_adapter(path) and not is_part(path):
            if path.is_dir() and not (path / "config.json").exists():
                raise UserError(f"{name} holds neither a model nor an adapter")
            raise UserError(
                f"ckpt_paths names {ckpt_paths[0]} and {name}, two models; after the first one only adapters "
                "may follow"
            )
    is_path = Path(ckpt_paths[0]).expanduser().exists()
    return Chain(paths[0], tuple(paths[1:]), str(paths[0].resolve()) if is_path else ckpt_paths[0])


def shape_of(chain: Chain) -> ModelConfig:
    """The model's, with the end tokens and the room that its last adapter was trained with."""
    if not chain.adapters:
        return load_config(chain.base)
    shape, note = config_of(chain.base, chain.adapters), read_note(chain.adapters[-1])
    eos = shape.eos if note.eos is None else note.eos
    pad = shape.pad if note.pad is None else note.pad
    return replace(shape, eos=eos, pad=pad, max_positions=note.max_positions or shape.max_positions)


def open_chain(chain: Chain, *, force: bool = False) -> tuple[ModelConfig, Source]:
    """What `load_chain` would load, as a source: every row is read, and merged, when it is asked for."""
    config, source = open_source(chain.base, chain.adapters, force=force)
    shape = shape_of(chain)
    return replace(config, eos=shape.eos, pad=shape.pad, max_positions=shape.max_positions), source


def load_chain(
    chain: Chain,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    force: bool = False,
    quantization: Quantization | None = None,
) -> Transformer:
    """The model with its adapters in it; what was trained on quantized weights goes into those.

    With `quantization` the last adapter stays beside its layers, since it would not survive in 4 bits.
    """
    beside = quantization is not None and bool(chain.adapters)
    merged = chain.adapters[:-1] if beside else chain.adapters
    model = load_model(
        chain.base, dtype=dtype, device=device, adapters=merged, force=force, quantization=quantization
    )
    if beside:
        stored = read_adapter(chain.adapters[-1], model.config)
        check_trained_on(stored, fingerprint_of(chain.base, merged), str(chain.base), force=force)
        put_on_(model, stored)
        model.requires_grad_(False)
    shape = shape_of(chain)
    model.config = replace(model.config, eos=shape.eos, pad=shape.pad, max_positions=shape.max_positions)
    return model


def put_on_(model: Transformer, stored: StoredAdapter) -> None:
    """Put an adapter beside the model's layers, in the dtype of its other weights."""
    if ROLES in stored.full and not model.config.role_embeddings:
        add_role_embeddings_(model, "zeros", seed=0)
    if SCORE in stored.full and model.score is None:
        give_score_head_(model, seed=0)
    if model.config.tied and for_tied(stored) is None:
        untie_(model)
    attach_(model, stored)
    dtype = model.model.embed_tokens.weight.dtype
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _resolved(name: str, *, model_first: bool) -> Path:
    """The model or adapter itself, where `name` may be a run's directory, which holds its result."""
    path = local_path(name)
    model, adapter = path / "model", path / "adapter"
    results = [model] if (model / "config.json").exists() else []
    if is_adapter(adapter):
        results.insert(len(results) if model_first else 0, adapter)
    if results:
        return results[0]
    if path.is_dir() and (path / "checkpoints").is_dir() and not (path / "config.json").exists():
        raise UserError(f"{path} is a run without a result; end it with the same command and --resume")
    return path


def _trained_on(adapter: Path, seen: tuple[Path, ...]) -> Chain:
    """The model, and adapters before this one, that an adapter's files name."""
    hint = f"give the model first: --ckpt_paths MODEL {adapter}"
    config, base = adapter / ADAPTER_CONFIG, None
    if config.exists():
        base = read_object(config).get("base_model_name_or_path")
    if not base or adapter.resolve() in seen:
        raise UserError(f"{adapter} is an adapter that does not say what it was trained on; {hint}")
    try:
        return chain_of([base, *read_note(adapter).adapters], seen=(*seen, adapter.resolve()))
    except UserError as error:
        raise UserError(f"{adapter} was trained on {base}, which is not there ({error}); {hint}") from error
