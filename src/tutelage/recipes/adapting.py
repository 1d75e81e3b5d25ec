"""The model that training starts from and what of it is trained: all, parts, or adapters beside it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tutelage.checkpoint.adapter import StoredAdapter, attach_
from tutelage.checkpoint.hf import config_of, fingerprint_of, load_model, read_adapter
from tutelage.errors import UserError
from tutelage.model.adapters import LoRASettings, add_lora_
from tutelage.model.config import ModelConfig
from tutelage.model.lora import LoRALayer
from tutelage.model.roles import PARAMETER as ROLES
from tutelage.model.transformer import Transformer, add_role_embeddings_
from tutelage.recipes.chain import chain_of
from tutelage.recipes.training import TrainingConfig
from tutelage.train.freezing import Freezing, check_patterns, freeze_, unfreeze_
from tutelage.train.precision import compute_dtype, load_dtype


@dataclass(frozen=True, slots=True)
class Start:
    """The model that training starts from: weights on disk, and adapters that are merged into them."""

    base: Path
    adapters: tuple[Path, ...]  # that become part of the model
    continued: Path | None  # the one that is trained further
    text: Path  # where the tokenizer lies
    names: tuple[str, ...]  # in the person's words

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
        )
        if shape.role_embeddings and not model.config.role_embeddings:
            add_role_embeddings_(model, shape.role_embeddings_init, seed=config.seed)
        model.config = shape  # it may have room for longer rows than it had
        adapt(model, config, self._stored(shape))
        return model

    def shape(self) -> ModelConfig:
        """That of the model with its adapters, the one that is trained further too."""
        return config_of(self.base, [*self.adapters, *([self.continued] if self.continued else [])])

    def blueprint(self, config: TrainingConfig, shape: ModelConfig) -> Transformer:
        """The model without weights, frozen and adapted as the settings say."""
        return blueprint_of(config, shape, self._stored(shape))

    def fingerprint(self) -> str:
        """What tells this model from others of its shape."""
        return fingerprint_of(self.base, self.adapters)

    def fingerprint_for(self, model: Transformer) -> str | None:
        """The fingerprint, if part of this model is frozen, so that its checkpoints need the base again."""
        return None if all(p.requires_grad for p in model.parameters()) else self.fingerprint()

    @property
    def base_name(self) -> str:
        """What to call the base in files: a path from the root, or its hub id."""
        return str(self.base.resolve()) if Path(self.names[0]).expanduser().exists() else self.names[0]

    def _stored(self, shape: ModelConfig) -> StoredAdapter | None:
        return None if self.continued is None else read_adapter(self.continued, shape)


def start_of(config: TrainingConfig, ckpt_paths: Sequence[str]) -> Start:
    """What these names stand for; with --lora_continue the last adapter is trained, else all are merged."""
    chain = chain_of(ckpt_paths)
    continued = chain.adapters[-1] if config.lora_continue and chain.adapters else None
    if config.lora_continue and continued is None:
        raise UserError("lora_continue goes on with the last adapter of ckpt_paths, and they name none")
    merged = chain.adapters[:-1] if continued else chain.adapters
    return Start(chain.base, merged, continued, chain.text, tuple(ckpt_paths))


def blueprint_of(
    config: TrainingConfig, shape: ModelConfig, continued: StoredAdapter | None = None
) -> Transformer:
    """The model on the meta device, frozen and adapted as the settings say."""
    with torch.device("meta"):
        model = Transformer(shape)
    adapt(model, config, continued)
    return model


def adapt(model: Transformer, config: TrainingConfig, continued: StoredAdapter | None = None) -> None:
    """Freeze, and put adapters on, what the settings say; `continued` is an adapter to train further."""
    if not config.lora:
        freeze_(model, freezing_of(config))
        return
    names = [name for name, _ in model.named_parameters()]
    beside = list(config.lora_unfrozen_params)
    check_patterns(beside, names, "lora_unfrozen_params")
    if continued is not None:
        attach_(model, continued)
    else:
        full = [name.removesuffix(".weight") for name in names if any(re.fullmatch(p, name) for p in beside)]
        add_lora_(model, lora_of(config), seed=config.seed, without=full)
    if model.config.role_embeddings and getattr(config, "use_role_embeddings", False):
        beside.append(re.escape(ROLES))
    if config.lora_bias != "none":
        beside += [re.escape(name) for name in _biases(model, only_adapted=config.lora_bias == "lora_only")]
    unfreeze_(model, beside)


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


def _pairs(given: Sequence[str], number: Callable, flag: str) -> tuple:
    """`q_proj=8` as ("q_proj", 8)."""
    pairs = []
    for text in given:
        pattern, _, value = text.rpartition("=")
        try:
            re.compile(pattern)
            pairs.append((pattern, number(value)))
        except (ValueError, re.error):
            pairs.append(("", 0))
        if not pattern or pairs[-1][1] <= 0:
            raise UserError(f"{flag}: {text} is not PATTERN=NUMBER, like q_proj=8, with a number above 0")
    return tuple(pairs)
