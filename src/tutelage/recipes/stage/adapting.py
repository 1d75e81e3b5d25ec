"""The model that training starts from and what of it is trained: all, parts, or adapters beside it."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from tutelage.checkpoint.adapter import StoredAdapter, attach_, shape_with
from tutelage.checkpoint.hf import config_of, fingerprint_of, load_model, read_adapter
from tutelage.checkpoint.note import read_note
from tutelage.checkpoint.rounded import Rounding, is_quantized
from tutelage.errors import UserError
from tutelage.model.adapters import LoRASettings, add_lora_
from tutelage.model.config import ModelConfig
from tutelage.model.lora import LoRALayer
from tutelage.model.roles import PARAMETER as ROLES
from tutelage.model.score import PARAMETER as SCORE
from tutelage.model.transformer import Transformer, add_role_embeddings_, give_score_head_
from tutelage.recipes.stage.chain import chain_of, put_on_
from tutelage.recipes.stage.quantizing import quantization_of
from tutelage.recipes.stage.training import TrainingConfig
from tutelage.train.freezing import Freezing, check_patterns, freeze_, unfreeze_
from tutelage.train.precision import compute_dtype, load_dtype


@dataclass(frozen=True)
class Start:
    """The model that training starts from: weights on disk, and adapters that are merged into them."""

    base: Path
    adapters: tuple[Path, ...]  # that become part of the model
    continued: Path | None  # the one that is trained further
    text: Path  # where the tokenizer lies
    names: tuple[str, ...]  # in the person's words
    base_name: str  # the base in files: a path from the root, or its hub id

    def load(self, config: TrainingConfig, shape: ModelConfig, device: torch.device) -> Transformer:
        """The model on its device, ready to be trained: frozen weights in the dtype of the arithmetic."""
        plan = {name for name, p in self.blueprint(config, shape).named_parameters() if p.requires_grad}
        trained, frozen = load_dtype(config.precision), compute_dtype(config.precision)

        model = load_model(
            self.base,
            dtype=lambda name: trained if name in plan else frozen,
            device=device,
            adapters=self.adapters,
            force=config.force,
            quantization=quantization_of(config.quant, config.quant_double),
        )
        if shape.role_embeddings and not model.config.role_embeddings:
            add_role_embeddings_(model, shape.role_embeddings_init, seed=config.seed)
        if shape.head == "score" and model.score is None:
            give_score_head_(model, seed=config.seed, dtype=trained if SCORE in plan else frozen)
        model.config = shape  # it may have room for longer rows than it had
        adapt(model, config, self._stored(shape))
        return model

    def beside(self, config: TrainingConfig, adapter: Path, shape: ModelConfig) -> Transformer:
        """The base as training had it, read from disk anew, with the adapter of a directory beside it.

        PiSSA's is merged: beside the base, what it took out would have to cancel in the arithmetic's dtype.
        """
        pissa = config.lora_init == "pissa"
        model = load_model(
            self.base,
            dtype=compute_dtype(config.precision),
            adapters=[*self.adapters, adapter] if pissa else self.adapters,
            force=config.force,
            quantization=quantization_of(config.quant, config.quant_double),
        )
        if pissa:
            return model
        own = model.config
        model.config = replace(shape, head=own.head, tied=own.tied, role_embeddings=own.role_embeddings)
        put_on_(model, read_adapter(adapter, shape))
        return model

    def shape(self) -> ModelConfig:
        """That of the model with its adapters."""
        shape = config_of(self.base, self.adapters)
        stored = self._stored(shape)
        return shape if stored is None else shape_with(shape, stored)

    def blueprint(self, config: TrainingConfig, shape: ModelConfig) -> Transformer:
        """The model without weights, frozen and adapted as the settings say."""
        return blueprint_of(config, shape, self._stored(shape))

    @cached_property
    def fingerprint(self) -> str:
        """What tells this model from others of its shape, read from its files once."""
        return fingerprint_of(self.base, self.adapters)

    def _stored(self, shape: ModelConfig) -> StoredAdapter | None:
        return None if self.continued is None else read_adapter(self.continued, shape)


def start_of(config: TrainingConfig, ckpt_paths: Sequence[str]) -> Start:
    """What these names stand for; with --lora_continue the last adapter is trained, else all are merged."""
    chain = chain_of(ckpt_paths)
    continued = chain.adapters[-1] if config.lora_continue and chain.adapters else None
    if config.lora_continue and continued is None:
        raise UserError("lora_continue goes on with the last adapter of ckpt_paths, and they name none")
    if continued is not None:
        was, now = read_note(continued).rounding, rounding_of(config)
        if (was and was.quantization) != (now and now.quantization):
            kind = f"--quant {was.quantization.kind}" if was else "no --quant"
            raise UserError(f"{continued} was trained with {kind}, and lora_continue trains it further so")
    merged = chain.adapters[:-1] if continued else chain.adapters
    return Start(chain.base, merged, continued, chain.text, tuple(ckpt_paths), chain.name)


def origin(config: TrainingConfig, start: Start | None, model: Transformer) -> dict[str, str] | None:
    """What checkpoints do not hold and their weights need again; None where everything is trained."""
    if all(p.requires_grad for p in model.parameters()):
        return None
    scales = [
        (name, f"{kind.scale:.9g}")
        for name, module in model.named_modules()
        if isinstance(module, LoRALayer)
        for kind in module.kinds.values()
    ]
    seed = f"drawn by seed {config.seed}, std {getattr(config, 'init_std', None)}"
    return {
        "base": start.fingerprint if start else seed,
        "quant": f"{config.quant}{' double' if config.quant_double else ''}",
        "adapters": hashlib.sha256(repr(scales).encode()).hexdigest()[:16],
    }


def blueprint_of(
    config: TrainingConfig, shape: ModelConfig, continued: StoredAdapter | None = None
) -> Transformer:
    """The model on the meta device, frozen and adapted as the settings say."""
    with torch.device("meta"):
        model = Transformer(shape)
    adapt(model, config, continued)
    return model


def adapt(model: Transformer, config: TrainingConfig, continued: StoredAdapter | None = None) -> None:
    """Freeze, and put adapters on, what the settings say; `continued` is an adapter to train further.

    Beside adapters a score head is trained in full: one row has no low rank.
    """
    beside = [re.escape(ROLES)] if model.config.role_embeddings and _wants_roles(config) else []
    if not config.lora:
        freeze_(model, freezing_of(config))
        unfreeze_(model, beside)
        return
    names = [name for name, _ in model.named_parameters()]
    given = config.lora_unfrozen_params
    check_patterns(given, names, "lora_unfrozen_params")
    full = [name for name in names if any(re.fullmatch(pattern, name) for pattern in given)]
    wanted = [*full, *(continued.full if continued else ())]
    if config.quant != "none" and (kept := [name for name in wanted if is_quantized(name)]):
        raise UserError(
            f"{kept[0]} is to be trained in full beside the adapters, and quant keeps it in "
            f"{config.quant}; leave out one of the two"
        )
    if continued is not None:
        attach_(model, continued)
        if both := [name for name in full if name.removesuffix(".weight") in continued.layers]:
            raise UserError(
                f"lora_unfrozen_params: {both[0]} has an adapter already, and one of the two is enough"
            )
    else:
        layers = [name.removesuffix(".weight") for name in full]
        add_lora_(model, lora_of(config), seed=config.seed, without=layers)
    if config.lora_bias != "none":
        biases = _biases(model, only_adapted=config.lora_bias == "lora_only")
        if not biases:
            raise UserError(f"lora_bias is {config.lora_bias}, and the model has no such bias; leave it out")
        beside += [re.escape(name) for name in biases]
    scores = [re.escape(SCORE)] if model.score is not None else []
    unfreeze_(model, [*beside, *given, *scores])


def _wants_roles(config: TrainingConfig) -> bool:
    """Whether the settings, of a stage that knows role embeddings, ask for them."""
    return getattr(config, "use_role_embeddings", False)


def _biases(model: nn.Module, *, only_adapted: bool) -> list[str]:
    return [
        name
        for name, _ in model.named_parameters()
        if name.endswith(".bias")
        and (not only_adapted or isinstance(model.get_submodule(name.removesuffix(".bias")), LoRALayer))
    ]


def freezing_of(config: TrainingConfig) -> Freezing:
    """What the settings freeze when there are no adapters."""
    return Freezing(
        layers=config.frozen_layers,
        query_value_only=config.train_atten_qv_layers_only,
        parts=config.train_parts,
        trained=config.trained_params,
        frozen=config.frozen_params,
    )


def lora_of(config: TrainingConfig) -> LoRASettings:
    """The adapters that the settings ask for."""
    return LoRASettings(
        rank=config.lora_rank,
        alpha=2.0 * config.lora_rank if config.lora_alpha is None else config.lora_alpha,
        dropout=config.lora_dropout,
        rslora=config.lora_rslora,
        dora=config.lora_dora,
        init=config.lora_init,
        targets=config.lora_targets,
        embedding=config.lora_embedding,
        head=config.lora_head,
        ranks=_pairs(config.lora_rank_pattern, int, "lora_rank_pattern"),
        alphas=_pairs(config.lora_alpha_pattern, float, "lora_alpha_pattern"),
    )


def rounding_of(config: TrainingConfig) -> Rounding | None:
    """What the settings make of the base's matrices."""
    quantization = quantization_of(config.quant, config.quant_double)
    return None if quantization is None else Rounding(quantization, compute_dtype(config.precision))


def _pairs(given: Sequence[str], number: Callable, flag: str) -> tuple:
    """`q_proj=8` as ("q_proj", 8)."""
    pairs = []
    for text in given:
        pattern, _, given_number = text.rpartition("=")
        try:
            re.compile(pattern)
            value = number(given_number)
        except (ValueError, re.error):
            value = 0
        if not pattern or value <= 0:
            raise UserError(f"{flag}: {text} is not PATTERN=NUMBER, like q_proj=8, with a number above 0")
        pairs.append((pattern, value))
    return tuple(pairs)
