"""What a value in a config.json may be, whatever it means: checked before anything is computed with it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tutelage.errors import UserError

_MOST, _MOST_LAYERS = (1 << 31) - 1, 10_000
_COUNTS = ("hidden_size", "num_attention_heads", "vocab_size", "intermediate_size")  # from 1
_OPTIONAL = ("num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window")  # or null
_NUMBERS = ("rms_norm_eps", "rope_theta", "initializer_range")  # above 0, or null
_FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window", "use_role_embeddings")
_TOKENS = ("bos_token_id", "pad_token_id")


def check_values(values: dict[str, Any], where: Path) -> None:
    """Refuse a value of the wrong type or beyond reason; keys that are not there, or not known, are not."""
    rules: list[tuple[tuple[str, ...], str, Callable[[Any], bool]]] = [
        (_COUNTS, f"a whole number from 1 to {_MOST:,}", _is_count),
        (("num_hidden_layers",), f"a whole number from 1 to {_MOST_LAYERS:,}", _is_depth),
        (_OPTIONAL, f"a whole number from 1 to {_MOST:,}, or null", lambda x: x is None or _is_count(x)),
        (_NUMBERS, "a number above 0, or null", lambda x: x is None or _is_positive(x)),
        (_FLAGS, "true, false or null", lambda x: x is None or isinstance(x, bool)),
        (_TOKENS, "a token id or null", lambda x: x is None or _is_token(x)),
        (("eos_token_id",), "a token id, a list of such, or null", _is_tokens),
        (("model_type", "dtype", "torch_dtype"), "a word", lambda x: x is None or isinstance(x, str)),
        (("architectures", "layer_types"), "a list of words, or null", _is_words),
        (("rope_parameters", "rope_scaling"), "an object of settings, or null", _is_rope),
    ]
    for keys, wanted, fits in rules:
        for key in keys:
            if key in values and not fits(values[key]):
                raise UserError(f"{where}: {key} = {repr(values[key])[:80]}, wanted {wanted}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _MOST


def _is_depth(value: Any) -> bool:
    return _is_count(value) and value <= _MOST_LAYERS


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def _is_token(value: Any) -> bool:
    return type(value) is int and -1 <= value <= _MOST  # some files say −1 for none


def _is_tokens(value: Any) -> bool:
    return value is None or all(map(_is_token, value if isinstance(value, list) else [value]))


def _is_words(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(word, str) for word in value))


def _is_rope(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict):
        return False
    words = (value.get(key) for key in ("rope_type", "type"))
    theta = value.get("rope_theta")
    plain = all(word is None or isinstance(word, str) for word in words)
    return plain and (theta is None or _is_positive(theta))
