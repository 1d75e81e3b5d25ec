"""What `Asked` of NumPy, PyTorch and the datasets library stands for: numbers, and rows of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tutelage.data.asked import Asked

_WHOLE = {f"{kind}{width}" for kind in "iu" for width in (1, 2, 4, 8)}


def numbers(value: Any) -> np.ndarray | None:
    """The whole numbers in a list, a tuple or a pickled array of one dimension, int64; None if it is none."""
    if isinstance(value, list | tuple):
        if not set(map(type, value)) <= {int}:
            value = [_scalar(item) for item in value]
        try:
            return np.array(value, np.int64) if set(map(type, value)) <= {int} else None
        except OverflowError:
            return None
    return _array(value) if isinstance(value, Asked) else None


def elements(value: Any) -> Sequence[Any] | None:
    """The records of a list, or those that PyTorch's Subset of one has; None if it is none."""
    if isinstance(value, Asked) and value.name == "torch.utils.data.dataset.Subset":
        state = value.state if isinstance(value.state, dict) else {}
        whole, chosen = elements(state.get("dataset")), numbers(state.get("indices"))
        if (
            whole is None
            or chosen is None
            or (len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(whole))
        ):
            return None
        return [whole[index] for index in chosen.tolist()]
    return value if isinstance(value, list | tuple) else None


def table(value: Any) -> Iterator[dict[str, Any]] | None:
    """The rows of a pickled `datasets.Dataset`, their columns texts or lists of texts; None if it is none."""
    try:
        if not (isinstance(value, Asked) and value.name == "datasets.arrow_dataset.Dataset"):
            return None
        inner = value.state["_data"]
        if inner.name != "datasets.table.InMemoryTable" or value.state.get("_indices") is not None:
            return None
        made = inner.state["table"]
        columns, schema = made.args
        names = [entry.args[0] for entry in schema.args[0]]
        cells = [[cell for chunk in column.args[0] for cell in _cells(*chunk.args[0])] for column in columns]
        return (dict(zip(names, row, strict=True)) for row in zip(*cells, strict=True))
    except (AttributeError, KeyError, ValueError, TypeError, IndexError):
        return None


def _cells(
    kind: Asked, length: int, nulls: int, start: int, buffers: list[Any], children: list[Any], _: Any = None
) -> list[Any]:
    """The values of an Arrow array of texts, or of lists of them."""
    wide = {"string": "<i4", "large_string": "<i8"}
    is_list = kind.name in ("pyarrow.lib.list_", "pyarrow.lib.large_list")
    width = "<i8" if kind.name.endswith("large_list") else "<i4" if is_list else wide[kind.args[0]]
    missing = _missing(buffers[0], start, length) if nulls else np.zeros(length, bool)
    offsets = np.frombuffer(_bytes(buffers[1]), width)[start : start + length + 1].tolist()
    if len(offsets) != length + 1 or sorted(offsets) != offsets or offsets[0] < 0:
        raise ValueError
    if is_list:
        inner: Sequence[Any] = _cells(*children[0])
        found = [inner[first:last] for first, last in zip(offsets, offsets[1:], strict=False)]
        whole = len(inner)
    else:
        raw = _bytes(buffers[2])
        found = [raw[first:last].decode() for first, last in zip(offsets, offsets[1:], strict=False)]
        whole = len(raw)
    if offsets[-1] > whole:
        raise ValueError
    return [None if gone else value for gone, value in zip(missing.tolist(), found, strict=True)]


def _missing(buffer: Any, start: int, length: int) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(_bytes(buffer), np.uint8), bitorder="little")
    return bits[start : start + length] == 0


def _bytes(buffer: Any) -> bytes:
    if buffer is None:
        return b""
    if buffer.name != "pyarrow.lib.py_buffer" or type(buffer.args[0]) is not bytes:
        raise ValueError
    return buffer.args[0]


def _array(asked: Asked) -> np.ndarray | None:
    """NumPy's arrays as its pickles have them: made empty and filled, or around a buffer."""
    try:
        if asked.name.endswith("multiarray._reconstruct"):
            _, shape, dtype, _, raw = asked.state
        elif asked.name.endswith("numeric._frombuffer"):
            raw, dtype, shape, _ = asked.args
        else:
            return None
        kind = _dtype(dtype)
        if len(shape) != 1 or len(raw) != shape[0] * kind.itemsize:
            return None
        return np.frombuffer(raw, kind).astype(np.int64)
    except (TypeError, ValueError):
        return None


def _scalar(value: Any) -> Any:
    """The number in a pickled NumPy scalar; anything else as it is."""
    if not isinstance(value, Asked) or not value.name.endswith("multiarray.scalar"):
        return value
    try:
        dtype, raw = value.args
        return int(np.frombuffer(raw, _dtype(dtype))[0])
    except (TypeError, ValueError, IndexError):
        return value


def _dtype(asked: Any) -> np.dtype:
    """A type of whole numbers; ValueError for any other."""
    if not isinstance(asked, Asked) or asked.name != "numpy.dtype" or asked.args[0] not in _WHOLE:
        raise ValueError
    order = asked.state[1] if isinstance(asked.state, tuple) else "<"
    return np.dtype(asked.args[0]).newbyteorder(order if order in ("<", ">") else "=")
