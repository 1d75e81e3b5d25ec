"""Models that another program, whose format is written, would run but compute otherwise."""

from collections.abc import Collection, Sequence

from tutelage.errors import UserError
from tutelage.model.config import ModelConfig
from tutelage.model.families import UNLIKE_LLAMA


def unlike_llama(
    config: ModelConfig, *, known: Collection[str] = (), scores: bool = False, roles: bool = False
) -> list[str]:
    """What a program of Llama's arithmetic lacks for the model, in words.

    `known` are the traits of other families that the program has all the same; `scores` and `roles` say that
    it has a score head and role embeddings."""
    problems = []
    if unlike := [UNLIKE_LLAMA[name] for name in config.unlike_llama if name not in known]:
        problems.append(f"it is no plain Llama: {', '.join(unlike)}")
    if any(window and window < config.max_positions for window in config.windows or ()):
        problems.append("attention has a sliding window, it has none")
    if config.head == "score" and not scores:
        problems.append("it has a score head, and that program writes text")
    if config.role_embeddings and not roles:
        problems.append("what is added to a token depends on whose it is, it has no role embeddings")
    return problems


def fixed_otherwise(settings: Sequence[tuple[str, object, object]]) -> list[str]:
    """Of (name, the model's value, the program's only one) those that differ, in words."""
    return [
        f"{name} is {found!r}, it computes with {wanted!r}"
        for name, found, wanted in settings
        if found != wanted
    ]


def scaled_otherwise(config: ModelConfig) -> list[str]:
    """A scaled rope that is not Llama 3.1's, in words."""
    if (config.rope_scaling or {}).get("rope_type", "llama3") == "llama3":
        return []
    return [f"rope_scaling is {config.rope_scaling}, it knows Llama 3.1's kind"]


def refuse_all(program: str, problems: list[str]) -> None:
    """UserError that names every problem at once, if there is one."""
    if problems:
        raise UserError(f"{program} cannot run this model: " + "; ".join(problems))
