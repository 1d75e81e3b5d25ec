"""Tiny random models of every supported family, by transformers, and ours with the same weights."""

from copy import deepcopy
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from tutelage.model.config import ModelConfig
from tutelage.model.transformer import Transformer

VOCABULARY = 61
WINDOW = 8
CONTEXT = 32  # before llama3 scaling

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": CONTEXT,
}

CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "llama tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "llama one head": LlamaConfig(**SHAPE | {"num_attention_heads": 1, "num_key_value_heads": 1}),
    "llama 3.1": LlamaConfig(**SHAPE, rope_parameters=LLAMA3),
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen2 window": Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "mistral window": MistralConfig(**SHAPE, sliding_window=WINDOW),
    "mistral head_dim": MistralConfig(**SHAPE, sliding_window=None, head_dim=16),
}


def oracle(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model of transformers, every parameter random (norms and biases too)."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(deepcopy(CONFIGS[name])).eval()  # which it will write into
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in key else 0.0, 0.3)
    return model.to(dtype)


def ours(model: PreTrainedModel) -> Transformer:
    """Our model with the weights of `model`, handed over by their names."""
    copy = Transformer(ModelConfig.from_hf(model.config.to_dict())).to(model.dtype)
    state = model.state_dict()
    if copy.config.tied:
        state.pop("lm_head.weight")
    copy.load_state_dict(state)
    return copy.eval()


def random_tokens(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    """(rows, length) tokens, none of them control tokens."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def positions_of(tokens: torch.Tensor) -> torch.Tensor:
    """0, 1, 2, ... in every row."""
    return torch.arange(tokens.shape[1]).expand(len(tokens), -1)
