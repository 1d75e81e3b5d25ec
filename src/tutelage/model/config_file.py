"""What Hugging Face's `config.json` says of a model, as fields of ModelConfig."""

from collections.abc import Mapping
from typing import Any, Literal

from tutelage.errors import UserError
from tutelage.model.config_keys import refuse_what_changes_arithmetic
from tutelage.model.config_rope import read_rope
from tutelage.model.families import FAMILIES, FULL, SLIDING, Family, is_scoring

_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")

# What null stands for too, where a family has no other.
_DEFAULTS = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6}


def fields_of(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields by their names in ModelConfig; what would be computed wrongly is refused."""
    name = values.get("model_type")
    if name not in FAMILIES:
        raise UserError(f"{where}: model_type {name!r} is not supported; supported are {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    known = {*family.numbers, *family.written, *family.read, *family.again}
    refuse_what_changes_arithmetic(values, known, family.fixed, where)
    said = {key: value for key, value in values.items() if value is not None or key not in _DEFAULTS}
    values = {**_DEFAULTS, **family.defaults, **said}
    if missing := [key for key in _REQUIRED if key not in values]:
        raise UserError(f"{where}: the keys {', '.join(missing)} are missing")
    n_heads, dim = values["num_attention_heads"], values["hidden_size"]
    head = _head(values, where)
    _check_layers(values, family, where)
    return {
        "vocab_size": values["vocab_size"],
        "dim": dim,
        "n_layers": values["num_hidden_layers"],
        "n_heads": n_heads,
        "n_kv_heads": values.get("num_key_value_heads") or n_heads,
        "head_dim": values.get("head_dim") or dim // n_heads,
        "ffn_dim": values["intermediate_size"],
        "max_positions": values["max_position_embeddings"],
        "norm_eps": values["rms_norm_eps"],
        **read_rope(values, family, where),
        "head": head,
        "tied": head == "lm" and values.get("tie_word_embeddings", False),
        "windows": family.windows(values),
        "role_embeddings": bool(values.get("use_role_embeddings")),
        "role_embeddings_init": str(values.get("role_embeddings_init") or "zeros"),
        "family": name,
        **named_tokens(values),
        "dtype": str(values.get("dtype") or values.get("torch_dtype") or "float32").removeprefix("torch."),
        **family.traits,
        **{field: values.get(key) for key, field in family.numbers.items()},
    }


def named_tokens(values: Mapping[str, Any]) -> dict[str, Any]:
    """The ids that a config.json or a generation_config.json names, as fields; −1 stands for none there."""
    eos = values.get("eos_token_id")
    ends = (_token(token) for token in (eos if isinstance(eos, list) else [eos]))
    return {
        "bos": _token(values.get("bos_token_id")),
        "eos": tuple(token for token in ends if token is not None),
        "pad": _token(values.get("pad_token_id")),
    }


def _token(value: Any) -> Any:
    return None if value == -1 else value


def _head(values: Mapping[str, Any], where: str) -> Literal["lm", "score"]:
    """Which head the architecture has; one of more than one label is refused."""
    if not any(is_scoring(str(name)) for name in values.get("architectures") or []):
        return "lm"
    key = "id2label" if values.get("id2label") is not None else "num_labels"
    labels = len(values[key]) if key == "id2label" else values.get(key, 2)  # transformers' default
    if labels != 1:
        raise UserError(
            f"{where}: {key} makes {labels} labels of a text; supported is 1, the score of a reward model"
        )
    return "score"


def _check_layers(values: Mapping[str, Any], family: Family, where: str) -> None:
    types, n_layers = values.get("layer_types") or [], values["num_hidden_layers"]
    for key, other in family.again.items():
        if values.get(key) not in (None, values.get(other)):
            raise UserError(f"{where}: {key} is {values[key]!r}, and {other} is {values.get(other)!r}")
    strange, mixed = set(types) - {SLIDING, FULL}, len(set(types)) > 1
    if strange or (mixed and "layer_types" not in family.written):
        raise UserError(f"{where}: layer_types = {types!r} is not supported for {values['model_type']}")
    if mixed and len(types) != n_layers:
        raise UserError(f"{where}: layer_types are {len(types)}, and num_hidden_layers is {n_layers}")
    turning = values.get("no_rope_layers") or []
    if "no_rope_layers" in family.written and 0 < len(turning) < n_layers:
        raise UserError(f"{where}: no_rope_layers are {len(turning)}, and num_hidden_layers is {n_layers}")
    full_layers = values.get("max_window_layers", 0) if "max_window_layers" in family.written else 0
    if full_layers is None and values.get("use_sliding_window"):
        raise UserError(f"{where}: max_window_layers = None, wanted a number: use_sliding_window is true")
    if "rope_local_base_freq" in family.written and not values.get("sliding_window"):
        raise UserError(
            f"{where}: sliding_window is missing, by which layers differ in {values['model_type']}"
        )
