"""A training loop in the manner of nanoGPT: plain PyTorch, all of it compiled, under autocast to bfloat16.

    python -m benchmarks.plain pretrain15m|pretrain110m [--eager] [--tiny]

The model is a Llama rather than nanoGPT's GPT-2, so that it does the arithmetic of the others; queries, keys
and values come from one matmul, the loss is F.cross_entropy over all logits, both as in nanoGPT.

B rows   T positions   D model dim   H heads   C head dim   V vocabulary
"""

import argparse
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases import CASES, WARM_UP, Settings, Shape, documents, settings
from benchmarks.pace import Finished, Pace


class Attention(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.qkv = nn.Linear(shape.dim, 3 * shape.dim, bias=False)
        self.out = nn.Linear(shape.dim, shape.dim, bias=False)
        self.n_heads = shape.n_heads

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        B, T, D = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)  # each (B, H, T, C)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(B, T, D))


class MLP(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.gate = nn.Linear(shape.dim, shape.ffn_dim, bias=False)
        self.up = nn.Linear(shape.dim, shape.ffn_dim, bias=False)
        self.down = nn.Linear(shape.ffn_dim, shape.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.norm_1 = nn.RMSNorm(shape.dim, eps=1e-5)
        self.attention = Attention(shape)
        self.norm_2 = nn.RMSNorm(shape.dim, eps=1e-5)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        x = x + self.attention(self.norm_1(x), cos, sin)
        return x + self.mlp(self.norm_2(x))


class GPT(nn.Module):
    """Tokens and targets in, mean loss out."""

    def __init__(self, shape: Shape, length: int):
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab_size, shape.dim)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layers))
        self.norm = nn.RMSNorm(shape.dim, eps=1e-5)
        self.head = nn.Linear(shape.dim, shape.vocab_size, bias=False)
        self.head.weight = self.embedding.weight
        C = shape.dim // shape.n_heads
        angles = torch.outer(torch.arange(length), 10000.0 ** (-torch.arange(0, C, 2) / C)).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)  # (T, C)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """(B, T), (B, T) -> ()"""
        x = self.embedding(tokens)  # (B, T, D)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = self.head(self.norm(x))  # (B, T, V)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=[case for case in CASES if case != "sft"])
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    words = parser.parse_args()
    of, pace = settings(words.case, tiny=words.tiny), Pace()
    model = GPT(of.shape, of.length)
    with suppress(Finished):
        train(model, of, pace, compiled=not words.eager)
    pace.goodbye({"parameters": sum(p.numel() for p in model.parameters())})


def train(model: GPT, of: Settings, pace: Pace, *, compiled: bool) -> None:
    """nanoGPT's loop: fused AdamW that decays matrices only, clipping, no gradient kept between steps."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": of.wd}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=of.lr, betas=of.betas, fused=True)
    step_loss = torch.compile(model) if compiled else model
    batches = torch.from_numpy(documents(of)).split(of.rows)
    pace.warm_up(WARM_UP, steps_a_pass=len(batches))
    while True:
        for rows in batches:
            with torch.autocast("cpu", torch.bfloat16):
                loss = step_loss(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), of.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            pace.step_done()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(B, H, T, C) -> (B, H, T, C) in x's dtype"""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


if __name__ == "__main__":
    main()
