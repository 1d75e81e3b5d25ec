"""What a value in a config.json may be, whatever it means: checked before anything is computed with it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tutelage.errors import UserError
from tutelage.model.families import FULL, SLIDING

_MOST, _MOST_LAYERS = (1 << 31) - 1, 10_000
_SMALLEST, _LARGEST = 1e-18, 1e18  # beyond which float32 soon has zeros and infinities


def check_values(values: dict[str, Any], where: Path) -> None:
    """Refuse a value of the wrong type or beyond reason; keys that are not there, or not known, are not."""
    _check(values, _RULES, "", where)
    for key in _ROPES:
        rope = values.get(key) or {}
        _check(rope, _ROPE_RULES, f"{key}.", where)
        for kind in (FULL, SLIDING):  # Gemma 3 has one for each
            _check(rope.get(kind) or {}, _ROPE_RULES, f"{key}.{kind}.", where)


def _check(values: Mapping[str, Any], rules: "_Rules", inside: str, where: Path) -> None:
    for keys, wanted, fits in rules:
        for key in keys:
            if key in values and not fits(values[key]):
                raise UserError(f"{where}: {inside}{key} = {repr(values[key])[:80]}, wanted {wanted}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _MOST


def _is_context(value: Any) -> bool:
    return _is_count(value) and value > 1  # by whose logarithm longrope divides


def _is_place(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MOST


def _is_depth(value: Any) -> bool:
    return _is_count(value) and value <= _MOST_LAYERS


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= _LARGEST  # which NaN and infinity are not


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value >= _SMALLEST


def _is_share(value: Any) -> bool:
    return _is_positive(value) and value <= 1


def _is_factors(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_positive, value))


def _is_token(value: Any) -> bool:
    return type(value) is int and -1 <= value <= _MOST  # some files say −1 for none


def _is_tokens(value: Any) -> bool:
    return value is None or all(map(_is_token, value if isinstance(value, list) else [value]))


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _is_switches(value: Any) -> bool:
    return isinstance(value, list) and all(each in (0, 1) for each in value)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_word(value: Any) -> bool:
    return isinstance(value, str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _or_null(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


_Rules = list[tuple[tuple[str, ...], str, Callable[[Any], bool]]]  # keys, what is wanted, whether it is that

_ROPES = ("rope_parameters", "rope_scaling")
_SIZES = ("hidden_size", "num_attention_heads", "vocab_size", "intermediate_size")
_COUNTS = ("num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window")
_COUNTS += ("sliding_window_pattern", "no_rope_layer_interval")
_CONTEXT = ("original_max_position_embeddings",)
_NUMBERS = ("rms_norm_eps", "rope_theta", "rope_local_base_freq", "initializer_range")
_NUMBERS += ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping")
_FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window", "use_role_embeddings")

_POSITIVE = f"a number above 0, from {_SMALLEST:g} to {_LARGEST:g}, or null"

_RULES: _Rules = [
    (_SIZES, f"a whole number from 1 to {_MOST:,}", _is_count),
    (("num_hidden_layers",), f"a whole number from 1 to {_MOST_LAYERS:,}", _is_depth),
    (_COUNTS, f"a whole number from 1 to {_MOST:,}, or null", _or_null(_is_count)),
    (_CONTEXT, f"a whole number from 2 to {_MOST:,}, or null", _or_null(_is_context)),
    (("max_window_layers",), "a whole number from 0, or null", _or_null(_is_place)),
    (_NUMBERS, _POSITIVE, _or_null(_is_positive)),
    (("partial_rotary_factor",), "a number above 0, to 1, or null", _or_null(_is_share)),
    (_FLAGS, "true, false or null", _or_null(_is_flag)),
    (("bos_token_id", "pad_token_id"), "a token id or null", _or_null(_is_token)),
    (("eos_token_id",), "a token id, a list of such, or null", _is_tokens),
    (("model_type", "dtype", "torch_dtype"), "a word", _or_null(_is_word)),
    (("architectures", "layer_types"), "a list of words, or null", _or_null(_is_words)),
    (("no_rope_layers",), "a list of 0 and 1, or null", _or_null(_is_switches)),
    ((*_ROPES, "id2label"), "an object, or null", _or_null(_is_object)),
]

_ROPE_NUMBERS = ("rope_theta", "factor", "low_freq_factor", "high_freq_factor", "attention_factor")
_ROPE_NUMBERS += ("beta_fast", "beta_slow")
_ROPE_RULES: _Rules = [
    (_ROPE_NUMBERS, _POSITIVE, _or_null(_is_positive)),
    (("mscale", "mscale_all_dim"), f"a number from 0 to {_LARGEST:g}, or null", _or_null(_is_number)),
    (("partial_rotary_factor",), "a number above 0, to 1, or null", _or_null(_is_share)),
    (_CONTEXT, f"a whole number from 2 to {_MOST:,}, or null", _or_null(_is_context)),
    (("short_factor", "long_factor"), "a list of numbers above 0", _is_factors),
    (("rope_type", "type"), "a word, or null", _or_null(_is_word)),
    (("truncate",), "true, false or null", _or_null(_is_flag)),
    ((FULL, SLIDING), "an object, or null", _or_null(_is_object)),
]
