"""What Meta calls the parts of a Llama, and with it torchllms, llama2.c and, in blocks, InstructLLaMA."""

import re

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
OUTSIDE = {
    "tok_embeddings": "model.embed_tokens",
    "norm": "model.norm",
    "output": "lm_head",
    "role_embeddings": "model.role_embeddings",  # torchllms'
}


def from_meta(name: str, outside: dict[str, str] = OUTSIDE) -> str | None:
    """`layers.3.attention.wq.weight` -> `model.layers.3.self_attn.q_proj.weight`; None of others."""
    return _renamed(name, r"layers\.(\d+)\.(.+)", "model.layers.", BLOCK, outside)


def to_meta(name: str, outside: dict[str, str] = OUTSIDE) -> str | None:
    """What `from_meta` undoes."""
    back = {ours: theirs for theirs, ours in outside.items()}
    inside = {ours: theirs for theirs, ours in BLOCK.items()}
    return _renamed(name, r"model\.layers\.(\d+)\.(.+)", "layers.", inside, back)


def _renamed(
    name: str, pattern: str, prefix: str, inside: dict[str, str], outside: dict[str, str]
) -> str | None:
    layer, _, last = name.rpartition(".")
    block = re.fullmatch(pattern, layer)
    if block:
        return f"{prefix}{block[1]}.{inside[block[2]]}.{last}" if block[2] in inside else None
    return f"{outside[layer]}.{last}" if layer in outside else None
