"""Whether the model embeds the tokens that a tokenizer has."""

from pathlib import Path

from tutelage.errors import UserError
from tutelage.text.template import Template
from tutelage.text.tokenizer import Tokenizer


def check_vocabulary(model: Path, embedded: int, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer of more tokens than the model embeds."""
    if tokenizer.size <= embedded:
        return
    beyond, words = _control_beyond(tokenizer, embedded), ""
    if len(beyond) == tokenizer.size - embedded:
        names = ", ".join(beyond[:5])
        words = f", or its settings name control tokens that it never had: take {names} out of them"
    raise UserError(
        f"{model}: its tokenizer has {tokenizer.size} tokens, the model embeds {embedded}; "
        f"they do not belong together{words}"
    )


def check_written(model: Path, embedded: int, tokenizer: Tokenizer, template: Template | None) -> None:
    """Refuse a tokenizer by which a prompt may have tokens that the model does not embed.

    Control tokens that neither begin a text nor stand in the template may be missing: nothing writes them."""
    beyond = _control_beyond(tokenizer, embedded)
    named = [tokenizer.named.get(name) for name in ("bos_token", "eos_token")]
    written = {*named, *(template.control if template is not None else ())}
    if len(beyond) < tokenizer.size - embedded or written & set(beyond):
        check_vocabulary(model, embedded, tokenizer)


def _control_beyond(tokenizer: Tokenizer, embedded: int) -> list[str]:
    return [name for name, token in tokenizer.control.items() if token >= embedded]
