"""A layer of the transformer, and what it is made of; the config says which of its forms.

B rows   T positions   D model dim   H query heads   K kv heads   C head dim
"""

import torch
from torch import Tensor, nn

from tutelage.model.attention import Layout, attend
from tutelage.model.cache import KVCache
from tutelage.model.causal import Scores
from tutelage.model.config import Activation, ModelConfig
from tutelage.model.lean import gated_linear, rms_norm
from tutelage.model.rope import rotate

Turn = tuple[Tensor, Tensor]  # cos and sin, as Rope gives them

# What files call the norms before and after attention, before and after the MLP.
_NORMS = {
    "before": ("input_layernorm", None, "post_attention_layernorm", None),
    "after": (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    "around": (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
}


class RMSNorm(nn.Module):
    """Root mean square normalisation in float32, https://arxiv.org/abs/1910.07467, times a weight."""

    def __init__(self, dim: int, config: ModelConfig):
        super().__init__()
        self.eps, self.kind = config.norm_eps, config.norm
        self.weight = nn.Parameter(torch.full((dim,), self.neutral))

    @property
    def neutral(self) -> float:
        """The weight that multiplies by one."""
        return 0.0 if self.kind == "centred" else 1.0

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)"""
        weight = 1.0 + self.weight.float() if self.kind == "centred" else self.weight
        return rms_norm(x, weight, self.eps, wide=self.kind != "plain")


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.sizes = queries, keys, keys
        if config.fused:
            self.qkv_proj = nn.Linear(config.dim, sum(self.sizes), bias=config.qkv_bias)
        else:
            self.q_proj = nn.Linear(config.dim, queries, bias=config.qkv_bias)
            self.k_proj = nn.Linear(config.dim, keys, bias=config.qkv_bias)
            self.v_proj = nn.Linear(config.dim, keys, bias=config.qkv_bias)
        self.o_proj = nn.Linear(queries, config.dim, bias=False)
        self.q_norm, self.k_norm, self.normed = None, None, (1, 1)
        if config.qk_norm is not None:
            self.normed = (queries, keys) if config.qk_norm == "whole" else (config.head_dim,) * 2
            self.q_norm, self.k_norm = (RMSNorm(size, config) for size in self.normed)
        self.head_dim = config.head_dim
        self.layer = layer
        self.window = config.windows[layer] if config.windows else None
        scale = None if config.query_scalar is None else config.query_scalar**-0.5
        self.scores = Scores(scale, config.attention_cap)

    def forward(self, x: Tensor, turn: Turn | None, layout: Layout, kv: KVCache | None) -> Tensor:
        """(B, T, D) -> (B, T, D); without a `turn` positions are told by the mask alone."""
        B, T, _ = x.shape
        q, k, v = self._projected(x)  # each (B, T, heads · C)
        if self.q_norm is not None and self.k_norm is not None:
            q = self.q_norm(q.view(B, T, -1, self.normed[0]))
            k = self.k_norm(k.view(B, T, -1, self.normed[1]))
        q = q.view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, H, T, C)
        k = k.view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, K, T, C)
        v = v.view(B, T, -1, self.head_dim).transpose(1, 2)
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        if kv is not None:
            k, v = kv.write(self.layer, k, v, layout.positions)  # (B, K, used, C)
        mixed = attend(q, k, v, layout, self.window, self.scores)  # (B, H, T, C)
        return self.o_proj(mixed.transpose(1, 2).reshape(B, T, -1))

    @property
    def readers(self) -> tuple[nn.Linear, ...]:
        """The layers that make queries, keys and values, or the one that makes all three."""
        if hasattr(self, "qkv_proj"):
            return (self.qkv_proj,)
        return self.q_proj, self.k_proj, self.v_proj

    def _projected(self, x: Tensor) -> tuple[Tensor, ...]:
        if hasattr(self, "qkv_proj"):
            return tuple(part.contiguous() for part in self.qkv_proj(x).split(self.sizes, dim=-1))
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)


class MLP(nn.Module):
    """SwiGLU, or GeGLU with the activation's tanh form: https://arxiv.org/abs/2002.05202."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        if config.fused:
            self.gate_up_proj = nn.Linear(config.dim, 2 * config.ffn_dim, bias=False)
        else:
            self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
            self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)
        self.activation: Activation = config.activation
        self.form_anew = True  # what down_proj reads, in the backward pass

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        if hasattr(self, "gate_up_proj"):
            gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
        return gated_linear(gate, up, self.down_proj, self.activation, form_anew=self.form_anew)

    @property
    def readers(self) -> tuple[nn.Linear, ...]:
        """The layers that make gate and up, or the one that makes both."""
        return (self.gate_up_proj,) if hasattr(self, "gate_up_proj") else (self.gate_proj, self.up_proj)


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self._places = _NORMS[config.norms]
        before, after, before_mlp, after_mlp = self._places
        self._add_norm(before, config)  # in this order, which is that of the parameters
        self.self_attn = Attention(config, layer)
        self._add_norm(after, config)
        self._add_norm(before_mlp, config)
        self.mlp = MLP(config)
        self._add_norm(after_mlp, config)
        self.dropout = nn.Dropout(0.0)  # of what joins the residual

    def _add_norm(self, name: str | None, config: ModelConfig) -> None:
        if name is not None:
            self.add_module(name, RMSNorm(config.dim, config))

    def norm(self, place: int) -> nn.Module | None:
        """The norm before attention (0) or after it (1), before the MLP (2) or after it (3)."""
        name = self._places[place]
        return None if name is None else getattr(self, name)

    def _normed(self, place: int, x: Tensor) -> Tensor:
        norm = self.norm(place)
        return x if norm is None else norm(x)

    def forward(self, x: Tensor, turn: Turn | None, layout: Layout, kv: KVCache | None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        mixed = self.self_attn(self._normed(0, x), turn, layout, kv)
        x = x + self.dropout(self._normed(1, mixed))
        return x + self.dropout(self._normed(3, self.mlp(self._normed(2, x))))
