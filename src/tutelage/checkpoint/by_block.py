"""What a model answers, computed with the weights of one block in memory at a time.

B = 1 row   T positions, of all texts   D model dim   V vocabulary
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.checkpoint.source import EMBEDDING, Source, pieces, read_into
from tutelage.model.config import ModelConfig
from tutelage.model.transformer import Transformer


class AsWritten:
    """A source whose rows are rounded as a file of a dtype, or in groups, would round them."""

    def __init__(self, source: Source, rounded: Callable[[Tensor], Tensor]):
        self.where, self.shapes, self.problems = source.where, source.shapes, source.problems
        self.dtype = source.dtype
        self._source, self._rounded = source, rounded

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start..stop, rounded."""
        return self._rounded(self._source.rows(name, start, stop))


@torch.no_grad()
def logits_by_block(
    config: ModelConfig, source: Source, texts: Sequence[Sequence[int]], roles: Sequence[Sequence[int]]
) -> Tensor:
    """(T, V) float32, in float32 arithmetic: the logits, or (T, 1) scores, after every token of the texts."""
    with torch.device("meta"):
        model = Transformer(config).eval()
    for number, block in enumerate(model.model.layers):
        block.register_forward_pre_hook(_filling(source, f"model.layers.{number}"))
        block.register_forward_hook(_emptied)
    for name, module in model.model.named_children():
        if name not in ("layers", "embed_tokens"):
            _fill_(module, source, f"model.{name}")
    tokens = torch.tensor([token for text in texts for token in text])
    used, place = tokens.unique(return_inverse=True)
    rows = torch.cat([source.rows(EMBEDDING, token, token + 1).float() for token in used.tolist()])
    model.model.embed_tokens.weight = nn.Parameter(rows)
    hidden = model(
        place[None],
        torch.cat([torch.arange(len(text)) for text in texts])[None],
        torch.cat([torch.full((len(text),), number) for number, text in enumerate(texts)])[None],
        roles=torch.tensor([[role for text in roles for role in text]]),
    )  # (1, T, D)
    name = next(name for name, parameter in model.named_parameters() if parameter is model.head.weight)
    found = []
    for start, stop in pieces(source.shapes[name]):
        model.head.weight = nn.Parameter(source.rows(name, start, stop).float())
        found.append(model.unembed(hidden)[0])
    return torch.cat(found, dim=-1)


def _filling(source: Source, prefix: str) -> Callable[[nn.Module, Any], None]:
    return lambda module, _: _fill_(module, source, prefix)


def _fill_(module: nn.Module, source: Source, prefix: str) -> None:
    module.to_empty(device="cpu")
    for name, parameter in module.named_parameters(prefix):
        read_into(parameter, source, name)


def _emptied(module: nn.Module, *_: Any) -> None:
    module.to_empty(device="meta")
