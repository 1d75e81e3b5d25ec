"""The two orders of rows in query and key projections: Meta's rotary turns neighbours, Hugging Face's halves.

H heads   C head dim   D model dim
"""

from collections.abc import Callable

from torch import Tensor

_TURNED = ("q_proj", "k_proj", "q_norm", "k_norm")


def is_turned(name: str) -> bool:
    """Whether a layer or parameter of this name has rows that follow the order of pairs or halves."""
    return any(kind in name for kind in _TURNED)


def pairs_to_halves(rows: Tensor, head_dim: int) -> Tensor:
    """(H * C, D) or (H * C,), of whole heads: each head's even rows first, then its odd ones."""
    return rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def halves_to_pairs(rows: Tensor, head_dim: int) -> Tensor:
    """(H * C, D) or (H * C,), of whole heads: what `pairs_to_halves` undoes."""
    return rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def rows_as_halves(read: Callable[[int, int], Tensor], start: int, stop: int, head_dim: int) -> Tensor:
    """Rows start..stop as halves, of a matrix whose rows are pairs; `read(first, last)` gives those."""
    first, last = start // head_dim * head_dim, -(-stop // head_dim) * head_dim  # whole heads
    return pairs_to_halves(read(first, last), head_dim)[start - first : stop - first]


def rows_as_pairs(read: Callable[[int, int], Tensor], start: int, stop: int, head_dim: int) -> Tensor:
    """Rows start..stop as pairs, of a matrix whose rows are halves; `read(first, last)` gives those."""
    first, last = start // head_dim * head_dim, -(-stop // head_dim) * head_dim  # whole heads
    return halves_to_pairs(read(first, last), head_dim)[start - first : stop - first]
