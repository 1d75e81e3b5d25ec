"""GGUF files for tests, written the way llama.cpp's converter writes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from transformers import PreTrainedModel

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_model(
    path: Path,
    model: PreTrainedModel,
    *,
    matrices: GGMLQuantizationType = GGMLQuantizationType.F32,
    settings: dict[str, Any] | None = None,
    extra: dict[str, np.ndarray] | None = None,
    without: Sequence[str] = (),
    tensors_per_part: int = 0,
) -> Path:
    """`model` as GGUF, matrices of the given type where their rows divide into blocks; `settings` go last.

    With `tensors_per_part` in several files, of which the first is returned."""
    config = model.config
    architecture = "llama" if config.model_type == "mistral" else config.model_type
    writer = GGUFWriter(path, architecture, split_max_tensors=tensors_per_part)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    window = getattr(config, "sliding_window", None)
    values = {
        f"{architecture}.block_count": config.num_hidden_layers,
        f"{architecture}.context_length": config.max_position_embeddings,
        f"{architecture}.embedding_length": config.hidden_size,
        f"{architecture}.feed_forward_length": config.intermediate_size,
        f"{architecture}.attention.head_count": config.num_attention_heads,
        f"{architecture}.attention.head_count_kv": config.num_key_value_heads,
        f"{architecture}.attention.key_length": head_dim,
        f"{architecture}.attention.value_length": head_dim,
        f"{architecture}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{architecture}.rope.freq_base": config.rope_parameters["rope_theta"],
        **({f"{architecture}.attention.sliding_window": window} if window else {}),
        f"{architecture}.vocab_size": config.vocab_size,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        **(settings or {}),
    }
    write_settings(writer, {key: value for key, value in values.items() if key not in without})
    state = model.state_dict()
    tensors = {_name(key): _permuted(key, tensor.numpy(), config) for key, tensor in state.items()}
    if config.tie_word_embeddings:
        del tensors["output.weight"]
    for name, tensor in (tensors | (extra or {})).items():
        kind = _kind(name, tensor, matrices)
        raw = tensor if kind == GGMLQuantizationType.F32 else gguf.quantize(tensor, kind)
        if name not in without:
            writer.add_tensor(name, np.ascontiguousarray(raw), raw_dtype=kind)
    write(writer, path)
    return next(iter(path.parent.glob(f"{path.stem}-00001-of-*.gguf")), path)


def write(writer: GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_settings(writer: GGUFWriter, settings: dict[str, Any]) -> None:
    for key, value in settings.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


def _name(key: str) -> str:
    stem, _, suffix = key.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, layer, rest = stem.split(".", 3)
        return f"blk.{layer}.{_NAMES[rest]}.{suffix}"
    return f"{_NAMES[stem]}.{suffix}"


def _permuted(key: str, tensor: np.ndarray, config: Any) -> np.ndarray:
    """Llama's query and key rows as LlamaModel.permute of convert_hf_to_gguf.py orders them."""
    if config.model_type == "qwen2" or not ("q_proj" in key or "k_proj" in key):
        return tensor
    heads = config.num_attention_heads if "q_proj" in key else config.num_key_value_heads
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def _kind(name: str, tensor: np.ndarray, matrices: GGMLQuantizationType) -> GGMLQuantizationType:
    elements, _ = gguf.GGML_QUANT_SIZES[matrices]
    fits = tensor.ndim == 2 and tensor.shape[-1] % elements == 0
    return matrices if fits else GGMLQuantizationType.F32
