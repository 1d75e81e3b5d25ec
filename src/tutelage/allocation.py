"""How this process takes memory: in large pages, and kept once it is there.

Every training step on CPU allocates and frees the same tensors. Left alone, malloc gives the large ones back
to the system and takes them anew, page by page, at the next step: half of the time of a step of a 15M model.
"""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEPT = 1 << 30  # bytes: anything smaller is reused, and so much may lie unused


def keep_memory() -> None:
    """Reuse what is freed, in huge pages. Call it before the first tensor is made: torch asks only then."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # oneDNN keeps 1,024 prepared matmuls, a shape each: a gigabyte where lengths vary. Fewer were no slower.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # glibc; musl has none
        library.mallopt(_MMAP_THRESHOLD, _KEPT)
        library.mallopt(_TRIM_THRESHOLD, _KEPT)
