"""The tokenizer and the shape of the model that pretraining begins with: a new one, or one that exists."""

import difflib
from dataclasses import replace
from pathlib import Path

from tutelage.checkpoint.hf import load_config, read_config
from tutelage.checkpoint.tokenizer import load_tokenizer
from tutelage.errors import UserError
from tutelage.model.config import ModelConfig
from tutelage.model.presets import PRESETS, reshaped
from tutelage.model.score import refuse_score_head
from tutelage.recipes.pretrain import PretrainConfig
from tutelage.recipes.saying import say
from tutelage.recipes.stage.adapting import Start
from tutelage.recipes.stage.preparing import check_model
from tutelage.text.tokenizer import Tokenizer


def existing(start: Start, max_seq_len: int) -> tuple[Tokenizer, ModelConfig]:
    """Those of the model that training starts from; trained on longer rows, its config will say so."""
    shape, tokenizer = start.shape(), load_tokenizer(start.text)
    check_model(start.base, shape, tokenizer)
    return tokenizer, replace(shape, max_positions=max(shape.max_positions, max_seq_len))


def new(config: PretrainConfig) -> tuple[Tokenizer, ModelConfig]:
    """The named shape with what the flags change, the tokenizer's vocabulary, and positions for a row."""
    assert config.tokenizer is not None
    tokenizer, named = load_tokenizer(config.tokenizer), named_shape(config.model)
    refuse_score_head(named, config.model)
    shape = changed(named, config)
    unasked = config.model == PretrainConfig.__dataclass_fields__["model"].default
    if config.max_seq_len < named.max_positions and not unasked:
        say(
            f"{config.model} has room for {named.max_positions:,} positions; this run's rows have "
            f"{config.max_seq_len:,} (--max_seq_len), and so will the model"
        )
    multiple = config.pad_vocab_to_multiple_of
    return tokenizer, replace(
        shape,
        vocab_size=-(-tokenizer.size // multiple) * multiple,
        max_positions=config.max_seq_len,
        bos=tokenizer.bos,
        eos=() if tokenizer.eos is None else (tokenizer.eos,),
        pad=tokenizer.pad,
        dtype="float32",
    )


def changed(named: ModelConfig, config: PretrainConfig) -> ModelConfig:
    """The named shape with what the flags change."""
    return reshaped(
        named,
        dim=config.dim,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        ffn_dim=config.ffn_dim,
        tied=config.tied,
        rope_theta=config.rope_theta,
    )


def named_shape(name: str) -> ModelConfig:
    """The preset of this name, or what the config.json there describes."""
    path = Path(name).expanduser()
    if name in PRESETS:
        return PRESETS[name]
    if path.is_file():
        return read_config(path)
    if path.is_dir():
        return load_config(path)
    lower = {preset.lower(): preset for preset in PRESETS}
    nearest = difflib.get_close_matches(name.lower(), lower, n=1)
    hint = f"did you mean {lower[nearest[0]]}? " if nearest else ""
    raise UserError(
        f"model {name} is no file and no name of a shape; {hint}names are {', '.join(PRESETS)}; "
        "a config.json gives any other shape"
    )
