"""A head that gives one number where a language model's gives logits: of reward and value models.

D model dim
"""

import math
from dataclasses import replace

import torch
from torch import nn

from tutelage.errors import UserError
from tutelage.model.config import ModelConfig

LAYER, PARAMETER = "score", "score.weight"


def with_score_head(shape: ModelConfig) -> ModelConfig:
    """The shape with a score head in place of the language model's; nothing is tied to the embedding then."""
    return replace(shape, head="score", tied=False)


def refuse_score_head(shape: ModelConfig, where: object) -> None:
    """Refuse a model that judges texts where one is wanted that writes them."""
    if shape.head == "score":
        raise UserError(
            f"{where} has a score head: it judges texts and cannot write any; give a language model, say the "
            "one that it was made from"
        )


@torch.no_grad()
def initialise_score_(head: nn.Linear, n_layers: int, *, seed: int) -> None:
    """Fill (1, D) with N(0, 0.02 / sqrt(2 layers)), drawn by `seed` alone, whatever the device."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(head.weight.shape, generator=draw) * (0.02 / math.sqrt(2 * n_layers))
    head.weight.copy_(weight)
