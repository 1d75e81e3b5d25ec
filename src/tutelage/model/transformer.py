"""A decoder-only transformer of the Llama family: tokens in, hidden states out.

B rows   T positions   D model dim   H query heads   K kv heads   C head dim   V vocabulary
"""

import math
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.model.attention import Layout, attend, plan
from tutelage.model.cache import KVCache
from tutelage.model.config import ModelConfig
from tutelage.model.lean import formed_anew, rms_norm, silu_gated
from tutelage.model.roles import RoleEmbeddings, initialise_roles_
from tutelage.model.rope import frequencies, rotate, rotation
from tutelage.model.score import initialise_score_, with_score_head


class RMSNorm(nn.Module):
    """Root mean square normalisation in float32, https://arxiv.org/abs/1910.07467."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)"""
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.dim, queries, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.dim, keys, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.dim, keys, bias=config.qkv_bias)
        self.o_proj = nn.Linear(queries, config.dim, bias=False)
        self.head_dim = config.head_dim
        self.layer = layer
        self.window = config.windows[layer] if config.windows else None

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], layout: Layout, kv: KVCache | None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, H, T, C)
        k = self.k_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, K, T, C)
        v = self.v_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)
        q, k = rotate(q, turn), rotate(k, turn)
        if kv is not None:
            k, v = kv.write(self.layer, k, v, layout.positions)  # (B, K, used, C)
        mixed = attend(q, k, v, layout, self.window)  # (B, H, T, C)
        return self.o_proj(mixed.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    """SwiGLU, https://arxiv.org/abs/2002.05202."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        gate, up = self.gate_proj(x), self.up_proj(x)
        inner = silu_gated(gate, up)
        with formed_anew(inner, partial(silu_gated, gate.detach(), up.detach())):
            return self.down_proj(inner)


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(0.0)  # of what joins the residual

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], layout: Layout, kv: KVCache | None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), turn, layout, kv))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Decoder(nn.Module):
    """What Hugging Face files call `model.`: the embedding, the blocks and the final norm."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.dropout = nn.Dropout(0.0)  # of embeddings
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        # Last, as where it is added to a finished model, so that parameters have one order.
        table = RoleEmbeddings(config.dim) if config.role_embeddings else None
        self.role_embeddings: RoleEmbeddings | None = table


class Transformer(nn.Module):
    """The model; parameters carry the names of Hugging Face files. Sees tokens, never targets."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.attention_impl: Literal["auto", "eager", "sdpa", "flash"] = "auto"
        self.attention_dropout = 0.0  # in training, as everywhere here; set_dropout sets all four
        self.model = Decoder(config)
        self.dropout = nn.Dropout(0.0)  # of the final hidden states, before a head
        plain = config.head == "lm" and not config.tied
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False) if plain else None
        self.score = nn.Linear(config.dim, 1, bias=False) if config.head == "score" else None
        # Not a buffer: a model built on the meta device must not lose it, and no file holds it.
        with torch.device("cpu"):
            self._frequencies = frequencies(config.head_dim, config.rope_theta, config.rope_scaling)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        docs: Tensor | None = None,
        *,
        roles: Tensor | None = None,
        branches: Tensor | None = None,
        kv: KVCache | None = None,
    ) -> Tensor:
        """(B, T) -> (B, T, D): final hidden states, normalised.

        A position attends to those of its own document (`docs`; None: the row is one) that are not after it,
        and where the document forks (`branches`), that are in its trunk (0) or in its own branch (1, 2, …).
        `roles` say whose each token is, to models with role embeddings; None adds none, as other programs do.
        """
        if kv is not None:
            kv.reserve(positions)
        x = self.model.embed_tokens(tokens)  # (B, T, D)
        if self.model.role_embeddings is not None:
            assert roles is not None or not self.training, "a model with role embeddings trains without roles"
            x = x if roles is None else x + self.model.role_embeddings(roles)
        x = self.model.dropout(x)
        layout = plan(
            positions,
            docs,
            branches=branches,
            kv_used=None if kv is None else kv.used,
            windows=self._windows(),
            impl=self.attention_impl,
            dropout=self.attention_dropout if self.training else 0.0,
        )
        turn = rotation(positions, self._on(positions.device), x.dtype)
        for block in self.model.layers:
            x = block(x, turn, layout, kv)
        return self.dropout(self.model.norm(x))

    def unembed(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V), float32; of a score head (..., 1)"""
        return F.linear(hidden, self.head_weight).float()

    def scores(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (...,), float32 in float32 arithmetic: what the score head gives."""
        assert self.score is not None
        return F.linear(hidden.float(), self.head_weight.float()).squeeze(-1)

    @property
    def head(self) -> nn.Linear | nn.Embedding:
        """The layer whose weight turns hidden states into logits or scores: tied, the embedding."""
        return self.score or self.lm_head or self.model.embed_tokens

    @property
    def head_weight(self) -> Tensor:
        """(V, D), or (1, D) of a score head: the head's weight as surgery made it in effect."""
        holder = self.head
        in_effect = getattr(holder, "effective_weight", None)
        return holder.weight if in_effect is None else in_effect()

    def _windows(self) -> set[int | None]:
        return set(self.config.windows) if self.config.windows else {None}

    def _on(self, device: torch.device) -> Tensor:
        if self._frequencies.device != device:
            self._frequencies = self._frequencies.to(device)
        return self._frequencies


def set_dropout(model: Transformer, *, embed: float, attn: float, resid: float, head: float) -> None:
    """In training, leave out each value with these chances: of embeddings, attention weights, what joins the
    residual, and the final hidden states; the rest is scaled up. 0 draws no random number and costs nothing.
    """
    model.model.dropout.p, model.dropout.p, model.attention_dropout = embed, head, attn
    for module in model.modules():
        if isinstance(module, Block):
            module.dropout.p = resid


@torch.no_grad()
def initialise_(model: Transformer, *, seed: int, std: float | None = None) -> None:
    """Draw fresh weights: N(0, std), or std / sqrt(2 layers) where a block writes to the residual (GPT-2).

    Left out, std is sqrt(2 / (5 dim)) (https://arxiv.org/abs/1910.05895): GPT-2's 0.02 at dim 1000, and more
    below, where 0.02 would leave attention flat for hundreds of steps.
    """
    std = std or math.sqrt(2 / (5 * model.config.dim))
    generator = torch.Generator(model.head_weight.device).manual_seed(seed)
    residual = std / math.sqrt(2 * model.config.n_layers)
    for name, parameter in model.named_parameters():
        if "role_embeddings" in name or name == "score.weight":  # drawn apart: the others are as without
            continue
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            parameter.normal_(0.0, residual if into_residual else std, generator=generator)
    if model.model.role_embeddings is not None:
        initialise_roles_(model.model.role_embeddings, model.config.role_embeddings_init, seed=seed)
    if model.score is not None:
        initialise_score_(model.score, model.config.n_layers, seed=seed)


def add_role_embeddings_(model: Transformer, init: str, *, seed: int) -> None:
    """Give a model that has none a fresh table; with zeros it computes what it did, bit for bit."""
    assert model.model.role_embeddings is None
    table = RoleEmbeddings(model.config.dim).to(model.head_weight.device, model.head_weight.dtype)
    initialise_roles_(table, init, seed=seed)
    model.model.role_embeddings = table
    model.config = replace(model.config, role_embeddings=True, role_embeddings_init=init)


def give_score_head_(model: Transformer, *, seed: int, dtype: torch.dtype | None = None) -> None:
    """Put a fresh score head in the place of the language model's, in `dtype` or that of the old one.

    A tied model keeps its embedding, to which nothing is tied any more.
    """
    assert model.score is None
    old = model.head_weight
    head = nn.Linear(model.config.dim, 1, bias=False, device=old.device, dtype=dtype or old.dtype)
    if old.device.type != "meta":
        initialise_score_(head, model.config.n_layers, seed=seed)
    model.lm_head, model.score = None, head.train(model.training)
    model.config = with_score_head(model.config)
