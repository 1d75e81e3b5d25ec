"""params.json, beside the weights of Meta and of torchllms, as the words of a config.json and back.

Both have the same keys, but not for the width of the MLP: `ffn_dim_multiplier` is of two thirds of 4 dim in
Meta's, of dim in torchllms'. What is read has its width from the weights.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutelage.checkpoint.config_values import check_values
from tutelage.checkpoint.json_file import read_object
from tutelage.checkpoint.peft_config import is_number
from tutelage.checkpoint.source import EMBEDDING
from tutelage.errors import UserError
from tutelage.model.config import ModelConfig
from tutelage.model.roles import PARAMETER as ROLES

PARAMS = "params.json"
SCALING = {  # what use_scaled_rope stands for in Meta's program
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SCALING_TIED = SCALING | {"factor": 32.0}  # of Llama 3.2's small models, which alone are tied
LLAMA3_VOCABULARY = 128_000  # tokens at least; then come control tokens
_OLMO2_EOS, _OLMO2_PAD = 100_257, 100_277
_REQUIRED = ("dim", "n_layers", "n_heads", "norm_eps")
_TEXT = ("bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings")  # which config.json knows
_NOT_A_TEXT_MODEL = ("vision_model", "moe_args", "quantization_args", "lora_args", "vision_chunk_size")


def config_of(where: Path, shapes: Mapping[str, tuple[int, ...]], *, tied: bool) -> ModelConfig:
    """The shape of the model whose params.json is `where` and whose whole tensors have these shapes."""
    params = read_object(where)
    _refuse(params, where)
    vocab_size, ffn_dim = _rows(shapes, EMBEDDING), _rows(shapes, "model.layers.0.mlp.gate_proj.weight")
    said = params.get("vocab_size", -1)
    if said not in (-1, vocab_size) and vocab_size:
        raise UserError(
            f"{where}: vocab_size = {said!r}, and the embedding beside it has {vocab_size} rows; write the "
            "latter, or -1, which leaves it to the weights"
        )
    biased = "model.layers.0.self_attn.q_proj.bias" in shapes
    if bool(params.get("attn_proj_bias", biased)) != biased:
        raise UserError(
            f"{where}: attn_proj_bias = {params['attn_proj_bias']}, and the weights beside it have "
            f"{'biases' if biased else 'none'}"
        )
    olmo2 = "model.layers.0.self_attn.q_norm.weight" in shapes
    if bool(params.get("olmo2_arch", olmo2)) != olmo2:
        raise UserError(
            f"{where}: olmo2_arch = {params['olmo2_arch']}, and the weights beside it have "
            f"{'norms' if olmo2 else 'no norms'} of queries and keys"
        )
    if olmo2 and biased:
        raise UserError(f"{where}: the weights beside it are OLMo 2's, and have biases, which that has not")
    llama3 = vocab_size >= LLAMA3_VOCABULARY
    theta = float(params.get("rope_theta") or 10_000.0)
    values: dict[str, Any] = {
        "model_type": "olmo2" if olmo2 else "qwen2" if biased else "llama",
        "vocab_size": vocab_size,
        "hidden_size": params["dim"],
        "intermediate_size": ffn_dim,
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": params["n_heads"],
        "num_key_value_heads": params.get("n_kv_heads") or params["n_heads"],
        "head_dim": params.get("head_dim") or params["dim"] // params["n_heads"],
        "rms_norm_eps": params["norm_eps"],
        "rope_theta": theta,
        "rope_scaling": _scaling(params, tied),
        "max_position_embeddings": params.get("max_seq_len") or _positions(params, llama3, theta),
        "tie_word_embeddings": tied,
        "use_role_embeddings": ROLES in shapes,
        "role_embeddings_init": params.get("role_embeddings_init"),
        "bos_token_id": 128_000 if llama3 else 1,
        "eos_token_id": [128_001, 128_009] if llama3 else 2,
    }
    if olmo2:
        values |= {"bos_token_id": None, "eos_token_id": _OLMO2_EOS, "pad_token_id": _OLMO2_PAD}
    beside = where.parent / "config.json"  # torchllms copies it from the model that it converts
    if beside.exists():
        known = read_object(beside)
        values |= {key: known[key] for key in _TEXT if known.get(key) is not None}
    check_values(values, where)
    return ModelConfig.from_hf(values, where=str(where))


def meta_params(values: Mapping[str, Any]) -> dict[str, Any]:
    """What Meta's program reads of a model with this config.json."""
    dim, ffn_dim = values["hidden_size"], values["intermediate_size"]
    params: dict[str, Any] = {
        "dim": dim,
        "n_layers": values["num_hidden_layers"],
        "n_heads": values["num_attention_heads"],
        "n_kv_heads": values["num_key_value_heads"],
        "vocab_size": values["vocab_size"],
        **meta_width(dim, ffn_dim),
        "norm_eps": values["rms_norm_eps"],
        "rope_theta": values["rope_theta"],
    }
    return params | ({"use_scaled_rope": True} if values.get("rope_scaling") else {})


def torchllms_params(values: Mapping[str, Any], *, biased: bool) -> dict[str, Any]:
    """What torchllms reads of a model with this config.json; `biased`: queries, keys and values are."""
    dim, ffn_dim = values["hidden_size"], values["intermediate_size"]
    return {
        "dim": dim,
        "head_dim": values["head_dim"],
        "n_layers": values["num_hidden_layers"],
        "n_heads": values["num_attention_heads"],
        "n_kv_heads": values["num_key_value_heads"],
        "vocab_size": values["vocab_size"],
        "multiple_of": math.gcd(ffn_dim, 256),
        "ffn_dim_multiplier": ffn_dim / dim,
        "tie_word_embeddings": values["tie_word_embeddings"],
        "norm_eps": values["rms_norm_eps"],
        "max_seq_len": values["max_position_embeddings"],
        "attn_proj_bias": biased,
        "rope_theta": values["rope_theta"],
        "rope_scaling": values.get("rope_scaling") or {},
        "use_role_embeddings": values.get("use_role_embeddings", False),
        "role_embeddings_init": values.get("role_embeddings_init", "zeros"),
        "olmo2_arch": values["model_type"] == "olmo2",
    }


def meta_width(dim: int, ffn_dim: int) -> dict[str, Any]:
    """`multiple_of` and, where needed, `ffn_dim_multiplier`, of which Meta's formula makes `ffn_dim`."""
    plain = int(8 * dim / 3)
    for multiplier in (
        None,
        1.3,
        1.5,
        1.0,
        ffn_dim / plain,
        (ffn_dim + 0.5) / plain,
    ):  # its own models' first
        for multiple in (256, 1024, 4096, math.gcd(ffn_dim, 256)):
            if meta_ffn_dim(dim, multiple, multiplier) == ffn_dim:
                more = {} if multiplier is None else {"ffn_dim_multiplier": multiplier}
                return {"multiple_of": multiple, **more}
    raise AssertionError(f"no multiplier makes {ffn_dim} of {dim}")


def meta_ffn_dim(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """The width of the MLP in Meta's program."""
    width = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return multiple_of * -(-width // multiple_of)


def _refuse(params: Mapping[str, Any], where: Path) -> None:
    missing = [key for key in _REQUIRED if key not in params]
    if missing:
        raise UserError(f"{where} has no {', '.join(missing)}")
    for key in (*_REQUIRED, "n_kv_heads", "head_dim", "rope_theta", "max_seq_len"):
        value = params.get(key)
        if value is not None and (not is_number(value) or value <= 0):
            raise UserError(f"{where}: {key} = {value!r}, wanted a number above 0")
    for key in ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim"):
        if int(params.get(key) or 1) != (params.get(key) or 1):
            raise UserError(f"{where}: {key} = {params[key]!r}, wanted a whole number")
    odd = [key for key in _NOT_A_TEXT_MODEL if params.get(key) not in (None, -1)]
    if odd:
        raise UserError(
            f"{where}: {odd[0]} is of models that are more than text in full weights; not supported"
        )


def _scaling(params: Mapping[str, Any], tied: bool) -> dict[str, Any] | None:
    if params.get("rope_scaling"):
        return params["rope_scaling"]
    if not params.get("use_scaled_rope"):
        return None
    # Meta's program has 8 for all; its 3.2 models were trained, and are converted by Hugging Face, with 32.
    return SCALING_TIED if tied else SCALING


def _positions(params: Mapping[str, Any], llama3: bool, theta: float) -> int:
    """No key says it: what transformers' converter takes for Llama 3.1, 3, Code Llama, 2 and 1."""
    if llama3:
        return 131_072 if params.get("use_scaled_rope") else 8192
    if theta == 1e6:
        return 16_384
    return 2048 if params["norm_eps"] == 1e-6 else 4096


def _rows(shapes: Mapping[str, tuple[int, ...]], name: str) -> int:
    return shapes[name][0] if name in shapes else 0
