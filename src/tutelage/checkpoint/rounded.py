"""Weights as a quantized model has them, in full: what an adapter that was trained on it belongs on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.checkpoint.source import Source, pieces
from tutelage.model.quantize import Quantization, QuantizedLinear


@dataclass(frozen=True, slots=True)
class Rounding:
    """How a model's matrices were quantized, and from which dtype."""

    quantization: Quantization
    dtype: torch.dtype


def is_quantized(name: str) -> bool:
    """Whether a weight of this name is one that quantization takes: the matrices inside blocks."""
    return name.startswith("model.layers.") and name.endswith("_proj.weight")


class Rounded:
    """A source whose matrices inside blocks are quantized and made again, one at a time."""

    def __init__(self, source: Source, rounding: Rounding):
        self.where, self.shapes, self.problems = source.where, source.shapes, source.problems
        self.dtype = source.dtype
        self._source, self._rounding = source, rounding
        self._last: tuple[str, Tensor] = "", torch.empty(0)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start..stop of the tensor `name`, those of quantized layers float32."""
        shape = self.shapes[name]
        if not is_quantized(name):
            return self._source.rows(name, start, stop)
        if self._last[0] != name:
            parts = [self._source.rows(name, *piece).to(self._rounding.dtype) for piece in pieces(shape)]
            layer = QuantizedLinear(torch.cat(parts), None, self._rounding.quantization)
            self._last = name, layer.dequantized()
        return self._last[1][start:stop]
