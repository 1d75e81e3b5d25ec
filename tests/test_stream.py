"""Text that is printed while a model writes is the text that decoding gives, in whole characters."""

import random

import pytest
from conversations import CONTENTS
from hypothesis import given
from hypothesis import strategies as some
from official import tokenizer as official_tokenizer
from real_tokenizers import tokenizer as real_tokenizer
from tiny_sentencepiece import write_model

from tutelage.checkpoint.tokenizer import load_tokenizer
from tutelage.text.stream import StreamDecoder
from tutelage.text.tokenizer import Tokenizer

HALF = "\ufffd"

SOURCES = ["smollm2", "qwen", "llama3", "mistral_v1", "mistral_v3"]
MORE = [
    "gpt2",
    "phi3",
    "llama2",
    "olmo2",
    "gemma",
    "gemma3",
    "tekken",
    "llama3_ranks",
    "qwen_ranks",
    "mistral_v7",
]
EVERY = [*SOURCES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]


def tokenizer_of(name: str) -> Tokenizer:
    return official_tokenizer(name) if name in SOURCES else real_tokenizer(name)


@pytest.mark.parametrize("name", EVERY)
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
    if HALF not in tokenizer.decode(tokens, skip_control=skip):
        assert not any(HALF in part for part in parts)


def test_unigrams_stream_too(tmp_path):
    """Their bytes are tokens as those of SentencePiece's BPE are."""
    options = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    write_model(tmp_path / "tokenizer.model", model_type="unigram", vocab_size=500, **options)
    tokenizer = load_tokenizer(tmp_path)
    tokens = tokenizer.encode("Lily 🧿 é\n東京 ran")
    stream = StreamDecoder(tokenizer)
    parts = [stream.push(token) for token in tokens]
    assert "".join(parts) + stream.flush() == tokenizer.decode(tokens) == "Lily 🧿 é\n東京 ran"
    assert len([part for part in parts if part]) >= 3 and HALF not in "".join(parts)


@pytest.mark.parametrize("name", EVERY)
def test_a_stream_gives_out_whole_characters_and_soon(name):
    tokenizer = tokenizer_of(name)
    stream, text = StreamDecoder(tokenizer), "So 🧿 é 今天\n end of it"
    parts = [stream.push(token) for token in tokenizer.encode(text)]
    assert "\ufffd" not in "".join(parts)
    assert len([part for part in parts if part]) >= 8
    assert "".join(parts) + stream.flush() == tokenizer.decode(tokenizer.encode(text))
