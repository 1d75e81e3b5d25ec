"""Text that is printed while a model writes is the text that decoding gives, in whole characters."""

import random

import pytest
from conversations import CONTENTS
from hypothesis import given
from hypothesis import strategies as some
from official import tokenizer as tokenizer_of

from tutelage.text.stream import StreamDecoder

SOURCES = ["smollm2", "qwen", "llama3", "mistral_v1", "mistral_v3"]


@pytest.mark.parametrize("name", SOURCES)
@given(chance=some.randoms(use_true_random=False), skip=some.booleans(), wild=some.booleans())
def test_streamed_text_is_the_decoded_text(name, chance: random.Random, skip, wild):
    """Of real text and of random tokens, halves of characters among them, with and without control tokens."""
    tokenizer = tokenizer_of(name)
    tokens = tokenizer.encode("".join(chance.choices(CONTENTS, k=4)))
    if wild:
        often = list(tokenizer.byte_tokens) or tokenizer.encode("🧿🏳️‍🌈 é")
        often += list(tokenizer.control.values())[:3] + tokens[:5]
        tokens = [
            chance.choice(often) if chance.random() < 0.7 else chance.randrange(tokenizer.size)
            for _ in range(40)
        ]
    stream = StreamDecoder(tokenizer, skip_control=skip)
    parts = [stream.push(token) for token in tokens]
    assert "".join(parts) + stream.flush() == tokenizer.decode(tokens, skip_control=skip)
    assert stream.flush() == ""


@pytest.mark.parametrize("name", SOURCES)
def test_a_stream_gives_out_whole_characters_and_soon(name):
    tokenizer = tokenizer_of(name)
    stream, text = StreamDecoder(tokenizer), "So 🧿 é 今天\n end of it"
    parts = [stream.push(token) for token in tokenizer.encode(text)]
    assert "\ufffd" not in "".join(parts)
    assert len([part for part in parts if part]) >= 8
    assert "".join(parts) + stream.flush() == tokenizer.decode(tokenizer.encode(text))
