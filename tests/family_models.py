"""A tiny random model of every family by transformers: adding a family is adding a row here."""

from copy import deepcopy
from functools import cache
from typing import Any

import torch
from tiny_models import CONTEXT, LLAMA3, SHAPE, WINDOW, positions_of
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from tutelage.data.batch import Batch
from tutelage.model.config import ModelConfig
from tutelage.model.transformer import Transformer

LONG = 70  # past both

_SHAPE = SHAPE | {"num_hidden_layers": 3}
_LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 8.0}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "original_max_position_embeddings": CONTEXT,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 2.0, 4.0, 8.0],
    "original_max_position_embeddings": CONTEXT,
}
_THREE_QUARTERS = {"partial_rotary_factor": 0.75} | {
    key: value[:3] if isinstance(value, list) else value for key, value in _LONGROPE.items()
}
_QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
_GEMMA = {"head_dim": 16, "tie_word_embeddings": True}
_GEMMA3_ROPE = {
    "full_attention": _LINEAR,
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}

MODELS: dict[str, PretrainedConfig] = {
    "Llama 2": LlamaConfig(**_SHAPE | {"num_key_value_heads": 4}),
    "Llama 2, linear": LlamaConfig(**_SHAPE, rope_parameters=_LINEAR),
    "Llama 3": LlamaConfig(**_SHAPE, rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
    "Llama 3.1": LlamaConfig(**_SHAPE, rope_parameters=LLAMA3),
    "Llama 3.2": LlamaConfig(**_SHAPE, rope_parameters=LLAMA3, tie_word_embeddings=True),
    "SmolLM2": LlamaConfig(**_SHAPE, tie_word_embeddings=True),
    "SmolLM3": SmolLM3Config(**_SHAPE, no_rope_layer_interval=2),
    "SmolLM3, windows": SmolLM3Config(
        **_SHAPE, no_rope_layers=[1, 0, 1], use_sliding_window=True, sliding_window=WINDOW
    ),
    "Mistral": MistralConfig(**_SHAPE, sliding_window=WINDOW),
    "Qwen 2.5": Qwen2Config(**_SHAPE, **_QWEN_WINDOW),
    "Qwen 2.5, yarn": Qwen2Config(**_SHAPE, rope_parameters=_YARN, tie_word_embeddings=True),
    "Qwen 3": Qwen3Config(**_SHAPE, **_QWEN_WINDOW, head_dim=16),
    "OLMo 2": Olmo2Config(**_SHAPE),
    "Gemma 1": GemmaConfig(**_SHAPE | {"num_key_value_heads": 1}, **_GEMMA),
    "Gemma 2": Gemma2Config(
        **_SHAPE,
        **_GEMMA,
        query_pre_attn_scalar=12,
        sliding_window=WINDOW,
        attn_logit_softcapping=1.5,
        final_logit_softcapping=3.0,
    ),
    "Gemma 3": Gemma3TextConfig(
        **_SHAPE,
        **_GEMMA,
        query_pre_attn_scalar=12,
        sliding_window=WINDOW,
        sliding_window_pattern=2,
        rope_parameters=_GEMMA3_ROPE,
    ),
    "Phi-3 4k": Phi3Config(**_SHAPE, sliding_window=WINDOW),
    "Phi-3 128k": Phi3Config(**_SHAPE, original_max_position_embeddings=CONTEXT, rope_parameters=_LONGROPE),
    "Phi-4-mini": Phi3Config(
        **_SHAPE,
        original_max_position_embeddings=CONTEXT,
        rope_parameters=_THREE_QUARTERS,
        tie_word_embeddings=True,
    ),
}


@cache
def oracle(name: str) -> PreTrainedModel:
    """The model of transformers, every parameter random, in the attention that has caps of scores."""
    return randomised(AutoModelForCausalLM, deepcopy(MODELS[name]))


def randomised(kind: Any, config: PretrainedConfig) -> PreTrainedModel:
    """A model of a class of transformers, every parameter random, norms around what changes nothing."""
    torch.manual_seed(0)
    model = kind.from_config(config, attn_implementation="eager").eval()
    around = 0.0 if config.model_type.startswith("gemma") else 1.0
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.normal_(around if "norm" in key else 0.0, 0.3)
    return model


@cache
def ours(name: str) -> Transformer:
    """Ours with its weights."""
    theirs = oracle(name)
    model = Transformer(ModelConfig.from_hf(theirs.config.to_dict()))
    state = theirs.state_dict()
    if model.config.tied:
        state.pop("lm_head.weight")
    model.load_state_dict(state)
    return model.eval()


def some_tokens(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    """(rows, length) tokens, none of them control tokens."""
    return torch.randint(3, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


def batch_of(tokens: torch.Tensor) -> Batch:
    """Rows that learn to say their own next token, all but the last."""
    targets = torch.cat([tokens[:, 1:], tokens[:, :1]], dim=1)
    weights = torch.ones(tokens.shape)
    weights[:, -1] = 0
    zeros = torch.zeros_like(tokens)
    return Batch(tokens, targets, weights, positions_of(tokens), zeros, zeros)


def logits_of(model: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    """(B, T, V) of rows that are one document each."""
    with torch.no_grad():
        return model.unembed(model(tokens, positions_of(tokens)))
