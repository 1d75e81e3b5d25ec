"""Files as bytes, compressed or not."""

import gzip
import io
from pathlib import Path
from typing import Any, BinaryIO

LONGEST_LINE = 64 << 20  # bytes; longer is a file of another kind, and would not fit any row
BUFFER = 1 << 17  # bytes read at a time; lines come five times as fast as from Python's own 8 KiB
COMPRESSED = (".gz", ".zst")


def open_bytes(path: Path) -> BinaryIO:
    """The file's bytes; of a compressed one (.gz, .zst), what was compressed."""
    if path.name.lower().endswith(".gz"):
        return gzip.open(path)  # type: ignore[return-value]
    if path.name.lower().endswith(".zst"):
        import pyarrow as pa

        return io.BufferedReader(_Raw(pa.input_stream(str(path), compression="zstd")), BUFFER)  # type: ignore
    return path.open("rb", buffering=BUFFER)


class _Raw(io.RawIOBase):
    """A stream of pyarrow as Python's own buffered reader wants it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()
