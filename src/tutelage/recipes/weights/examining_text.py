"""The examinations of `doctor` that look at text: tokenizer, special tokens, template and ends of replies."""

from pathlib import Path
from typing import Any

from tutelage.checkpoint.json_file import read_object
from tutelage.checkpoint.tokenizer import find_gguf, load_tokenizer
from tutelage.errors import UserError
from tutelage.model.config import ModelConfig
from tutelage.model.config_file import named_tokens
from tutelage.recipes.stage.chain import Chain, shape_of
from tutelage.report.health import Health
from tutelage.text.jinja_template import template_of
from tutelage.text.template import Template
from tutelage.text.tokenizer import Tokenizer


def text(
    health: Health, chain: Chain, shape: ModelConfig | None, tokenizer_name: str | None, template: str | None
) -> tuple[Tokenizer | None, Template | None]:
    """The tokenizer, its special tokens against the model's, and the template that replies will follow."""
    try:
        tokenizer = load_tokenizer(tokenizer_name or chain.text)
    except UserError as error:
        health.problem(error, "give the directory of the tokenizer that it was trained with by --tokenizer")
        return None, None
    kind = "SentencePiece BPE" if tokenizer.byte_tokens else "byte-level BPE"
    health.note("tokenizer", "kind", f"{kind}, {tokenizer.size:,} tokens, {len(tokenizer.control)} control")
    if shape is not None:
        _compare_sizes(health, tokenizer, shape)
        _compare_special(health, chain.base, tokenizer, shape)
    found = _template(health, tokenizer, template)
    if shape is not None:
        _note_stops(health, tokenizer, shape if not chain.adapters else _noted(chain, shape), found)
    return tokenizer, found


def _noted(chain: Chain, shape: ModelConfig) -> ModelConfig:
    try:
        return shape_of(chain)
    except UserError:
        return shape  # what is wrong with the adapter is told already


def _compare_sizes(health: Health, tokenizer: Tokenizer, shape: ModelConfig) -> None:
    if tokenizer.size > shape.vocab_size:
        health.problem(
            f"the tokenizer has {tokenizer.size:,} tokens and the model embeds {shape.vocab_size:,}: texts "
            "with the last ones cannot be read",
            "give the tokenizer that the model was trained with by --tokenizer, or put its files in place",
        )
    elif tokenizer.size < shape.vocab_size:
        spare = shape.vocab_size - tokenizer.size
        health.note("tokenizer", "spare rows", f"{spare:,} of the embedding belong to no token")


def _compare_special(health: Health, base: Path, tokenizer: Tokenizer, shape: ModelConfig) -> None:
    """BOS, EOS and padding by each file that names them, and where these disagree."""
    own = {"bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.pad}
    places: dict[str, dict[str, Any]] = {"tokenizer": own}
    if base.is_dir() and find_gguf(base) is None:
        for file in ("config.json", "generation_config.json"):
            if (base / file).is_file():
                found = named_tokens(read_object(base / file))
                places[file] = found | {"eos": list(found["eos"]) or None}
        if "generation_config.json" not in places and "config.json" in places:
            health.warn(
                "there is no generation_config.json: other programs take the end token from config.json",
                "`tutelage convert` writes one",
            )
    for name in ("bos", "eos", "pad"):
        stated = {place: values[name] for place, values in places.items() if values[name] is not None}
        words = [f"{place} {_named(tokenizer, value)}" for place, value in stated.items()]
        sets = [frozenset(value if isinstance(value, list) else [value]) for value in stated.values()]
        if len(set(sets)) == 1:
            words = [_named(tokenizer, next(iter(stated.values())))]
        health.note("tokenizer", name, ", ".join(words) or "none")
        if len(sets) > 1 and not frozenset.intersection(*sets):
            health.warn(
                f"{name} is not the same everywhere: {', '.join(words)}",
                f"set {name}_token_id in config.json and generation_config.json to the tokenizer's, unless "
                "the model was trained otherwise",
            )
        outside = sorted(token for each in sets for token in each if not 0 <= token < shape.vocab_size)
        if outside:
            health.problem(
                f"{name} is {outside[0]}, and the model has tokens 0 to {shape.vocab_size - 1}",
                f"set {name}_token_id to a token of the vocabulary, or remove it",
            )
    if tokenizer.pad is not None and tokenizer.pad == tokenizer.eos:
        health.warn(
            f"the padding token is the end token ({_named(tokenizer, tokenizer.pad)})",
            "nothing here minds; a trainer elsewhere that ignores padding never teaches the model to end: "
            "name another pad_token in tokenizer_config.json for it",
        )


def _named(tokenizer: Tokenizer, value: int | list[int]) -> str:
    tokens = value if isinstance(value, list) else [value]
    return " ".join(f"{tokenizer.token_text(token)} ({token})" for token in tokens)


def _template(health: Health, tokenizer: Tokenizer, name: str | None) -> Template | None:
    try:
        template = template_of(tokenizer, name)
    except UserError as error:
        health.note("chat", "template", "none")
        if name or tokenizer.chat_template is not None:
            health.problem(error, "give --template_config, or write the template as a YAML file")
        else:
            health.warn(
                "the model has no chat template: chats and fine-tuning need one, plain prompts do not",
                "name the template it was trained with by --template_config, or give --raw",
            )
        return None
    how = "named by --template_config" if name else "writes what the model's own chat template writes"
    health.note("chat", "template", f"{template.name}, {how}")
    return template


def _note_stops(health: Health, tokenizer: Tokenizer, shape: ModelConfig, template: Template | None) -> None:
    """The tokens that end a reply here, and those of them at which other programs would not end it."""
    if shape.head != "lm":
        return
    ends = template.stop_ids(tokenizer) if template is not None else set()
    own = set(shape.eos) | ({tokenizer.eos} if tokenizer.eos is not None else set())
    stops = sorted(ends | own)
    health.note("chat", "replies end with", _named(tokenizer, stops) if stops else "nothing")
    if not stops:
        health.problem(
            "no token ends a text: every answer would be as long as it may be",
            "name the end token as eos_token in tokenizer_config.json and by eos_token_id in config.json",
        )
    elif missed := sorted(ends - set(shape.eos)):
        health.warn(
            f"replies end with {_named(tokenizer, missed)}, which the model's own settings do not call an "
            "end: other programs would go on after it",
            f"set eos_token_id to {sorted(ends | set(shape.eos))} in generation_config.json",
        )
