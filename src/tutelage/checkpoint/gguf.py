"""llama.cpp's GGUF files of Llama, Mistral and Qwen 2, read as the Hugging Face model they came from."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from torch import Tensor

from tutelage.checkpoint.gguf_file import Header, Stored, header_of
from tutelage.checkpoint.rotary import rows_as_halves
from tutelage.errors import UserError
from tutelage.model.config import ModelConfig
from tutelage.model.rope import frequencies

_FAMILIES = {"llama": "llama", "qwen2": "qwen2"}  # Mistral comes as llama
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_FACTORS = "rope_freqs.weight"
_PLAIN = {GGMLQuantizationType.F16: torch.float16, GGMLQuantizationType.BF16: torch.bfloat16}
# Of llama3 scaling only the outcome is stored, so its settings are looked up: Llama 3.1's and 3.2's.
_LLAMA3_SCALINGS = [
    {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    for factor in (8.0, 32.0)
]


class GGUFSource:
    """The tensors of a GGUF file under Hugging Face names, decoded when asked."""

    def __init__(self, path: Path):
        self.where = str(path)
        self.problems: list[str] = []
        self._header = header_of(path)
        self._stored = {_hf_name(name): name for name in self._header.tensors if name != _ROPE_FACTORS}
        self.shapes = {name: self._header.tensors[stored].shape for name, stored in self._stored.items()}
        config = gguf_config(path)
        self._head_dim = config.head_dim
        # llama.cpp turns neighbours, Hugging Face halves; its converter reorders the rows of Llama only.
        self._interleaved = self._header.settings["general.architecture"] == "llama"
        self._find_problems()

    @property
    def dtype(self) -> torch.dtype:
        """float16 or bfloat16 where every matrix is stored so, else float32, to which blocks are decoded."""
        kinds = {stored.kind for stored in self._header.tensors.values() if len(stored.shape) > 1}
        return _PLAIN.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start..stop of a tensor, in Hugging Face's order, float32."""

        def read(first: int, last: int) -> Tensor:
            return torch.from_numpy(self._header.read(self._stored[name], first, last))

        if self._interleaved and ("q_proj" in name or "k_proj" in name):
            return rows_as_halves(read, start, stop, self._head_dim)
        return read(start, stop)

    def _find_problems(self) -> None:
        size = self._header.path.stat().st_size
        cut = [name for name, stored in self._header.tensors.items() if stored.end > size]
        if cut:
            self.problems.append(
                f"the file is truncated: {len(cut)} tensors, first {cut[0]}, lie past its end"
            )
        for kind in sorted({stored.kind for stored in self._header.tensors.values()}):
            if not _can_decode(kind):
                self.problems.append(f"weights of type {kind.name} cannot be decoded")


def gguf_config(path: Path) -> ModelConfig:
    """The shape of the model in a GGUF file."""
    header = header_of(path)
    settings = header.settings
    architecture = settings.get("general.architecture")
    if architecture not in _FAMILIES:
        raise UserError(f"{path}: architecture {architecture!r} is not supported; supported are llama, qwen2")
    if settings.get("split.count", 1) > 1:
        raise UserError(
            f"{path} is one of {settings['split.count']} parts; join them by llama-gguf-split --merge"
        )

    def setting(key: str, default: Any = None) -> Any:
        value = settings.get(f"{architecture}.{key}", default)
        if value is None:
            raise UserError(f"{path}: the key {architecture}.{key} is missing")
        if isinstance(value, list):
            raise UserError(
                f"{path}: {architecture}.{key} differs from layer to layer, which is not supported"
            )
        return value

    _refuse_unknown_arithmetic(path, settings, architecture)
    dim, n_heads = setting("embedding_length"), setting("attention.head_count")
    config = ModelConfig(
        vocab_size=_embedding(header).shape[0],
        dim=dim,
        n_layers=setting("block_count"),
        n_heads=n_heads,
        n_kv_heads=setting("attention.head_count_kv", n_heads),
        head_dim=setting("attention.key_length", dim // n_heads),
        ffn_dim=setting("feed_forward_length"),
        max_positions=setting("context_length"),
        norm_eps=_shortest(setting("attention.layer_norm_rms_epsilon")),
        rope_theta=_shortest(setting("rope.freq_base", 10000.0)),
        tied="output.weight" not in header.tensors,
        qkv_bias=architecture == "qwen2",
        family=_FAMILIES[architecture],
        bos=settings.get("tokenizer.ggml.bos_token_id"),
        eos=_end_tokens(settings),
        pad=settings.get("tokenizer.ggml.padding_token_id"),
    )
    return _with_window(_with_rope_scaling(config, header), setting("attention.sliding_window", 0))


def _hf_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; an unknown name stays itself."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(\w+)", name)
    if match is None or match[2] not in _NAMES:
        return name
    prefix = "" if match[1] is None else f"model.layers.{match[1]}."
    return f"{prefix}{_NAMES[match[2]]}.{match[3]}"


def _embedding(header: Header) -> Stored:
    if "token_embd.weight" not in header.tensors:
        raise UserError(f"{header.path} holds no token_embd.weight: it is not a whole model")
    return header.tensors["token_embd.weight"]


def _end_tokens(settings: dict[str, Any]) -> tuple[int, ...]:
    found = [settings.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    return tuple(dict.fromkeys(token for token in found if token is not None))


def _shortest(value: float) -> float:
    """The shortest decimal that is this float32: 9.999999747378752e-06 was meant as 1e-05."""
    return float(str(np.float32(value)))


def _refuse_unknown_arithmetic(path: Path, settings: dict[str, Any], architecture: str) -> None:
    scaling = settings.get(f"{architecture}.rope.scaling.type", "none")
    if scaling != "none" and settings.get(f"{architecture}.rope.scaling.factor", 1.0) != 1.0:
        raise UserError(f"{path}: rope scaling {scaling!r} is not supported; supported are none and llama3's")
    experts = settings.get(f"{architecture}.expert_count", 0)
    if experts:
        raise UserError(f"{path}: a mixture of {experts} experts is not supported")
    dims = [
        settings.get(f"{architecture}.{key}") for key in ("attention.key_length", "attention.value_length")
    ]
    if dims[0] != dims[1]:
        raise UserError(f"{path}: keys of length {dims[0]} and values of length {dims[1]} are not supported")


def _with_rope_scaling(config: ModelConfig, header: Header) -> ModelConfig:
    """Llama 3's scaling is stored as what it divides every frequency by; find the settings that give it."""
    if _ROPE_FACTORS not in header.tensors:
        return config
    factors = torch.from_numpy(header.read(_ROPE_FACTORS, 0, config.head_dim // 2))
    plain = frequencies(config.head_dim, config.rope_theta)
    for scaling in [None, *_LLAMA3_SCALINGS]:
        if torch.allclose(
            plain / frequencies(config.head_dim, config.rope_theta, scaling), factors, rtol=1e-4
        ):
            return replace(config, rope_scaling=scaling)
    raise UserError(
        f"{header.path}: its rotary frequencies are divided by up to {factors.max():.4g}, which is neither "
        "Llama 3.1's scaling nor 3.2's; use the safetensors of this model, whose config.json states it"
    )


def _with_window(config: ModelConfig, window: int) -> ModelConfig:
    if not window or window >= config.max_positions:
        return config
    family = "mistral" if config.family == "llama" else config.family  # HF's llama has no window
    return replace(config, windows=(window,) * config.n_layers, family=family)


def _can_decode(kind: GGMLQuantizationType) -> bool:
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
    except (NotImplementedError, KeyError):
        return False
    return True
