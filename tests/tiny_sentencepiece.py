"""SentencePiece models of little text, and texts that are hard to tokenize alike."""

import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random

import sentencepiece

from tutelage.data.stories.plots import document

PARTS = [
    "", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "a", "Jack", "The end.", " Lily", "1234567890", "3.14",
    "½", "naïve", "café", "cafe\u0301", "ﬁ", "東京", "日本語のテキスト", "한국어", "עברית", "हिन्दी", "ไทย",
    "😀", "👍🏽", "👩‍👩‍👧", "🇫🇷", "\u200b", "\ufeff", "\u00a0", "\u3000", "\u2028", "\x00", "\x07", "\ufffd",
    "▁", "▁▁", "x▁y", "▅", "⁇", "<0x41>", "<s", "<|im_start|", "xxxxxxxx", "ababababab", "A" * 100, " " * 33,
    "don't", "(a,b);", "ＡＢＣ",
]  # fmt: skip


@cache
def stories() -> list[str]:
    rng = Random(0)
    return [document(rng) for _ in range(600)] + ["two  three   four    spaces", "naïve café 東京 😀\tx"]


def texts() -> Iterator[str]:
    """Hundreds: every part alone, and parts put together by chance."""
    yield from PARTS
    rng = Random(7)
    for _ in range(500):
        yield "".join(rng.choices(PARTS, k=rng.randint(2, 9)))
    yield from stories()[:100]


def write_model(path: Path, **options: object) -> None:
    """A model as a person may have trained it."""
    model = io.BytesIO()
    settings = {"model_type": "bpe", "vocab_size": 700, "byte_fallback": True, "minloglevel": 2, **options}
    lines = [line for text in stories() for line in text.split("\n")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, hard_vocab_limit=False, **settings
    )
    path.write_bytes(model.getvalue())
