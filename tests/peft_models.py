"""Tiny models with adapters, by PEFT, and ours with the same adapters by way of its files."""

import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from tiny_models import oracle, ours, positions_of

from tutelage.checkpoint.adapter import attach_, collected
from tutelage.checkpoint.peft import read_peft, write_peft
from tutelage.model.transformer import Transformer

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 6},
    "rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "dora": {"r": 4, "lora_alpha": 6, "use_dora": True},
    "patterns": {"r": 4, "lora_alpha": 6, "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 3}}
    | {"alpha_pattern": {"down_proj": 32}},
    "some": {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj", "v_proj"]},
    "beside": {"r": 4, "lora_alpha": 6, "modules_to_save": ["input_layernorm", "model.norm"]},
}


def by_peft(name: str, seed: int = 0, **options: Any) -> peft.PeftModel:
    """The tiny model of transformers with an adapter, every value of it random."""
    base = oracle(name)
    config = peft.LoraConfig(**{"target_modules": LINEARS, "task_type": "CAUSAL_LM"} | options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base, config)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if p.requires_grad:
                around = 1.0 if "norm" in key else p if "magnitude" in key else 0.0
                p.copy_(around + 0.1 * torch.randn(p.shape, generator=draw))
    return model.eval()


def saved_by_peft(model: peft.PeftModel, directory: Path) -> Path:
    """The directory that PEFT writes the adapter into."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(directory)
    return directory


def ours_with(name: str, directory: Path) -> Transformer:
    """Our tiny model with the adapter in a directory on it."""
    model = ours(oracle(name))
    attach_(model, read_peft(directory))
    return model


def saved_by_us(model: Transformer, directory: Path, *, rslora: bool = False) -> Path:
    """The directory that we write the model's adapter into."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name: p.detach() for name, p in model.named_parameters() if ".initial_" in name}
    stored = collected(model, trained | frozen, rslora=rslora)
    write_peft(stored, directory, config=model.config, base="tiny", fingerprint=None, dtype=torch.float32)
    return directory


def based(directory: Path, name: str) -> Path:
    """The directory that the tiny model of transformers is written into."""
    oracle(name).save_pretrained(directory)
    return directory


def shuffle_(model: Transformer, seed: int = 5, std: float = 0.2) -> Transformer:
    """Random values for every matrix of the active adapter."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".lora_" in name and p.requires_grad:
                around = p if "magnitude" in name else 0.0
                p.copy_(around + std * torch.randn(p.shape, generator=draw))
    return model


def logits_of(model: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    """(B, T, V)"""
    return model.unembed(model(tokens, positions_of(tokens)))
