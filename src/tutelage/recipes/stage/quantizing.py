"""What `--quant` means, where a model is trained and where it answers."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tutelage.model.quantize import Quantization

Quant = Literal["none", "nf4", "fp4", "int8"]


def quant_problems(quant: Quant, double: bool) -> list[str]:
    """What is wrong with the two settings, before anything is imported."""
    problems = []
    if not double and quant in ("none", "int8"):
        problems.append(f"quant_double is about the scales of nf4 and fp4, and quant is {quant}")
    if quant in ("nf4", "fp4") and find_spec("bitsandbytes") is None:
        problems.append(f"quant {quant} needs bitsandbytes: pip install 'tutelage[quant]', or take int8")
    return problems


def quantization_of(quant: Quant, double: bool) -> Quantization | None:
    """What load_model is to make of linear layers."""
    from tutelage.model.quantize import Quantization

    return None if quant == "none" else Quantization(kind=quant, double=double)
