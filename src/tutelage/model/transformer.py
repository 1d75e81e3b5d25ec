"""A decoder-only transformer: tokens in, hidden states out. Of families of models it knows nothing.

B rows   T positions   D model dim   V vocabulary
"""

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.model.attention import plan
from tutelage.model.block import Block, RMSNorm, Turn
from tutelage.model.cache import KVCache
from tutelage.model.config import ModelConfig
from tutelage.model.roles import RoleEmbeddings, initialise_roles_
from tutelage.model.rope import document_lengths, rope
from tutelage.model.score import initialise_score_, with_score_head


class Decoder(nn.Module):
    """What Hugging Face files call `model.`: the embedding, the blocks and the final norm."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.dropout = nn.Dropout(0.0)  # of embeddings
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config)
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
        # Of windowed layers, and of others. Not buffers: no file holds them.
        self._ropes = {
            kind: rope(config.rotary_dim, *config.rope(kind)) for kind in set(config.rope_kinds) if kind
        }

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
        x = self._embedded(tokens)
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
        turns = self._turns(positions, docs, kv, x.dtype)
        for block, kind in zip(self.model.layers, self.config.rope_kinds, strict=True):
            x = block(x, turns[kind] if kind else None, layout, kv)
        return self.dropout(self.model.norm(x))

    def unembed(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V), float32; of a score head (..., 1)"""
        logits, cap = F.linear(hidden, self.head_weight).float(), self.config.logit_cap
        return logits if cap is None else (logits / cap).tanh() * cap

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

    def _embedded(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, D)"""
        x = self.model.embed_tokens(tokens)
        # The factor is rounded too, as in Gemma's own code.
        scaled = self.config.scaled_embeddings
        return x * float(torch.tensor(math.sqrt(x.shape[-1]), dtype=x.dtype)) if scaled else x

    def _turns(
        self, positions: Tensor, docs: Tensor | None, kv: KVCache | None, dtype: torch.dtype
    ) -> dict[str, Turn]:
        """How every kind of layer turns its queries and keys."""
        original, long = self.config.original_context, None
        if original is not None and kv is not None:
            long = kv.long[:, None].expand_as(positions)
        elif original is not None:
            long = document_lengths(positions, docs) > original
        dtype = torch.float32 if self.config.rope_wide else dtype
        return {kind: rope.rotation(positions, long, dtype) for kind, rope in self._ropes.items()}


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
            parameter.fill_(model.model.norm.neutral)
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


def untie_(model: Transformer) -> None:
    """Give a tied model a head of its own, a copy of the embedding."""
    assert model.config.tied
    weight = model.model.embed_tokens.weight
    model.lm_head = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    model.lm_head.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    model.config = replace(model.config, tied=False)
