"""A model's tensors under Meta's names and in its order of rows, on their way to a file."""

from functools import partial

import torch

from tutelage.checkpoint.meta.names import OUTSIDE, block_of, to_meta
from tutelage.checkpoint.rotary import is_turned, rows_as_pairs
from tutelage.checkpoint.source import EMBEDDING, HEAD, Source, parameter_shapes
from tutelage.checkpoint.streamed import Rows, Streamed
from tutelage.model.config import ModelConfig


def meta_tensors(
    source: Source,
    config: ModelConfig,
    dtype: torch.dtype,
    *,
    outside: dict[str, str] = OUTSIDE,
    with_head: bool = True,
) -> list[Streamed]:
    """Every parameter; a tied head as a second matrix. `outside` names what is not in blocks."""

    def named(ours: str, shape: tuple[int, ...], rows: Rows) -> Streamed:
        theirs = to_meta(ours, outside, block=block_of(config))
        assert theirs is not None, f"{ours} has no name of Meta's"
        return Streamed(theirs, shape, dtype, rows)

    shapes = parameter_shapes(config)
    tensors = [named(name, shape, in_pairs(source, config, name)) for name, shape in shapes.items()]
    if with_head and config.tied:
        tensors.append(named(HEAD, shapes[EMBEDDING], partial(source.rows, EMBEDDING)))
    return tensors


def in_pairs(source: Source, config: ModelConfig, name: str) -> Rows:
    """Rows of a tensor in Meta's order."""
    read = partial(source.rows, name)
    if not is_turned(name):
        return read
    return lambda start, stop: rows_as_pairs(read, start, stop, config.head_dim)
