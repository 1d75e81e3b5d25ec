"""The families of models that are known, a row of settings each: docs/families.md says how to add one.

A row holds what the config.json of a family leaves unsaid, what stands for keys that a file leaves out (as in
transformers' class of the family), and the keys it has beside those of every family.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Values = Mapping[str, Any]  # of a parsed config.json
Windows = tuple[int | None, ...] | None  # of every layer; None: no layer has one

SLIDING, FULL = "sliding_attention", "full_attention"
_CAUSAL, _SCORING = "ForCausalLM", "ForSequenceClassification"
_SILU = {"hidden_act": ("silu", "swish")}
_NO_BIAS = {"attention_bias": (False, None)}


def _no_windows(values: Values) -> Windows:
    return None


def _every_layer(values: Values) -> Windows:
    window = values.get("sliding_window")
    return (window,) * values["num_hidden_layers"] if window else None


def _by_types(values: Values, types: list[str]) -> Windows:
    """The window in layers that `layer_types` call sliding, or that `types` do where the file has none."""
    types, window = values.get("layer_types") or types, values.get("sliding_window")
    if not window or SLIDING not in types:
        return None
    if FULL not in types:
        return _every_layer(values)
    return tuple(window if kind == SLIDING else None for kind in types)


def _after_full(values: Values) -> Windows:
    """Qwen's rule: the first max_window_layers see everything."""
    if not values.get("use_sliding_window"):
        return None
    full, n_layers = values.get("max_window_layers", 28), values["num_hidden_layers"]
    return _by_types(values, [SLIDING if layer >= full else FULL for layer in range(n_layers)])


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """What is common to the models of one `model_type`."""

    architecture: str  # of a language model: the class in transformers
    traits: Values = field(default_factory=dict)  # fields of ModelConfig that no config.json says
    defaults: Values = field(default_factory=dict)  # by key
    fixed: Mapping[str, tuple[Any, ...]]  # by key: values of one meaning; the first is written
    numbers: Mapping[str, str] = field(default_factory=dict)  # fields of ModelConfig by key
    windows: Callable[[Values], Windows] = _no_windows
    written: tuple[str, ...] = ()  # keys about windows and rotary embeddings that others lack

    @property
    def scoring(self) -> str:
        """The class of a model with a score head."""
        return self.architecture.replace(_CAUSAL, _SCORING)


_QWEN_WINDOWS = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")

FAMILIES: dict[str, Family] = {  # by model_type
    "llama": Family(  # Llama 2, 3, 3.1, 3.2, SmolLM2
        architecture="LlamaForCausalLM",
        fixed=_SILU | _NO_BIAS | {"mlp_bias": (False, None)},
    ),
    "mistral": Family(
        architecture="MistralForCausalLM",
        defaults={"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072},
        fixed=_SILU,
        windows=_every_layer,
        written=("sliding_window",),
    ),
    "qwen2": Family(  # Qwen 2 and 2.5
        architecture="Qwen2ForCausalLM",
        traits={"qkv_bias": True},
        defaults={"sliding_window": 4096, "max_position_embeddings": 32768},
        fixed=_SILU,
        windows=_after_full,
        written=_QWEN_WINDOWS,
    ),
}


def is_scoring(architecture: str) -> bool:
    """Whether a class in transformers has a score head."""
    return architecture.endswith(_SCORING)
