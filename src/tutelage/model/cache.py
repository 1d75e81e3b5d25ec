"""Keys and values of what a model has read, so that the next token costs one position.

L layers   B rows   K kv heads   S cached positions   T new positions   C head dim
"""

import torch
from torch import Tensor

from tutelage.model.config import ModelConfig


class KVCache:
    """Row b's position p lies at index p, so a ragged batch needs no padding mask: nobody sees the future.

    What right padding writes lies past its row's end, and is overwritten before a query can see it.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        length: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ):
        shape = (config.n_layers, rows, config.n_kv_heads, length, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)  # (L, B, K, S, C)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.used = 0
        self.long = torch.zeros(rows, dtype=torch.bool, device=device)  # longer than longrope's first context

    @property
    def length(self) -> int:
        """How many positions a row can hold."""
        return self.keys.shape[3]

    def reserve(self, positions: Tensor) -> None:
        """Make positions up to the highest of `positions` (B, T) readable; called once a forward pass."""
        self.used = max(self.used, int(positions.max()) + 1)
        assert self.used <= self.length, f"position {self.used - 1} in a cache of {self.length}"

    def write(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v, each (B, K, T, C), and return all of the layer's: (B, K, used, C)."""
        index = positions[:, None, :, None].expand_as(k)
        self.keys[layer].scatter_(2, index, k)
        self.values[layer].scatter_(2, index, v)
        return self.keys[layer, :, :, : self.used], self.values[layer, :, :, : self.used]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.keys, self.values, self.long = self.keys[:, rows], self.values[:, rows], self.long[rows]

    def replace(self, rows: Tensor, other: "KVCache") -> None:
        """Take over all that another cache, of these rows and of this length, holds."""
        self.keys[:, rows], self.values[:, rows], self.long[rows] = other.keys, other.values, other.long
