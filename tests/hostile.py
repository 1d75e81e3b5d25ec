"""Refusals of hostile files: a UserError that names the file, soon, in one paragraph, in bounded memory."""

import json
import random
import resource
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tutelage.errors import UserError

SECONDS = 5.0  # of the processor, for one refusal
MEMORY = 512 << 20  # bytes that a refusal may take above what there was
LONGEST = 2500  # characters of a message


@contextmanager
def limited(memory: int = MEMORY) -> Iterator[None]:
    """Allocations beyond so much more than there is now raise MemoryError."""
    there = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (there + memory, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def refusal(action: Callable[..., object], *arguments: object, names: str, memory: int = MEMORY) -> str:
    """The message that an action is refused with, which has the words `names`."""
    start = time.process_time()
    with limited(memory), pytest.raises(UserError) as refused:
        action(*arguments)
    assert time.process_time() - start < SECONDS
    return checked(str(refused.value), names)


def checked(message: str, names: str = "") -> str:
    """The message, if a person can be shown it."""
    assert names in message, message
    assert len(message) < LONGEST and "\n\n" not in message, message[:LONGEST]
    assert "Traceback" not in message and " object at 0x" not in message, message
    return message


def survives(action: Callable[..., object], *arguments: object) -> bool:
    """Whether an action succeeds; if it does not, it is refused as a mistake and nothing else."""
    try:
        with limited():
            action(*arguments)
    except UserError as error:
        checked(str(error))
        return False
    return True


def damaged(content: bytes, seed: int) -> bytes:
    """The bytes with a few bits turned over, a stretch overwritten or cut out, or the end missing."""
    draw = random.Random(seed)
    raw = bytearray(content)
    place = draw.randrange(min(len(raw), 4096) if draw.random() < 0.7 else len(raw))  # headers come first
    kind = draw.randrange(4)
    if kind == 0:
        return bytes(raw[: draw.randrange(len(raw))])
    if kind == 1:
        for _ in range(draw.randrange(1, 6)):
            at = min(place + draw.randrange(32), len(raw) - 1)
            raw[at] ^= 1 << draw.randrange(8)
    elif kind == 2:
        raw[place : place + 8] = draw.choice([b"\xff" * 8, b"\0" * 8, draw.randbytes(8)])
    else:
        del raw[place : place + draw.randrange(1, 64)]
    return bytes(raw)


def write_safetensors(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> None:
    """A safetensors file of any header, sound or not; `length` is what it says of the header's size."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
