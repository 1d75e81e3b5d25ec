"""Settings in JSON files beside a model or an adapter."""

import json
from pathlib import Path
from typing import Any

from tutelage.errors import UserError


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds; what is no file, no JSON or no object is refused by name."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}, not an object of settings")
    return values
