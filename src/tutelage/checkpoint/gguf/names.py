"""What llama.cpp calls things: one row for every architecture, between GGUF's words and Hugging Face's."""

import re
from dataclasses import dataclass
from typing import Any

from tutelage.errors import UserError

_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_TENSORS = {
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


@dataclass(frozen=True, slots=True)
class Architecture:
    """One of llama.cpp's: its settings and tensors, each by the name that Hugging Face gives it."""

    name: str  # general.architecture
    family: str  # model_type in config.json
    keys: dict[str, str]  # of settings, without the architecture before them
    tensors: dict[str, str]  # without layer and suffix
    pairs: bool = False  # rows of queries and keys are in Meta's order, neighbours turned together
    shifted: bool = False  # norms are stored as what they multiply by, 1 + w
    windowed: str | None = None  # model_type where every layer has a window, which llama.cpp ignores
    pattern: int | None = None  # of so many layers the last has no window
    wide_scores: int = 0  # layers of the one size whose scores are scaled by dim over heads, not by head_dim

    def hf_name(self, name: str) -> str:
        """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; an unknown name stays itself."""
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(\w+)", name)
        if match is None or match[2] not in self.tensors:
            return name
        prefix = "" if match[1] is None else f"model.layers.{match[1]}."
        return f"{prefix}{self.tensors[match[2]]}.{match[3]}"

    def gguf_name(self, name: str) -> str:
        """What `hf_name` undoes; every parameter of the family has a name."""
        match = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?(.+)\.(\w+)", name)
        assert match is not None, name
        stem = next(ours for ours, theirs in self.tensors.items() if theirs == match[2])
        return f"{stem}.{match[3]}" if match[1] is None else f"blk.{match[1]}.{stem}.{match[3]}"

    def is_paired(self, name: str) -> bool:
        """Whether the rows of this tensor, by its Hugging Face name, are reordered."""
        return self.pairs and name.endswith(("q_proj.weight", "k_proj.weight"))

    def shift(self, name: str) -> float:
        """What is added to this tensor, by its Hugging Face name, when it is written."""
        return 1.0 if self.shifted and name.endswith("norm.weight") else 0.0


_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_AROUND = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_WINDOW = {"attention.sliding_window": "sliding_window"}
_CAP = {"final_logit_softcapping": "final_logit_softcapping"}
_CAPS = {"attn_logit_softcapping": "attn_logit_softcapping", **_CAP}
_LOCAL = {"rope.freq_base_swa": "rope_local_base_freq"}
_FUSED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}


def _without(tensors: dict[str, str], *names: str) -> dict[str, str]:
    return {ours: theirs for ours, theirs in tensors.items() if ours not in names}


_AFTER = _without(_TENSORS | _HEAD_NORMS | _AROUND, "attn_norm", "ffn_norm")
_PHI3 = _without(_TENSORS | _FUSED, "attn_q", "attn_k", "attn_v", "ffn_gate")

_ARCHITECTURES = [
    Architecture("llama", "llama", _KEYS, _TENSORS, pairs=True, windowed="mistral"),  # HF's llama has none
    Architecture("smollm3", "smollm3", _KEYS, _TENSORS, pairs=True),
    Architecture("qwen2", "qwen2", _KEYS, _TENSORS, windowed="qwen2"),
    Architecture("qwen3", "qwen3", _KEYS, _TENSORS | _HEAD_NORMS, windowed="qwen3"),
    Architecture("olmo2", "olmo2", _KEYS, _AFTER),
    Architecture("gemma", "gemma", _KEYS, _TENSORS, shifted=True),
    Architecture(
        "gemma2",
        "gemma2",
        _KEYS | _WINDOW | _CAPS,
        _TENSORS | _AROUND,
        shifted=True,
        pattern=2,
        wide_scores=46,
    ),
    Architecture(
        "gemma3",
        "gemma3_text",
        _KEYS | _WINDOW | _CAP | _LOCAL,
        _TENSORS | _AROUND | _HEAD_NORMS,
        shifted=True,
        pattern=6,
        wide_scores=62,
    ),
    Architecture("phi3", "phi3", _KEYS | _WINDOW, _PHI3),
]
_WRITTEN_AS = {"mistral": "llama"}  # its window aside, it computes the same


def architecture_of(settings: dict[str, Any], where: str) -> Architecture:
    """The architecture that the settings of a GGUF file name."""
    name = settings.get("general.architecture")
    for architecture in _ARCHITECTURES:
        if architecture.name == name:
            return architecture
    known = ", ".join(architecture.name for architecture in _ARCHITECTURES)
    raise UserError(f"{where}: architecture {name!r} is not supported; supported are {known}")


def architecture_for(family: str) -> Architecture:
    """The architecture that a model of this family is written as."""
    family = _WRITTEN_AS.get(family, family)
    for architecture in _ARCHITECTURES:
        if architecture.family == family:
            return architecture
    known = ", ".join([*(architecture.family for architecture in _ARCHITECTURES), *_WRITTEN_AS])
    raise UserError(f"a model of family {family} cannot be written as GGUF; families that can are {known}")
