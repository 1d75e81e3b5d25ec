"""The pad token of a reward model: transformers reads the score at the last token that is another."""

import dataclasses
import json

import pytest
import torch
from conversations import say
from official import SOURCE_OF, tokenizer
from score_models import loaded, our_score, their_score
from tiny_data import TEMPLATE, TOKENIZER
from tiny_tokenizer import tiny_tokenizer
from transformers import AutoTokenizer

from tutelage.checkpoint.hf import save_model
from tutelage.model.config import ModelConfig
from tutelage.model.score import with_score_head
from tutelage.model.transformer import Transformer, initialise_
from tutelage.text.padding import padded_with, scoring_pad
from tutelage.text.template import Template
from tutelage.text.tokenizer import Tokenizer

CHATS = [
    say("user: Hi", "assistant: Hello!"),
    say("user: Tell me something long, please.", "assistant: Once upon a time there was a cat. The end."),
    say("user: a", "assistant: "),
]
EXPECTED = {
    "smollm2": "<repo_name>",
    "chatml": "<|endoftext|>",
    "qwen2.5_instruct": "<|endoftext|>",
    "llama3_instruct": "<|reserved_special_token_0|>",
    "llama3.1_instruct": "<|reserved_special_token_0|>",
    "mistral_instruct": "[control_12]",
}


def rows_of(template: Template, vocabulary: Tokenizer) -> list[list[int]]:
    """Whole conversations, and the same up to the last token that is learned, where one may be scored."""
    whole = template.encode_batch(CHATS, vocabulary)
    ends = [max(place for place, weight in enumerate(each.weights) if weight) for each in whole]
    cut = [each.tokens[: end + 1] for each, end in zip(whole, ends, strict=True)]
    return [each.tokens for each in whole] + cut


def scoring_model(vocabulary: Tokenizer) -> Transformer:
    shape = ModelConfig(
        vocab_size=vocabulary.size, dim=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, ffn_dim=16
    )
    model = Transformer(with_score_head(shape))
    initialise_(model, seed=0)
    with torch.no_grad():
        model.head_weight.mul_(100)
    return model.eval()


@pytest.mark.parametrize("name", EXPECTED)
def test_no_conversation_ends_in_the_token_to_pad_with(name):
    vocabulary, template = tokenizer(SOURCE_OF[name]), Template.load(name)
    pad = scoring_pad(vocabulary, template)
    assert pad is not None and vocabulary.token_text(pad) == EXPECTED[name]
    assert all(pad not in row for row in rows_of(template, vocabulary))


def test_transformers_scores_padded_conversations_where_they_end(tmp_path):
    """SmolLM2 pads with the token that ends replies: as it is, transformers looks one token too early."""
    theirs, template = tokenizer("smollm2"), Template.load("smollm2")
    model, rows = scoring_model(theirs), rows_of(template, theirs)
    expected = our_score(model, rows)
    for place, pad in enumerate([scoring_pad(theirs, template), theirs.pad]):
        vocabulary = padded_with(theirs, pad)
        directory = tmp_path / str(place)
        save_model(model, dataclasses.replace(model.config, pad=pad), directory, dtype=torch.float32)
        vocabulary.save(directory)
        official = AutoTokenizer.from_pretrained(directory)
        assert official.pad_token_id == pad == loaded(directory).config.pad_token_id
        found = their_score(loaded(directory), rows, official.pad_token_id)
        if place == 0:
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        else:
            wrong = (found - expected).abs() > 1e-3
            assert wrong.tolist() == [False] * 3 + [True] * 3, "or this test would show nothing"


def test_the_tokenizers_own_pad_token_stays_where_it_is_a_good_one():
    own = tiny_tokenizer(pad_token="<|endoftext|>")
    assert scoring_pad(own, TEMPLATE) == own.pad and padded_with(own, own.pad) is own
    pad = scoring_pad(TOKENIZER, TEMPLATE)
    other = padded_with(TOKENIZER, pad)
    assert pad == other.pad == TOKENIZER.control["<|endoftext|>"] != TOKENIZER.pad
    assert other.fingerprint == TOKENIZER.fingerprint


def with_control(*contents: str, **settings: str) -> Tokenizer:
    """ChatML's tokens and these; settings name some."""
    vocabulary = json.loads(tiny_tokenizer().source)
    plain = next(token for token in vocabulary["added_tokens"] if token["content"] == "<|im_end|>")
    first = min(token["id"] for token in vocabulary["added_tokens"])
    own = [token["content"] for token in vocabulary["added_tokens"] if token["content"] != "<|endoftext|>"]
    vocabulary["added_tokens"] = [
        plain | {"id": first + place, "content": content} for place, content in enumerate([*own, *contents])
    ]
    return Tokenizer(json.dumps(vocabulary), tiny_tokenizer().settings | settings)


@pytest.mark.parametrize(
    "contents, settings, expected",
    [
        (["<tool>", "<|reserved_3|>", "<my_pad>"], {}, "<my_pad>"),
        (["<tool>", "<|reserved_3|>"], {}, "<|reserved_3|>"),
        (["<unk>", "<tool>"], {"unk_token": "<unk>"}, "<tool>"),
        (["<unk>"], {"unk_token": "<unk>"}, "<unk>"),
        ([], {}, None),
        (["</s>"], {"eos_token": "</s>"}, None),
    ],
)
def test_reserved_tokens_come_first_and_the_unknown_one_last(contents, settings, expected):
    vocabulary = with_control(*contents, **settings)
    pad = scoring_pad(vocabulary, TEMPLATE)
    assert pad == (None if expected is None else vocabulary.control[expected])


def test_without_a_template_what_the_models_own_writes_is_avoided():
    vocabulary = tiny_tokenizer(chat_template="{{ messages }}<|endoftext|>")
    assert scoring_pad(vocabulary, None) is None
    assert scoring_pad(tiny_tokenizer(), None) == TOKENIZER.control["<|endoftext|>"]
