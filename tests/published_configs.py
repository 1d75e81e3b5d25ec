"""What published config.json files of every family say, harmless keys included, and their sizes."""

from typing import Any

_OLD: dict[str, Any] = {"transformers_version": "4.42.3", "torch_dtype": "bfloat16", "use_cache": True}
_OLD |= {"initializer_range": 0.02, "attention_dropout": 0.0}
_LLAMA3 = {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3"}
_TEXT_OF_GEMMA3 = {  # of the 4B model's text_config, which leaves out what is transformers' default
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "model_type": "gemma3_text",
    "num_hidden_layers": 34,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
}


def _sizes(vocabulary: int, dim: int, ffn: int, layers: int, heads: int, kv: int, positions: int) -> dict:
    return {
        "vocab_size": vocabulary,
        "hidden_size": dim,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "max_position_embeddings": positions,
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "Llama 2 7B": _OLD
    | _sizes(32000, 4096, 11008, 32, 32, 32, 4096)
    | {"model_type": "llama", "_name_or_path": "meta-llama/Llama-2-7b-hf", "hidden_act": "silu"}
    | {"pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False}
    | {"bos_token_id": 1, "eos_token_id": 2, "architectures": ["LlamaForCausalLM"]},
    "Llama 3.2 1B": _OLD
    | _sizes(128256, 2048, 8192, 16, 32, 8, 131072)
    | {"model_type": "llama", "attention_bias": False, "mlp_bias": False, "head_dim": 64}
    | {"rope_scaling": _LLAMA3 | {"original_max_position_embeddings": 8192}, "rope_theta": 500000.0}
    | {"rms_norm_eps": 1e-05, "tie_word_embeddings": True, "eos_token_id": [128001, 128008, 128009]},
    "SmolLM2 135M Instruct": _OLD
    | _sizes(49152, 576, 1536, 30, 9, 3, 8192)
    | {"model_type": "llama", "is_llama_config": True, "rope_interleaved": False, "rope_theta": 100000}
    | {"transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}, "rms_norm_eps": 1e-05}
    | {"tie_word_embeddings": True, "pretraining_tp": 1},
    "SmolLM3 3B": _OLD
    | _sizes(128256, 2048, 11008, 36, 16, 4, 65536)
    | {"model_type": "smollm3", "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9}
    | {"layer_types": ["full_attention"] * 36, "max_window_layers": 28, "sliding_window": None}
    | {"use_sliding_window": False, "pretraining_tp": 2, "rope_theta": 5000000.0, "rms_norm_eps": 1e-06}
    | {"rope_scaling": None, "mlp_bias": False, "attention_bias": False},
    "Mistral 7B v0.1": _OLD
    | _sizes(32000, 4096, 14336, 32, 32, 8, 32768)
    | {"model_type": "mistral", "sliding_window": 4096, "rope_theta": 10000.0, "hidden_act": "silu"}
    | {"rms_norm_eps": 1e-05, "tie_word_embeddings": False},
    "Qwen2.5 7B Instruct with yarn": _OLD
    | _sizes(152064, 3584, 18944, 28, 28, 4, 32768)
    | {"model_type": "qwen2", "max_window_layers": 28, "sliding_window": 131072, "rope_theta": 1000000.0}
    | {"use_sliding_window": False, "rms_norm_eps": 1e-06, "use_mrope": False}
    | {"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}},
    "Qwen3 0.6B": _OLD
    | _sizes(151936, 1024, 3072, 28, 16, 8, 40960)
    | {"model_type": "qwen3", "head_dim": 128, "max_window_layers": 28, "sliding_window": None}
    | {"use_sliding_window": False, "rope_theta": 1000000, "rope_scaling": None, "rms_norm_eps": 1e-06}
    | {"tie_word_embeddings": True, "attention_bias": False},
    "OLMo 2 1B": _OLD
    | _sizes(100352, 2048, 8192, 16, 16, 16, 4096)
    | {"model_type": "olmo2", "hidden_act": "silu", "rms_norm_eps": 1e-06, "rope_theta": 500000}
    | {"rope_scaling": None, "tie_word_embeddings": False, "eos_token_id": 100257},
    "Gemma 2B": _OLD
    | _sizes(256000, 2048, 16384, 18, 8, 1, 8192)
    | {"model_type": "gemma", "head_dim": 256, "hidden_act": "gelu", "hidden_activation": None}
    | {"rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 10000.0},
    "Gemma 2 2B": _OLD
    | _sizes(256000, 2304, 9216, 26, 8, 4, 8192)
    | {"model_type": "gemma2", "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "sliding_window": 4096}
    | {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "rope_theta": 10000.0}
    | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "cache_implementation": "hybrid"}
    | {"rms_norm_eps": 1e-06},
    "Gemma 2 9B Instruct": _OLD
    | _sizes(256000, 3584, 14336, 42, 16, 8, 8192)
    | {"model_type": "gemma2", "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "sliding_window": 4096}
    | {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "rope_theta": 10000.0}
    | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "cache_implementation": "hybrid"}
    | {"rms_norm_eps": 1e-06, "sliding_window_size": 4096, "attention_bias": False},
    "Gemma 3 1B": _OLD
    | _sizes(262144, 1152, 6912, 26, 4, 1, 32768)
    | {"model_type": "gemma3_text", "head_dim": 256, "sliding_window": 512, "sliding_window_pattern": 6}
    | {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "rope_scaling": None}
    | {"attn_logit_softcapping": None, "final_logit_softcapping": None, "rope_theta": 1000000}
    | {"rope_local_base_freq": 10000, "cache_implementation": "hybrid", "rms_norm_eps": 1e-06},
    "Gemma 3 4B, the text": _TEXT_OF_GEMMA3,
    "Phi-3 mini 4k": _OLD
    | _sizes(32064, 3072, 8192, 32, 32, 32, 4096)
    | {"model_type": "phi3", "embd_pdrop": 0.0, "resid_pdrop": 0.0, "sliding_window": 2047}
    | {"original_max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "rope_scaling": None}
    | {"rope_theta": 10000.0, "attention_bias": False, "pad_token_id": 32000},
    "Phi-3 mini 128k": _OLD
    | _sizes(32064, 3072, 8192, 32, 32, 32, 131072)
    | {"model_type": "phi3", "embd_pdrop": 0.0, "resid_pdrop": 0.0, "sliding_window": 262144}
    | {"original_max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "rope_theta": 10000.0}
    | {"rope_scaling": {"long_factor": [2.0] * 48, "short_factor": [1.0] * 48, "type": "longrope"}},
    "Phi-4-mini": _OLD
    | _sizes(200064, 3072, 8192, 32, 24, 8, 131072)
    | {"model_type": "phi3", "embd_pdrop": 0.0, "resid_pdrop": 0.0, "sliding_window": 262144}
    | {"original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75, "tie_word_embeddings": True}
    | {"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False}
    | {"rope_scaling": {"long_factor": [2.0] * 48, "short_factor": [1.0] * 48, "type": "longrope"}}
    | {"rms_norm_eps": 1e-05, "rope_theta": 10000.0, "attention_bias": False},
}

COUNTS = {  # of parameters, as published
    "Llama 2 7B": 6_738_415_616,
    "Llama 3.2 1B": 1_235_814_400,
    "SmolLM2 135M Instruct": 134_515_008,
    "SmolLM3 3B": 3_075_098_624,
    "Mistral 7B v0.1": 7_241_732_096,
    "Qwen2.5 7B Instruct with yarn": 7_615_616_512,
    "Qwen3 0.6B": 596_049_920,
    "OLMo 2 1B": 1_484_916_736,
    "Gemma 2B": 2_506_172_416,
    "Gemma 2 2B": 2_614_341_888,
    "Gemma 2 9B Instruct": 9_241_705_984,
    "Gemma 3 1B": 999_885_952,
    "Gemma 3 4B, the text": 3_880_263_168,
    "Phi-3 mini 4k": 3_821_079_552,
    "Phi-3 mini 128k": 3_821_079_552,
    "Phi-4-mini": 3_836_021_760,
}
