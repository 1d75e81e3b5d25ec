"""Adapters as PEFT writes and reads them: adapter_config.json and adapter_model.safetensors.

vLLM reads the same directories, as far as they hold LoRA of linear layers and nothing else.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tutelage.checkpoint.adapter import LowRank, StoredAdapter
from tutelage.checkpoint.aside import Beside, written_aside
from tutelage.checkpoint.peft_config import CONFIG, check_targets, of_pattern, read_config
from tutelage.checkpoint.source import parameter_shapes
from tutelage.checkpoint.torch_file.read import read_tensors
from tutelage.errors import UserError
from tutelage.model.config import ModelConfig
from tutelage.model.roles import PARAMETER as ROLES

WEIGHTS, PICKLE = "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."
_EMBEDDING, _HEAD = "model.embed_tokens", "lm_head"
_PART = re.compile(
    r"(?P<layer>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.weight)?"
)


def read_peft(directory: Path) -> StoredAdapter:
    """The adapter in a directory that PEFT, or `write_peft`, wrote."""
    where = directory / CONFIG
    values = read_config(where)
    tensors, metadata = _tensors(directory)
    if not tensors:
        raise UserError(f"{directory}: the adapter's file of weights holds none")
    parts: dict[str, dict[str, Tensor]] = {}
    full: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(_PREFIX)
        if match := _PART.fullmatch(name):
            parts.setdefault(match["layer"], {})[match["part"]] = tensor
        elif not name.endswith("base_layer.weight"):  # of embeddings, which PEFT adds unchanged
            full[name.replace(".base_layer.", ".")] = tensor
    layers = {layer: _low_rank(layer, found, values, directory) for layer, found in parts.items()}
    check_targets(where, values, layers, full)
    return StoredAdapter(
        str(directory),
        layers,
        full,
        dropout=float(values.get("lora_dropout") or 0.0),
        rslora=bool(values.get("use_rslora")),
        base=values.get("base_model_name_or_path") or None,
        fingerprint=metadata.get("base_fingerprint"),
    )


def _tensors(directory: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    path, pickled = directory / WEIGHTS, directory / PICKLE
    if not path.exists() and pickled.exists():
        return read_tensors(pickled), {}
    if not path.exists():
        raise UserError(f"{directory} has an {CONFIG} but no {WEIGHTS}")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or not a safetensors file ({error})") from error


def _low_rank(layer: str, parts: dict[str, Tensor], values: dict[str, Any], directory: Path) -> LowRank:
    if "lora_embedding_A" in parts or "lora_embedding_B" in parts:
        if "lora_magnitude_vector" in parts:
            raise UserError(
                f"{directory}: {layer} is an embedding with DoRA, which is for linear layers here; merge it "
                "with PEFT (merge_and_unload)"
            )
        parts = {
            {"lora_embedding_A": "lora_B", "lora_embedding_B": "lora_A"}.get(part, part): tensor.t()
            for part, tensor in parts.items()
        }
    dora = bool(values.get("use_dora"))
    wanted = ["lora_A", "lora_B"] + ["lora_magnitude_vector"] * dora
    missing = [part for part in wanted if part not in parts]
    if missing:
        raise UserError(f"{directory}: {layer} has no {missing[0]}")
    a, b = parts["lora_A"], parts["lora_B"]
    rank = of_pattern(values.get("rank_pattern"), layer, values.get("r", 8))
    alpha = of_pattern(values.get("alpha_pattern"), layer, values.get("lora_alpha", 8))
    if a.ndim != 2 or b.ndim != 2 or (len(a), b.shape[1]) != (rank, rank):
        raise UserError(
            f"{directory}: the matrices of {layer} are {tuple(a.shape)} and {tuple(b.shape)}, "
            f"{CONFIG} says rank {rank}"
        )
    scale = alpha / (math.sqrt(rank) if values.get("use_rslora") else rank)
    return LowRank(a, b, scale, parts["lora_magnitude_vector"] if dora else None)


def write_peft(
    stored: StoredAdapter,
    directory: Path,
    *,
    config: ModelConfig,
    base: str,
    fingerprint: str | None,
    dtype: torch.dtype,
    beside: Beside | None = None,
) -> None:
    """Write an adapter so that PEFT loads it, the config, written last, telling that it is whole.

    `config` is that of the base model, which `base` names.
    """
    tensors = {}
    for layer, low in stored.layers.items():
        tensors |= _named(layer, low)
        if config.tied and layer == _EMBEDDING:  # the same change, as that of the head
            tensors |= _named(_HEAD, low)
    for name, value in stored.full.items():
        layer, _, last = name.rpartition(".")
        inside = layer in stored.layers and last == "bias"
        tensors[f"{_PREFIX}{layer}{'.base_layer' if inside else ''}.{last}"] = value
        if config.tied and name == f"{_EMBEDDING}.weight":
            tensors[f"{_PREFIX}{_HEAD}.weight"] = value
    kept = {key: value.detach().to("cpu", dtype).contiguous().clone() for key, value in tensors.items()}
    metadata = {"format": "pt"} | ({"base_fingerprint": fingerprint} if fingerprint else {})
    size = sum(value.nbytes for value in kept.values())
    with written_aside(directory, size, last=CONFIG, old=(PICKLE,), beside=beside) as aside:
        (aside / WEIGHTS).write_bytes(save(kept, metadata))
        text = json.dumps(_config(stored, config, base), indent=2) + "\n"
        (aside / CONFIG).write_text(text, encoding="utf-8")


def _named(layer: str, low: LowRank) -> dict[str, Tensor]:
    if layer == _EMBEDDING:
        parts = {"lora_embedding_A": low.b.t(), "lora_embedding_B": low.a.t()}
    else:
        parts = {"lora_A.weight": low.a, "lora_B.weight": low.b}
    if low.magnitude is not None:
        parts["lora_magnitude_vector"] = low.magnitude
    return {f"{_PREFIX}{layer}.{part}": tensor for part, tensor in parts.items()}


def _config(stored: StoredAdapter, model: ModelConfig, base: str) -> dict[str, Any]:
    ranks = {layer: len(low.a) for layer, low in stored.layers.items()}
    alphas = {
        layer: _plain(low.scale * (math.sqrt(ranks[layer]) if stored.rslora else ranks[layer]))
        for layer, low in stored.layers.items()
    }
    rank, alpha = _usual(ranks.values()), _usual(alphas.values())
    weights = {name.removesuffix(".weight") for name in stored.full if name.endswith(".weight")}
    # PEFT wants such a layer whole, its bias too; what is in no module to save it loads by its name
    whole = {layer for layer in weights if f"{layer}.bias" not in {*parameter_shapes(model)} - {*stored.full}}
    beside = whole - {ROLES.removesuffix(".weight")} - set(stored.layers)
    biased = {name.removesuffix(".bias") for name in stored.full if name.endswith(".bias")} - beside
    both = model.tied and (_EMBEDDING in stored.layers or _EMBEDDING in beside)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if model.head == "lm" else "SEQ_CLS",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": stored.dropout,
        "use_rslora": stored.rslora,
        "use_dora": any(low.magnitude is not None for low in stored.layers.values()),
        "target_modules": _shortest(stored.layers, model),
        "rank_pattern": {layer: value for layer, value in ranks.items() if value != rank},
        "alpha_pattern": {layer: value for layer, value in alphas.items() if value != alpha},
        "modules_to_save": _shortest(sorted(beside), model) or None,
        "bias": "all" if biased - set(stored.layers) else "lora_only" if biased else "none",
        "init_lora_weights": True,
        "fan_in_fan_out": False,
    } | ({"ensure_weight_tying": True} if both else {})


def _usual(values: Any) -> Any:
    return Counter(values).most_common(1)[0][0] if values else 8


def _plain(value: float) -> float:
    """32 for 31.999999999999996."""
    value = float(f"{value:.12g}")
    return int(value) if value.is_integer() else value


def _shortest(names: Iterable[str], model: ModelConfig) -> list[str]:
    """q_proj for the layers of that name in all blocks, and in full what is not in all."""
    ends = Counter(name.rpartition(".")[2] for name in names if name.startswith("model.layers."))
    everywhere = {end for end, count in ends.items() if count == model.n_layers}
    return sorted({end if (end := name.rpartition(".")[2]) in everywhere else name for name in names})
