"""generation_config.json: the tokens that texts begin and end with, for what writes text."""

import json
from dataclasses import replace
from pathlib import Path

from tutelage.checkpoint.config_values import check_values
from tutelage.checkpoint.json_file import read_object
from tutelage.model.config import ModelConfig
from tutelage.model.config_file import named_tokens

FILE = "generation_config.json"


def write_generation_config(config: ModelConfig, directory: Path) -> None:
    """Write what the config knows of them."""
    eos = config.eos[0] if len(config.eos) == 1 else list(config.eos) or None
    values = {"bos_token_id": config.bos, "eos_token_id": eos, "pad_token_id": config.pad}
    known = {key: value for key, value in values.items() if value is not None}
    (directory / FILE).write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def with_generation_config(config: ModelConfig, directory: Path) -> ModelConfig:
    """The config with the end tokens of the file there, which generate() stops at, and what else it lacks."""
    values = read_object(directory / FILE) if (directory / FILE).exists() else {}
    check_values(values, directory / FILE)
    found = named_tokens(values)
    config = replace(config, bos=found["bos"] if config.bos is None else config.bos)
    config = replace(config, pad=found["pad"] if config.pad is None else config.pad)
    return replace(config, eos=found["eos"] or config.eos)
