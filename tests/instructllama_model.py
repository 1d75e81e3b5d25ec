"""InstructLLaMA's model as documents describe it, written for the tests: complex rotary, eager attention."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class Theirs:
    """Reads a .pth and the params.json beside it; every weight must have its place, and every place one."""

    def __init__(self, path: Path) -> None:
        self.params: dict[str, Any] = json.loads((path.parent / "params.json").read_text())
        self.weights: dict[str, Tensor] = torch.load(path, weights_only=True)
        shapes = {name: tuple(tensor.shape) for name, tensor in self.weights.items()}
        assert shapes == expected_shapes(self.params)

    def __call__(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, V), or (B, T, 1)"""
        p = self.params
        B, T = tokens.shape
        width = p["dim"] // p["n_heads"]
        speeds = 10000.0 ** (-torch.arange(0, width, 2).float() / width)
        turns = torch.polar(torch.ones(T, width // 2), torch.outer(torch.arange(T).float(), speeds))
        future = torch.full((T, T), -math.inf).triu(1)
        x = self.weights["token_embeddings.weight"][tokens]
        for layer in range(p["n_layers"]):
            block = f"layers.{layer}."
            normal = self.norm(x, f"{block}attention_norm")
            q, k, v = (
                self.linear(normal, f"{block}attention.w{kind}").view(B, T, p["n_heads"], width)
                for kind in "qkv"
            )
            q, k = (
                torch.view_as_real(
                    torch.view_as_complex(z.reshape(B, T, p["n_heads"], -1, 2)) * turns[:, None]
                )
                .flatten(3)
                .transpose(1, 2)
                for z in (q, k)
            )
            scores = q @ k.transpose(2, 3) / math.sqrt(width) + future
            mixed = (scores.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2).reshape(B, T, -1)
            x = x + self.linear(mixed, f"{block}attention.wo")
            normal, mlp = self.norm(x, f"{block}ffn_norm"), f"{block}feed_forward.w"
            x = x + self.linear(
                F.silu(self.linear(normal, mlp + "1")) * self.linear(normal, mlp + "3"), mlp + "2"
            )
        return self.linear(self.norm(x, "post_norm"), p["head_type"])

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T

    def norm(self, x: Tensor, name: str) -> Tensor:
        return (
            x
            * (x.pow(2).mean(-1, keepdim=True) + self.params["norm_eps"]).rsqrt()
            * self.weights[f"{name}.weight"]
        )


def expected_shapes(params: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """What its program builds of these settings."""
    dim, vocabulary, multiple = params["dim"], params["vocab_size"], params["multiple_of"]
    ffn = multiple * math.ceil(int(2 * 4 * dim / 3) / multiple)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embeddings.weight": (vocabulary, dim),
        "post_norm.weight": (dim,),
    }
    shapes[f"{params['head_type']}.weight"] = (
        {"lm_head": vocabulary, "scalar_head": 1}[params["head_type"]],
        dim,
    )
    for layer in range(params["n_layers"]):
        block = {f"attention.w{kind}": (dim, dim) for kind in "qkvo"} | {"feed_forward.w2": (dim, ffn)}
        block |= {"feed_forward.w1": (ffn, dim), "feed_forward.w3": (ffn, dim)}
        block |= {"attention_norm": (dim,), "ffn_norm": (dim,)}
        shapes |= {f"layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    return shapes
