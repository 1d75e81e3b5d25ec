"""What of a model is trained, as a table: the same weight of all blocks in one row."""

import re

from torch import nn

from tutelage.model.transformer import Transformer

_EMBEDDING = "model.embed_tokens.weight"


def trained_rows(model: nn.Module) -> list[tuple[str, int, str, int]]:
    """(name, tensors, shape of each, weights in all) of what has a gradient, numbers of blocks left out."""
    rows: dict[tuple[str, str], list[int]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            shape = "x".join(map(str, parameter.shape))
            name = re.sub(r"\.layers\.\d+\.", ".layers.*.", name)
            rows.setdefault((name, shape), []).append(parameter.numel())
    return [(name, len(counts), shape, sum(counts)) for (name, shape), counts in rows.items()]


def trained_table(model: Transformer) -> str:
    """The rows, a line each, and how many weights of all of the model's they are."""
    rows = trained_rows(model)
    width = max(len(name) for name, *_ in rows)
    lines = [f"  {name:<{width}}  {n:>3} x {shape:<12} {count:>14,}" for name, n, shape, count in rows]
    adapters = sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name)
    total, everything = sum(row[3] for row in rows), model.config.n_parameters + adapters
    if model.head is model.model.embed_tokens and any(name == _EMBEDDING for name, *_ in rows):
        lines.append("  (the head is the embedding: it is trained with it)")
    return "\n".join(
        [f"trained: {total:,} of {everything:,} weights ({100 * total / everything:.2f} %)", *lines]
    )
