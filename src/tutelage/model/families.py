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
# Fields of ModelConfig that a Llama has as they are by default, and what a model is that has them otherwise.
UNLIKE_LLAMA = {
    "qk_norm": "queries and keys are normalised",
    "norms": "what attention and MLP give is normalised",
    "norm": "norms multiply by their weights in another way",
    "activation": "the MLP has another activation",
    "fused": "projections are fused",
    "scaled_embeddings": "embeddings are scaled",
    "query_scalar": "attention scores are divided by another number",
    "attention_cap": "attention scores are soft-capped",
    "logit_cap": "logits are soft-capped",
    "rope_wide": "rotary embeddings turn in float32",
    "rope_layers": "some layers have no rotary embeddings",
    "partial_rotary": "rotary embeddings turn a part of each head",
    "local_theta": "layers with a window have a rope_theta of their own",
}
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


def _alternating(values: Values) -> Windows:
    n_layers = values["num_hidden_layers"]
    return _by_types(values, [FULL if layer % 2 else SLIDING for layer in range(n_layers)])


def _five_of_six(values: Values) -> Windows:
    """Gemma 3's rule; some files have another pattern."""
    n_layers, every = values["num_hidden_layers"], values.get("sliding_window_pattern") or 6
    return _by_types(values, [SLIDING if (layer + 1) % every else FULL for layer in range(n_layers)])


def _where_nothing_turns(values: Values) -> Windows:
    """SmolLM3's rule."""
    if not values.get("use_sliding_window"):
        return None
    turn = _all_but_some_turn(values)
    return _by_types(values, [FULL if turns else SLIDING for turns in turn])


def _all_turn(values: Values) -> None:
    return None


def _all_but_some_turn(values: Values) -> tuple[bool, ...]:
    """SmolLM3's rule (https://arxiv.org/abs/2501.18795): all layers but every fourth, or as the file says."""
    n_layers, every = values["num_hidden_layers"], values.get("no_rope_layer_interval") or 4
    given = values.get("no_rope_layers") or [(layer + 1) % every for layer in range(n_layers)]
    return tuple(bool(turns) for turns in given[:n_layers])


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """What is common to the models of one `model_type`."""

    architecture: str  # of a language model: the class in transformers
    traits: Values = field(default_factory=dict)  # fields of ModelConfig that no config.json says
    defaults: Values = field(default_factory=dict)  # by key
    fixed: Mapping[str, tuple[Any, ...]]  # by key: values of one meaning; the first is written
    numbers: Mapping[str, str] = field(default_factory=dict)  # fields of ModelConfig by key
    windows: Callable[[Values], Windows] = _no_windows
    ropes: tuple[str, ...] = ("default", "linear", "llama3", "yarn")  # rope types
    rope_names: Mapping[str, str] = field(default_factory=dict)  # other names of them
    rope_layers: Callable[[Values], tuple[bool, ...] | None] = _all_turn
    written: tuple[str, ...] = ()  # keys about windows and rotary embeddings that others lack
    read: tuple[str, ...] = ()  # more of them, in older files
    again: Mapping[str, str] = field(default_factory=dict)  # keys that say once more what another says
    code: tuple[str, ...] = ()  # what auto_map names in published files, and transformers' class computes too

    @property
    def scoring(self) -> str:
        """The class of a model with a score head."""
        name = self.architecture.replace("Gemma3", "Gemma3Text")  # the plain name is of the one with images
        return name.replace(_CAUSAL, _SCORING)


_QWEN_WINDOWS = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")
_GELU = {"hidden_act": ("gelu_pytorch_tanh", "gelu", None), "hidden_activation": ("gelu_pytorch_tanh",)}
_GEMMA = {"norm": "centred", "activation": "gelu_tanh", "scaled_embeddings": True}
_GEMMA_SIZES = {  # published files of Gemma 3 leave out what is as here
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}

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
        defaults={"num_key_value_heads": 32, "sliding_window": 4096, "max_position_embeddings": 32768},
        fixed=_SILU,
        windows=_after_full,
        written=_QWEN_WINDOWS,
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        traits={"qk_norm": "head"},
        defaults={"num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768}
        | {"sliding_window": 4096},
        fixed=_SILU | _NO_BIAS,
        windows=_after_full,
        written=_QWEN_WINDOWS,
    ),
    "olmo2": Family(
        architecture="Olmo2ForCausalLM",
        traits={"qk_norm": "whole", "norms": "after", "norm": "wide", "rope_wide": True},
        defaults={"rms_norm_eps": 1e-5, "pad_token_id": 1, "eos_token_id": 50279},
        fixed=_SILU | _NO_BIAS,
    ),
    "gemma": Family(
        architecture="GemmaForCausalLM",
        traits=_GEMMA,
        defaults=_GEMMA_SIZES
        | {"hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28}
        | {"num_attention_heads": 16, "num_key_value_heads": 16, "max_position_embeddings": 8192},
        fixed=_NO_BIAS
        | {"hidden_act": _GELU["hidden_act"], "hidden_activation": (None, "gelu_pytorch_tanh")},
    ),
    "gemma2": Family(
        architecture="Gemma2ForCausalLM",
        traits=_GEMMA | {"norms": "around"},
        defaults=_GEMMA_SIZES
        | {"max_position_embeddings": 8192}
        | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        fixed=_GELU | _NO_BIAS,
        numbers={
            "query_pre_attn_scalar": "query_scalar",
            "attn_logit_softcapping": "attention_cap",
            "final_logit_softcapping": "logit_cap",
        },
        windows=_alternating,
        written=("sliding_window", "layer_types"),
        again={"sliding_window_size": "sliding_window"},  # in the 9B's and the 27B's files
    ),
    "gemma3_text": Family(
        architecture="Gemma3ForCausalLM",
        traits=_GEMMA | {"norms": "around", "qk_norm": "head"},
        defaults=_GEMMA_SIZES
        | {"vocab_size": 262208, "max_position_embeddings": 131072}
        | {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
        fixed=_GELU | _NO_BIAS,
        numbers={"query_pre_attn_scalar": "query_scalar", "final_logit_softcapping": "logit_cap"},
        windows=_five_of_six,
        written=("sliding_window", "layer_types", "rope_local_base_freq"),
        read=("sliding_window_pattern",),
    ),
    "phi3": Family(  # Phi-3, 3.5, 4 and 4-mini
        architecture="Phi3ForCausalLM",
        traits={"fused": True},
        defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "bos_token_id": 1}
        | {"original_max_position_embeddings": 4096, "eos_token_id": 32000, "pad_token_id": 32000},
        fixed=_SILU | _NO_BIAS,
        windows=_every_layer,
        ropes=("default", "longrope"),
        rope_names={"su": "longrope", "yarn": "longrope"},  # yarn as in the first files, with longrope's keys
        written=("sliding_window", "partial_rotary_factor", "original_max_position_embeddings"),
        code=("configuration_phi3.Phi3Config", "modeling_phi3.Phi3ForCausalLM"),
    ),
    "smollm3": Family(
        architecture="SmolLM3ForCausalLM",
        defaults={"num_key_value_heads": 4, "max_position_embeddings": 32768, "rope_theta": 2e6}
        | {"tie_word_embeddings": True, "bos_token_id": 128000, "eos_token_id": 128001}
        | {"pad_token_id": 128004},
        fixed=_SILU | _NO_BIAS | {"mlp_bias": (False, None)},
        windows=_where_nothing_turns,
        rope_layers=_all_but_some_turn,
        written=("use_sliding_window", "sliding_window", "layer_types", "no_rope_layers"),
        read=("no_rope_layer_interval",),
    ),
}


def is_scoring(architecture: str) -> bool:
    """Whether a class in transformers has a score head."""
    return architecture.endswith(_SCORING)
