"""What is noted beside an adapter, since no file of PEFT's says it: what its model was made of."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tutelage.checkpoint.rounded import Rounding
from tutelage.errors import UserError
from tutelage.model.config import ModelConfig
from tutelage.model.quantize import Quantization

FILE = "tutelage.json"


@dataclass(frozen=True, slots=True)
class Note:
    """Beside an adapter."""

    adapters: tuple[str, ...] = ()  # that the model it was trained on has in its weights
    eos: tuple[int, ...] | None = None  # for the config of a model with it merged
    max_positions: int | None = None
    rounding: Rounding | None = None  # how that model was quantized
    pad: int | None = None  # of a score head's: what its end is found by

    def write(self, directory: Path) -> None:
        """Put it beside the adapter."""
        values: dict[str, Any] = {"adapters": list(self.adapters)}
        values |= {"eos": self.eos and list(self.eos), "max_positions": self.max_positions, "pad": self.pad}
        if self.rounding is not None:
            dtype = str(self.rounding.dtype).removeprefix("torch.")
            values["quant"] = {**asdict(self.rounding.quantization), "dtype": dtype}
        (directory / f".{FILE}").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        os.replace(directory / f".{FILE}", directory / FILE)


def note_of(shape: ModelConfig, before: Sequence[Path], rounding: Rounding | None) -> Note:
    """What to note with an adapter of a model of this shape."""
    names, pad = tuple(str(path.resolve()) for path in before), shape.pad if shape.head == "score" else None
    return Note(names, shape.eos, shape.max_positions, rounding, pad)


def read_note(adapter: Path) -> Note:
    """The note beside an adapter; an empty one where there is none."""
    path = adapter / FILE
    if not path.exists():
        return Note()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        quant, eos = values.get("quant"), values.get("eos")
        if quant:
            quantization = Quantization(kind=quant["kind"], double=quant["double"])
            quant = Rounding(quantization, getattr(torch, quant["dtype"]))
        adapters = tuple(map(str, values.get("adapters", [])))
        return Note(
            adapters,
            None if eos is None else tuple(eos),
            values.get("max_positions"),
            quant or None,
            values.get("pad"),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); remove it, or copy it from the run anew") from error
