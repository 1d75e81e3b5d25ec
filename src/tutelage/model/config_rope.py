"""Rotary embeddings as a config.json has them, in the words of transformers 5 and in the older ones.

Read, a scaling is complete: every number that `rope.py` computes with is in it.
"""

import math
from collections.abc import Mapping
from typing import Any

from tutelage.errors import UserError
from tutelage.model.families import FULL, SLIDING, Family

_NEEDED = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
}
_OPTIONAL = {
    "yarn": ("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "attention_factor"),
    "longrope": ("factor", "attention_factor"),
}
ORIGINAL = "original_max_position_embeddings"
_OF_ALL = ("rope_theta", "rope_type", "type", "partial_rotary_factor", ORIGINAL, "finetuned")


def read_rope(values: Mapping[str, Any], family: Family, where: str) -> dict[str, Any]:
    """The fields of ModelConfig about rotary embeddings, from a config.json with its family's defaults."""
    found = dict(values.get("rope_scaling") or values.get("rope_parameters") or {})
    local = found.pop(SLIDING, None) or {}
    found = found.pop(FULL, None) or found
    if "rope_local_base_freq" not in family.written and local:
        raise UserError(f"{where}: rope_parameters differ from layer to layer, which is not supported")
    if values.get("rope_theta", 0) is None and not found.get("rope_theta"):
        raise UserError(f"{where}: rope_theta is null, and no number was meant; give the model's")
    local_theta = local.get("rope_theta") or values.get("rope_local_base_freq")
    if _kind(local, family) != "default":
        raise UserError(f"{where}: rope type {_kind(local, family)!r} of {SLIDING} is not supported")
    partial = found.get("partial_rotary_factor") or values.get("partial_rotary_factor") or 1.0
    if partial != 1.0 and "partial_rotary_factor" not in family.written:
        raise UserError(f"{where}: partial_rotary_factor = {partial!r} is not supported; only 1.0 is")
    theta = float(found.get("rope_theta") or values.get("rope_theta") or 10000.0)
    scaling = _scaling(found, values, family, where)
    if scaling is not None and scaling["rope_type"] == "yarn" and theta <= 1:
        raise UserError(f"{where}: rope_theta = {theta!r}, wanted more than 1: yarn divides by its logarithm")
    return {
        "rope_theta": theta,
        "rope_scaling": scaling,
        "partial_rotary": partial,
        "local_theta": None if local_theta is None else float(local_theta),
        "rope_layers": family.rope_layers(values),
    }


def _kind(found: Mapping[str, Any], family: Family) -> str:
    kind = found.get("rope_type") or found.get("type") or "default"
    return family.rope_names.get(kind, kind)


def _scaling(
    found: dict[str, Any], values: Mapping[str, Any], family: Family, where: str
) -> dict[str, Any] | None:
    kind = _kind(found, family)
    if kind not in family.ropes:
        raise UserError(
            f"{where}: rope type {kind!r} is not supported; supported are {', '.join(family.ropes)}"
        )
    if unknown := sorted(found.keys() - {*_OF_ALL, *_NEEDED.get(kind, ()), *_OPTIONAL.get(kind, ())}):
        raise UserError(f"{where}: rope type {kind} has {unknown[0]}, whose meaning is not known here")
    if kind == "default":
        return None
    if missing := [key for key in _NEEDED[kind] if found.get(key) is None]:
        null = ", which is null" if missing[0] in found else ""
        raise UserError(f"{where}: rope type {kind} needs {', '.join(missing)}{null}")
    scaling = {"rope_type": kind, **{key: found[key] for key in _NEEDED[kind]}}
    if kind == "linear":
        return scaling
    if kind == "llama3" and found["high_freq_factor"] <= found["low_freq_factor"]:
        high, low = found["high_freq_factor"], found["low_freq_factor"]
        raise UserError(f"{where}: high_freq_factor = {high!r}, wanted more than low_freq_factor, {low!r}")
    scaling[ORIGINAL] = original = _original(found, values, where)
    if kind == "yarn":
        scaling |= {"beta_fast": found.get("beta_fast") or 32, "beta_slow": found.get("beta_slow") or 1}
        scaling["truncate"] = found.get("truncate", True)
        scaling["attention_factor"] = found.get("attention_factor") or _yarn_factor(found)
    if kind == "longrope":
        factor = found.get("factor") or values["max_position_embeddings"] / original
        usual = _longrope_factor(factor, original)
        scaling["attention_factor"] = found.get("attention_factor") or usual
    return scaling


def _original(found: Mapping[str, Any], values: Mapping[str, Any], where: str) -> int:
    """The context before it was stretched; Phi-3 has it beside the scaling, others inside."""
    inside, beside = found.get(ORIGINAL), values.get(ORIGINAL)
    if inside is not None and beside is not None and inside != beside:
        raise UserError(f"{where}: {ORIGINAL} is {beside} beside the scaling and {inside} inside it")
    return inside or beside or values["max_position_embeddings"]


def check_factors(scaling: Mapping[str, Any] | None, dim: int) -> None:
    """Refuse lists of longrope that are not one number for each pair of `dim`."""
    for key in ("short_factor", "long_factor"):
        factors = (scaling or {}).get(key)
        if factors is not None and len(factors) != dim // 2:
            raise UserError(f"{key} has {len(factors)} numbers, and rotary embeddings turn {dim // 2} pairs")


def written_scaling(scaling: Mapping[str, Any] | None, max_positions: int) -> dict[str, Any] | None:
    """The scaling as config.json has it: what every reader takes by itself is left out."""
    if scaling is None:
        return None
    usual: dict[str, Any] = {"truncate": True}
    if scaling["rope_type"] == "yarn":
        usual["attention_factor"] = _yarn_factor(scaling)
    if scaling["rope_type"] == "longrope":
        original = scaling[ORIGINAL]
        usual["attention_factor"] = _longrope_factor(max_positions / original, original)
    return {key: value for key, value in scaling.items() if key not in usual or usual[key] != value}


def _yarn_factor(scaling: Mapping[str, Any]) -> float:
    """What cos and sin are multiplied by, https://arxiv.org/abs/2309.00071; mscale is DeepSeek's."""
    over, under = scaling.get("mscale"), scaling.get("mscale_all_dim")
    usual = (1.0, 0.0) if not (over and under) else (over, under)
    over, under = (
        1.0 if scaling["factor"] <= 1 else 0.1 * each * math.log(scaling["factor"]) + 1.0 for each in usual
    )
    return over / under


def _longrope_factor(factor: float, original: int) -> float:
    """What cos and sin are multiplied by, https://arxiv.org/abs/2402.13753."""
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
