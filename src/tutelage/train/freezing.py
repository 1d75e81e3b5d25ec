"""Which weights are trained when there are no adapters: by block, by part of the model, by name."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from tutelage.errors import UserError
from tutelage.model.transformer import Transformer

Parts = Literal["all", "embeddings", "head", "embeddings_head", "blocks"]
_EMBEDDINGS = ("model.embed_tokens.", "model.role_embeddings.")
_HEAD = ("lm_head.", "score.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Freezing:
    """What stays as it is; every setting takes more away."""

    layers: int = 0  # the first so many blocks, and with them the embeddings
    query_value_only: bool = False  # of the blocks that are left only q_proj and v_proj; no embeddings
    parts: Parts = "all"  # the only parts that are trained; blocks: everything but embeddings and head
    trained: tuple[str, ...] = ()  # regular expressions of whole names: only these are trained
    frozen: tuple[str, ...] = ()  # regular expressions of whole names


def freeze_(model: Transformer, settings: Freezing) -> None:
    """Leave a gradient to what is to be trained, and to nothing else.

    A tied head is the embedding: as `head` it is trained, under frozen blocks it is not.
    """
    names = [name for name, _ in model.named_parameters()]
    for flag, patterns in (("trained_params", settings.trained), ("frozen_params", settings.frozen)):
        check_patterns(patterns, names, flag)
    if settings.layers > len(model.model.layers):
        raise UserError(f"frozen_layers is {settings.layers}, the model has {len(model.model.layers)} blocks")
    if settings.query_value_only and model.config.fused:
        raise UserError(
            "query_value_only trains q_proj and v_proj, and this model has them in one layer with the keys, "
            "qkv_proj; name what to train with trained_params"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_trained(name, settings, tied=model.head is model.model.embed_tokens))
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError("nothing is left to train; freeze less")


def check_patterns(patterns: Iterable[str], names: Iterable[str], flag: str) -> None:
    """Refuse a pattern that is no regular expression or that fits no name."""
    names = list(names)
    for pattern in patterns:
        try:
            found = any(re.fullmatch(pattern, name) for name in names)
        except re.error as error:
            raise UserError(f"{flag}: {pattern} is no regular expression: {error}") from error
        if not found:
            raise UserError(
                f"{flag}: {pattern} fits no weight's whole name; names are like {names[0]}, {names[-1]} and "
                f"{names[len(names) // 2]}"
            )


def _trained(name: str, settings: Freezing, *, tied: bool) -> bool:
    embedding, head = name.startswith(_EMBEDDINGS), name.startswith(_HEAD)
    if settings.layers or settings.query_value_only:
        block = re.match(r"model\.layers\.(\d+)\.", name)
        if embedding or (block and int(block[1]) < settings.layers):
            return False
        if block and settings.query_value_only and not re.search(r"\.(q_proj|v_proj)\.", name):
            return False
    in_parts = {
        "all": True,
        "embeddings": embedding,
        "head": head or (tied and name.startswith(_EMBEDDINGS[0])),
        "embeddings_head": embedding or head,
        "blocks": not (embedding or head),
    }
    if not in_parts[settings.parts]:
        return False
    if settings.trained and not _any(settings.trained, name):
        return False
    return not _any(settings.frozen, name)


def unfreeze_(model: nn.Module, patterns: Iterable[str]) -> None:
    """Train these weights in full, whatever else is frozen: regular expressions of whole names."""
    patterns = list(patterns)
    for name, parameter in model.named_parameters():
        if _any(patterns, name):
            parameter.requires_grad_(True)


def _any(patterns: Iterable[str], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)
