"""Adapters as PEFT writes and reads them: adapter_config.json and adapter_model.safetensors.

vLLM reads the same directories, as far as they hold LoRA of linear layers and nothing else.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tutelage.checkpoint.adapter import LowRank, StoredAdapter
from tutelage.errors import UserError
from tutelage.model.adapters import fits
from tutelage.model.config import ModelConfig
from tutelage.model.roles import PARAMETER as ROLES

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_EMBEDDING, _HEAD = "model.embed_tokens", "lm_head"
# Keys that would change the arithmetic, and the values under which they change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
}
_PART = re.compile(
    r"(?P<layer>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.weight)?"
)


def read_peft(directory: Path) -> StoredAdapter:
    """The adapter in a directory that PEFT, or `write_peft`, wrote."""
    where = directory / CONFIG
    try:
        values = json.loads(where.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}") from error
    if values.get("peft_type") != "LORA":
        raise UserError(f"{where}: peft_type {values.get('peft_type')!r} is not supported; only LORA is")
    for key, neutral in _NEUTRAL.items():
        if key in values and values[key] not in neutral:
            raise UserError(f"{where}: {key} = {values[key]!r} is not supported; only {neutral[0]!r} is")
    tensors, metadata = _tensors(directory)
    parts: dict[str, dict[str, Tensor]] = {}
    full: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(_PREFIX)
        if match := _PART.fullmatch(name):
            parts.setdefault(match["layer"], {})[match["part"]] = tensor
        elif not name.endswith("base_layer.weight"):  # of embeddings, which PEFT adds unchanged
            full[name.replace(".base_layer.", ".")] = tensor
    layers = {layer: _low_rank(layer, found, values, directory) for layer, found in parts.items()}
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
    path = directory / WEIGHTS
    if not path.exists():
        pickled = directory / "adapter_model.bin"
        hint = (
            ", only adapter_model.bin, a pickle, which can run code when it is read"
            if pickled.exists()
            else ""
        )
        raise UserError(f"{directory} has an {CONFIG} but no {WEIGHTS}{hint}")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or not a safetensors file ({error})") from error


def _low_rank(layer: str, parts: dict[str, Tensor], values: dict[str, Any], directory: Path) -> LowRank:
    if "lora_embedding_A" in parts or "lora_embedding_B" in parts:
        parts = {
            {"lora_embedding_A": "lora_B", "lora_embedding_B": "lora_A"}.get(part, part): tensor.t()
            for part, tensor in parts.items()
        }
    missing = [part for part in ("lora_A", "lora_B") if part not in parts]
    if missing:
        raise UserError(f"{directory / WEIGHTS}: {layer} has no {missing[0]}")
    a, b = parts["lora_A"], parts["lora_B"]
    rank = _of_pattern(values.get("rank_pattern"), layer, values.get("r", 8))
    alpha = _of_pattern(values.get("alpha_pattern"), layer, values.get("lora_alpha", 8))
    if a.ndim != 2 or b.ndim != 2 or (len(a), b.shape[1]) != (rank, rank):
        raise UserError(
            f"{directory}: the matrices of {layer} are {tuple(a.shape)} and {tuple(b.shape)}, "
            f"{CONFIG} says rank {rank}"
        )
    scale = alpha / (math.sqrt(rank) if values.get("use_rslora") else rank)
    return LowRank(a, b, scale, parts.get("lora_magnitude_vector") if values.get("use_dora") else None)


def _of_pattern(patterns: dict[str, Any] | None, layer: str, default: Any) -> Any:
    return next((value for pattern, value in (patterns or {}).items() if fits(pattern, layer)), default)


def write_peft(
    stored: StoredAdapter,
    directory: Path,
    *,
    config: ModelConfig,
    base: str,
    fingerprint: str | None,
    dtype: torch.dtype,
) -> None:
    """Write an adapter so that PEFT loads it, the config, written last, telling that it is whole.

    `config` is that of the base model, which `base` names.
    """
    directory.mkdir(parents=True, exist_ok=True)
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
    (directory / CONFIG).unlink(missing_ok=True)
    save_file(kept, directory / f".{WEIGHTS}", metadata=metadata)
    os.replace(directory / f".{WEIGHTS}", directory / WEIGHTS)
    text = json.dumps(_config(stored, config, base), indent=2) + "\n"
    (directory / f".{CONFIG}").write_text(text, encoding="utf-8")
    os.replace(directory / f".{CONFIG}", directory / CONFIG)


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
    biases = [name for name in stored.full if name.endswith(".bias")]
    beside = {name.rpartition(".")[0] for name in stored.full if name != ROLES} - set(stored.layers)
    both = model.tied and (_EMBEDDING in stored.layers or _EMBEDDING in beside)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
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
        "bias": "lora_only" if any(name.rpartition(".")[0] in stored.layers for name in biases) else "none",
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
