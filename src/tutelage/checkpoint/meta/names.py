"""What Meta calls the parts of a Llama, and with it torchllms, llama2.c and, in blocks, InstructLLaMA."""

import re

from tutelage.model.config import ModelConfig

BLOCK = {
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
OLMO2 = BLOCK | {  # torchllms' names: norms come after, and queries and keys have their own
    "attention_norm": "post_attention_layernorm",
    "ffn_norm": "post_feedforward_layernorm",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
}
OUTSIDE = {
    "tok_embeddings": "model.embed_tokens",
    "norm": "model.norm",
    "output": "lm_head",
    "role_embeddings": "model.role_embeddings",  # torchllms'
}


def block_of(config: ModelConfig) -> dict[str, str]:
    """What the parts of a block are called in such a model: its names -> here."""
    return OLMO2 if config.family == "olmo2" else BLOCK


def from_meta(name: str, outside: dict[str, str] = OUTSIDE, *, block: dict[str, str] = BLOCK) -> str | None:
    """`layers.3.attention.wq.weight` -> `model.layers.3.self_attn.q_proj.weight`; None of others."""
    return _renamed(name, r"layers\.(\d+)\.(.+)", "model.layers.", block, outside)


def to_meta(name: str, outside: dict[str, str] = OUTSIDE, *, block: dict[str, str] = BLOCK) -> str | None:
    """What `from_meta` undoes."""
    back = {ours: theirs for theirs, ours in outside.items()}
    inside = {ours: theirs for theirs, ours in block.items()}
    return _renamed(name, r"model\.layers\.(\d+)\.(.+)", "layers.", inside, back)


def _renamed(
    name: str, pattern: str, prefix: str, inside: dict[str, str], outside: dict[str, str]
) -> str | None:
    layer, _, last = name.rpartition(".")
    block = re.fullmatch(pattern, layer)
    if block:
        return f"{prefix}{block[1]}.{inside[block[2]]}.{last}" if block[2] in inside else None
    return f"{outside[layer]}.{last}" if layer in outside else None
