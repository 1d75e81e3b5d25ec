"""Read a written model back and compare what it answers with what the model it was made of answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tutelage.checkpoint.by_block import AsWritten, logits_by_block
from tutelage.checkpoint.hf import open_source
from tutelage.checkpoint.source import Source
from tutelage.data.encode import Encoder
from tutelage.errors import UserError
from tutelage.model.config import ModelConfig
from tutelage.recipes.saying import say
from tutelage.recipes.weights.merging import QUESTIONS
from tutelage.text.tokenizer import Tokenizer

TOLERANCE = 1e-4  # of the largest logit; the same numbers in the same arithmetic differ by 0


@dataclass(frozen=True, slots=True)
class Verified:
    """How far the files are from the model."""

    explained: float  # largest difference of logits from the model rounded as the files are
    exact: float  # and from the model as it was
    same: int  # likeliest tokens that are the same, of
    positions: int


def verify(
    source: Source,
    shape: ModelConfig,
    tokenizer: Tokenizer,
    written: Path,
    *,
    rounded: Callable[[Tensor], Tensor],
) -> Verified:
    """Open `written` as any model is opened, and compare in float32 on a few texts, block after block.

    Refused if the logits differ from those of `source`, rounded as the files shall be, by more than sums do.
    """
    texts, roles = _probes(tokenizer, shape)
    back_shape, back = open_source(written)
    found = logits_by_block(back_shape, back, texts, roles)
    wanted = logits_by_block(shape, AsWritten(source, rounded), texts, roles)
    exact = logits_by_block(shape, source, texts, roles)
    largest = max(1.0, float(wanted.abs().max()))
    result = Verified(
        float((found - wanted).abs().max()),
        float((found - exact).abs().max()),
        int((found.argmax(-1) == exact.argmax(-1)).sum()),
        len(found),
    )
    if not result.explained <= TOLERANCE * largest:
        raise UserError(
            f"{written} was written, but is not the model that it was made of: read back, logits differ by "
            f"{result.explained:.3g} from those of the same weights in the same dtype, which should agree. "
            "Do not use it; write it again to another disk, and report it if that fails too"
        )
    flips = (
        "" if shape.head == "score" else f"; {result.same} of {result.positions} likeliest tokens are equal"
    )
    say(
        f"{written}: verified; read back, logits differ by {result.explained:.2g} from the model's in this "
        f"dtype, by {result.exact:.2g} from the model's as it was{flips}"
    )
    return result


def _probes(tokenizer: Tokenizer, shape: ModelConfig) -> tuple[list[list[int]], list[list[int]]]:
    """Tokens and roles of the texts, as far as the model has them and has room."""
    encoder = Encoder(None, tokenizer)
    encoded = [encoder.prompt(question) for question in QUESTIONS]
    kept: Sequence[list[tuple[int, int]]] = [
        [pair for pair in zip(text.tokens, text.roles, strict=True) if pair[0] < shape.vocab_size]
        for text in encoded
    ]
    cut = [pairs[: shape.max_positions] for pairs in kept if pairs]
    return [[token for token, _ in pairs] for pairs in cut], [[role for _, role in pairs] for pairs in cut]
