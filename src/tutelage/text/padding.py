"""The token to pad with where a model's score is read at the last token that is not padding.

That is how transformers finds the end of a text: a pad token that ends conversations hides their ends.
"""

import re

from tutelage.text.template import Template
from tutelage.text.tokenizer import Tokenizer

NOTE = (
    "the tokenizer has no control token that a conversation cannot end in, so none is named for padding: "
    "transformers scores one text at a time"
)
_SPARE = re.compile("reserved|unused|control", re.IGNORECASE)


def padded_with(tokenizer: Tokenizer, pad: int) -> Tokenizer:
    """The tokenizer with this control token for padding."""
    if pad == tokenizer.pad:
        return tokenizer
    content = next(content for content, index in tokenizer.control.items() if index == pad)
    settings = {**tokenizer.settings, "pad_token": content}
    return Tokenizer(tokenizer.source, settings, tokenizer.sentencepiece)


def scoring_pad(tokenizer: Tokenizer, template: Template | None) -> int | None:
    """The tokenizer's own pad token if the template never writes it, else another such control token.

    One called so or reserved comes before others, the unknown token last: a text cut short may end in it.
    """
    writes = tokenizer.chat_template or "" if template is None else template.control
    ends = {tokenizer.bos, tokenizer.eos}
    free = {
        content: index
        for content, index in tokenizer.control.items()
        if content not in writes and index not in ends
    }
    if tokenizer.pad in free.values():
        return tokenizer.pad
    unknown = tokenizer.named.get("unk_token")

    def order(content: str) -> tuple[bool, bool, bool, int]:
        return content == unknown, "pad" not in content.lower(), not _SPARE.search(content), free[content]

    return free[min(free, key=order)] if free else None
