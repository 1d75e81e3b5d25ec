"""Devices by name: how much memory they have and how fast they could be, for plans made elsewhere."""

import os
import re
from dataclasses import dataclass

import torch

from tutelage.errors import UserError
from tutelage.train.flops import data_sheet_flops, peak_flops

# GiB as drivers report them, to a percent: cards with GDDR lose a sixteenth of what is printed on them to
# error correction. A name has all the words of its line; the first line that fits holds.
_MEMORY: dict[tuple[str, ...], float] = {
    ("B200",): 178,
    ("GB200",): 184,
    ("H200",): 140,
    ("GH200",): 95,
    ("H100", "NVL"): 93.6,
    ("H100",): 79.6,
    ("H800",): 79.6,
    ("H20",): 95.6,
    ("A100", "40GB"): 39.5,
    ("A100",): 79.2,
    ("A800",): 79.2,
    ("A30",): 23.6,
    ("A40",): 44.6,
    ("A10",): 22.1,
    ("A6000",): 47.5,
    ("L40S",): 44.6,
    ("L40",): 44.6,
    ("L4",): 22.1,
    ("RTX", "5090"): 31.4,
    ("RTX", "4090"): 23.6,
    ("RTX", "3090"): 23.6,
    ("MI300X",): 192,
    ("MI325X",): 256,
    ("MI250X",): 64,
}


@dataclass(frozen=True, slots=True)
class Device:
    """What a plan has to know of where a run will be."""

    name: str
    memory: float  # GiB
    flops: float | None  # in bfloat16, a second; None: unknown
    gpu: bool


def device_named(name: str | None, memory: float | None) -> Device:
    """The device of this name, None: this machine's GPU, or CPU; `memory` in GiB overrides its own."""
    if name is None and torch.cuda.is_available():
        _, total = torch.cuda.mem_get_info()
        here = torch.device("cuda", torch.cuda.current_device())
        found = torch.cuda.get_device_name(here)
        return Device(found, memory or total / 2**30, peak_flops(here, torch.bfloat16), gpu=True)
    if name is None or name.lower() == "cpu":
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Device(
            "cpu", memory or total / 2**30, peak_flops(torch.device("cpu"), torch.bfloat16), gpu=False
        )
    known = {word.upper(): word for words in _MEMORY for word in words}
    words = [known.get(word.upper(), word) for word in re.split(r"[\s_-]+", name)]
    listed = next((size for wanted, size in _MEMORY.items() if set(words).issuperset(wanted)), None)
    if listed is None and memory is None:
        names = ", ".join(" ".join(wanted) for wanted in _MEMORY)
        raise UserError(
            f"device_name {name} is none that is known: {names}, cpu; of another give --device_memory, in GiB"
        )
    return Device(name, memory or listed or 0.0, data_sheet_flops(" ".join(words)), gpu=True)
