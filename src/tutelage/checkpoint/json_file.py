"""Settings in JSON files beside a model or an adapter."""

import json
from pathlib import Path
from typing import Any

from tutelage.errors import UserError


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds; what is no file, no JSON or no object is refused by name."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deep for a file of settings") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}, not an object of settings")
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Of a key that is given twice programs read different values."""
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"{twice[:80]} is given twice")
    return values
