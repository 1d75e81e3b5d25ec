"""What PEFT's adapter_config.json says, refused where it is wrong or means more than is read here."""

import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tutelage.checkpoint.json_file import read_object
from tutelage.errors import UserError
from tutelage.model.adapters import fits

CONFIG = "adapter_config.json"
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
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")  # others change the base as well
_UNDONE = ("pissa", "olora", "corda", "lora_ga")  # by PEFT, when it saves
_IN_BLOCKS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
_IN_BLOCKS |= {"qkv_proj", "gate_up_proj"}
_ENDLESS = re.compile(r"[*+?|}][^()]*\)+(?:[*+]|\{\d*,\d*\})")  # (a+)+, (a|a)*, ((a*))+ and their like
_BLOCK = re.compile(r"(.*\blayers\.)(\d+)(\..+)")


def read_config(where: Path) -> dict[str, Any]:
    """The settings of a LoRA adapter that has no peculiarity which would be lost here."""
    values = read_object(where)
    if values.get("peft_type") != "LORA":
        raise UserError(f"{where}: peft_type {values.get('peft_type')!r} is not supported; only LORA is")
    for key, neutral in _NEUTRAL.items():
        if key in values and values[key] not in neutral:
            raise UserError(f"{where}: {key} = {values[key]!r} is not supported; only {neutral[0]!r} is")
    start = values.get("init_lora_weights")
    if (start.lower() if isinstance(start, str) else start) not in _PLAIN_STARTS:
        plain = "save it with PEFT's path_initial_model_for_weight_conversion, which makes a plain one"
        raise UserError(
            f"{where}: init_lora_weights = {start!r} changed the base model too, and these files do not say "
            f"how; {plain if str(start).lower().startswith(_UNDONE) else 'merge it with PEFT'}"
        )
    _check_numbers(where, values)
    _check_patterns(where, values)
    return values


def _check_numbers(where: Path, values: dict[str, Any]) -> None:
    ranks, alphas = (values.get(key) or {} for key in ("rank_pattern", "alpha_pattern"))
    for key, value in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
        if not isinstance(value, dict):
            raise UserError(f"{where}: {key} = {value!r}, wanted an object of patterns and numbers")
    sizes = {"r": values.get("r", 8)} | {f"rank_pattern {key!r}": value for key, value in ranks.items()}
    for key, value in sizes.items():
        if not is_number(value) or value < 1 or value != int(value):
            raise UserError(f"{where}: {key} = {value!r}, wanted a whole number from 1")
    weights = {"lora_alpha": values.get("lora_alpha", 8)}
    weights |= {f"alpha_pattern {key!r}": value for key, value in alphas.items()}
    for key, value in weights.items():
        if not is_number(value) or value <= 0:
            raise UserError(f"{where}: {key} = {value!r}, wanted a number above 0")
    dropout = values.get("lora_dropout") or 0.0
    if not is_number(dropout) or not 0 <= dropout <= 1:
        raise UserError(f"{where}: lora_dropout = {dropout!r}, wanted a number from 0 to 1")


def is_number(value: Any) -> bool:
    """Whether a value out of JSON is a finite number, and not true or false."""
    return type(value) in (int, float) and math.isfinite(value)


def _check_patterns(where: Path, values: dict[str, Any]) -> None:
    patterns = {(key, p) for key in ("rank_pattern", "alpha_pattern") for p in values.get(key) or {}}
    targets = values.get("target_modules")
    if isinstance(targets, str):
        patterns.add(("target_modules", targets))
    elif targets is not None and not (isinstance(targets, list) and all(isinstance(t, str) for t in targets)):
        raise UserError(f"{where}: target_modules = {targets!r}, wanted a pattern or a list of names")
    for key, pattern in sorted(patterns):
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"{where}: {key} has {pattern!r}, which is no pattern: {error}") from error
        if _ENDLESS.search(pattern):
            raise UserError(
                f"{where}: {key} has {pattern[:80]!r}, a repeated group with a repetition or a choice in it, "
                "which may take for ever to compare with a name; write it without"
            )


def of_pattern(patterns: dict[str, Any] | None, layer: str, default: Any) -> Any:
    """The value of the first pattern that fits the layer's name."""
    return next((value for pattern, value in (patterns or {}).items() if fits(pattern, layer)), default)


def check_targets(
    where: Path, values: dict[str, Any], layers: Collection[str], full: Collection[str]
) -> None:
    """Refuse files that lack layers which the config says they have.

    PEFT lets a list name layers that a model does not have, so of a name that no layer bears only those
    that blocks here have are missed; and a layer may be missing that is chosen out, or trained in full.
    """
    targets = values.get("target_modules")
    if not targets or targets == "all-linear":
        return
    named = {t: [name for name in layers if _is_target(t, name)] for t in _listed(targets)}
    if isinstance(targets, str):
        named = {targets: [name for name in layers if re.fullmatch(targets, name)]}
    if not any(named.values()):
        raise UserError(f"{where}: target_modules are {targets!r}, and the adapter has none of them")
    if isinstance(targets, str) or any(values.get(key) for key in ("exclude_modules", "layers_pattern")):
        return
    blocks = {match[1] + match[2] for name in layers if (match := _BLOCK.fullmatch(name))}
    for target, found in named.items():
        ends = {match[3] for name in found if (match := _BLOCK.fullmatch(name))}
        if target in _IN_BLOCKS and not ends and not any(f".{target}." in name for name in full):
            raise UserError(f"{where}: target_modules name {target}, and the adapter has no such layer")
        if re.search(r"(^|\.)\d+\.", target) or values.get("layers_to_transform") is not None:
            continue
        for name in sorted(block + end for block in blocks for end in ends):
            if name not in layers and not any(key.startswith(f"{name}.") for key in full):
                raise UserError(f"{where}: target_modules name {target}, and the adapter has no {name}")


def _listed(targets: str | list[str]) -> list[str]:
    return [] if isinstance(targets, str) else targets


def _is_target(target: str, layer: str) -> bool:
    return layer == target or layer.endswith(f".{target}")
