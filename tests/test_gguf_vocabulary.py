"""A tokenizer written as GGUF comes back as it was, and one that llama.cpp would cut otherwise is refused."""

import json
from functools import cache
from random import Random

import pytest
import tokenizers
from gguf import GGUFWriter
from gguf_files import write, write_settings
from materials import llama3_tokenizer_dir, mistral_v3_tokenizer_dir, qwen_tokenizer_dir
from tiny_chat import byte_tokenizer
from tiny_sentencepiece import stories
from tokenizers import Regex, models, normalizers, pre_tokenizers

from tutelage.checkpoint.gguf.cuts import name_of_cut
from tutelage.checkpoint.gguf.vocabulary import vocabulary_settings
from tutelage.checkpoint.tokenizer import load_tokenizer
from tutelage.errors import UserError
from tutelage.model.config import ModelConfig
from tutelage.text import byte_level
from tutelage.text.tokenizer import Tokenizer
from tutelage.text.train import WORDS, train_tokenizer
from tutelage.text.train_sentencepiece import train_sentencepiece

(QWEN35,) = byte_level.CUTS["qwen35"].patterns
TEXTS = [
    "Hello, world! It's we'll I'VE they'd DON'T",
    "  two spaces, then three   and a tab\tand a newline\n\n and one more \n",
    "1 12 123 1234 12345 3.14159 1,000,000 x86-64 ½ ² ٣٤",
    "naïve café, e\u0301 decomposed, 日本語のテキスト हिन्दी ไทย 😀👍🏽 \u200b\ufeff",
    "▁ the underline itself ▁▁, a \x00 control \x07 character, " + " " * 20,
]


def config_of(vocab_size: int, **others) -> ModelConfig:
    shape = {"dim": 8, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "head_dim": 8, "ffn_dim": 8}
    return ModelConfig(vocab_size=vocab_size, **shape, **others)


def trained(kind: str) -> Tokenizer:
    texts = stories()[:200]
    return {"bytes": train_tokenizer, "sentencepiece": train_sentencepiece}[kind](texts, 700, ["<|im_end|>"])


def without_model(tokenizer: Tokenizer) -> Tokenizer:
    return Tokenizer(tokenizer.source, tokenizer.settings)


MADE = {
    "bytes": lambda: trained("bytes"),
    "sentencepiece": lambda: trained("sentencepiece"),
    "sentencepiece of tokenizer.json": lambda: without_model(trained("sentencepiece")),
    "llama 3": lambda: load_tokenizer(llama3_tokenizer_dir()),
    "qwen": lambda: load_tokenizer(qwen_tokenizer_dir()),
    "mistral v3": lambda: load_tokenizer(mistral_v3_tokenizer_dir(legacy=True)),
}
CUTS = {"bytes": "qwen35", "llama 3": "llama-bpe", "qwen": "qwen2"}


@cache
def qwen_settings() -> tuple[Tokenizer, dict]:
    qwen = MADE["qwen"]()
    return qwen, vocabulary_settings(qwen, config_of(qwen.size + 5))


@pytest.mark.parametrize(
    "name",
    ["bytes", "sentencepiece", "sentencepiece of tokenizer.json", "qwen"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("llama 3", "mistral v3")],
)
def test_a_written_tokenizer_comes_back(name, tmp_path):
    if name == "qwen":
        tokenizer, settings = qwen_settings()
    else:
        tokenizer = MADE[name]()
        settings = vocabulary_settings(tokenizer, config_of(tokenizer.size + 5))
    assert settings["tokenizer.ggml.pre"] == CUTS.get(name, "default")
    assert len(settings["tokenizer.ggml.tokens"]) == tokenizer.size + 5
    assert settings["tokenizer.ggml.tokens"][-1] == f"[PAD{tokenizer.size + 4}]"
    assert settings["tokenizer.ggml.token_type"][-5:] == [5] * 5
    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    write_settings(writer, {key: value for key, value in settings.items() if value != []})
    copy = load_tokenizer(write(writer, tmp_path / "model.gguf"))
    assert (copy.size, copy.bos, copy.eos, copy.pad) == (
        tokenizer.size, tokenizer.bos, tokenizer.eos, tokenizer.pad,
    )  # fmt: skip
    assert copy.chat_template == tokenizer.chat_template
    assert set(tokenizer.control.items()) <= set(copy.control.items())
    for text in [*TEXTS, *stories()[:20]]:
        assert copy.encode(text) == tokenizer.encode(text), text
        assert copy.decode(copy.encode(text)) == tokenizer.decode(tokenizer.encode(text))


def test_scores_of_merges_are_in_the_order_of_the_model_s():
    tokenizer = trained("sentencepiece")
    found = [
        vocabulary_settings(each, config_of(tokenizer.size))["tokenizer.ggml.scores"]
        for each in (tokenizer, without_model(tokenizer))
    ]
    kinds = vocabulary_settings(tokenizer, config_of(tokenizer.size))["tokenizer.ggml.token_type"]
    tokens = vocabulary_settings(tokenizer, config_of(tokenizer.size))["tokenizer.ggml.tokens"]
    merged = [token for token, kind in enumerate(kinds) if kind == 1 and len(tokens[token]) > 1]
    orders = [sorted(merged, key=lambda token: -scores[token]) for scores in found]
    assert orders[0] == orders[1] and len(merged) > 300


def test_tokens_are_of_the_kinds_that_the_converter_gives():
    settings = vocabulary_settings(trained("sentencepiece"), config_of(800))
    assert settings["tokenizer.ggml.token_type"][:5] == [2, 3, 3, 6, 6]  # <unk>, <s>, </s>, bytes
    _, settings = qwen_settings()
    kinds = dict(zip(settings["tokenizer.ggml.tokens"], settings["tokenizer.ggml.token_type"], strict=True))
    assert kinds["<|im_end|>"] == 3 and kinds["<think>"] == 4 and kinds["hello"] == 1
    assert kinds["<|fim_prefix|>"] == 3  # by its looks


def test_special_tokens_are_the_tokenizer_s_then_the_model_s_and_another_end_is_the_end_of_turn():
    tokenizer = trained("bytes")
    end, turn = tokenizer.control["<|endoftext|>"], tokenizer.control["<|im_end|>"]
    settings = vocabulary_settings(tokenizer, config_of(700, eos=(turn, end), bos=7))
    names = {key.split(".")[-1]: value for key, value in settings.items() if key.endswith("token_id")}
    assert names == {
        "bos_token_id": 7, "eos_token_id": end, "eot_token_id": turn, "padding_token_id": tokenizer.pad,
    }  # fmt: skip
    assert settings["tokenizer.ggml.add_bos_token"] is False
    assert vocabulary_settings(trained("sentencepiece"), config_of(700))["tokenizer.ggml.add_bos_token"]


def test_the_cuts_of_trained_vocabularies_are_those_of_qwen_3_5():
    ours, theirs = (pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in (WORDS, QWEN35))
    rng = Random(0)
    parts = [
        "a",
        "Bc",
        "é",
        "e\u0301",
        "\u0301",
        "1",
        "½",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "'s",
        "'S",
        "'ll",
        "'",
    ]
    parts += [".", "!!", "_", "日", "हि", "👍🏽", "\u200b", "\u00a0", "\u2028"]
    for _ in range(5000):
        text = "".join(rng.choices(parts, k=rng.randint(1, 12)))
        assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text), text


def vocabulary_of(pre_tokenizer, normalizer=None, model=None) -> dict:
    made = tokenizers.Tokenizer(model or models.BPE({"a": 0}, []))
    made.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        made.normalizer = normalizer
    return json.loads(made.to_str())


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (vocabulary_of(pre_tokenizers.Whitespace()), "cuts text in a way that llama.cpp has no name for"),
        (vocabulary_of(BYTES), "cuts text in a way that llama.cpp has no name for"),
        (
            vocabulary_of(pre_tokenizers.ByteLevel(add_prefix_space=True)),
            "cuts text in a way that llama.cpp has no name for",
        ),
        (
            vocabulary_of(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\d"), "removed"), BYTES])),
            "cuts text in a way that llama.cpp has no name for",
        ),
        (
            vocabulary_of(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.Lowercase()),
            "changes text before cutting (Lowercase), a way that llama.cpp has no name for",
        ),
    ],
)
def test_cuts_without_a_name_are_refused_and_the_known_are_listed(vocabulary, message):
    with pytest.raises(UserError) as refused:
        name_of_cut(vocabulary)
    assert message in str(refused.value)
    assert str(refused.value).endswith(f"named are those of {', '.join(byte_level.CUTS)}")


def test_a_tiktoken_way_of_spelling_llama_3_s_cuts_is_recognised():
    removed = pre_tokenizers.Split(Regex(QWEN35), "removed", invert=True)
    assert name_of_cut(vocabulary_of(pre_tokenizers.Sequence([removed, BYTES]))) == "qwen35"
    assert name_of_cut(vocabulary_of(pre_tokenizers.ByteLevel(add_prefix_space=False))) == "gpt-2"
    (llama3,) = byte_level.CUTS["llama-bpe"].patterns
    split = pre_tokenizers.Split(Regex(llama3), "isolated")
    for whole, name in [(True, "llama-bpe"), (False, "dbrx")]:
        model = models.BPE({"a": 0}, [], ignore_merges=whole)
        assert name_of_cut(vocabulary_of(pre_tokenizers.Sequence([split, BYTES]), model=model)) == name


def test_merges_that_no_scores_can_order_and_other_kinds_of_model_are_refused():
    tokenizer = without_model(trained("sentencepiece"))
    vocabulary = json.loads(tokenizer.source)
    merges = vocabulary["model"]["merges"]
    first = "".join(merges[0])
    merges.append(merges[0])
    broken = Tokenizer(json.dumps(vocabulary), tokenizer.settings)
    with pytest.raises(UserError, match="not in an order of scores") as refused:
        vocabulary_settings(broken, config_of(800))
    assert repr(first) in str(refused.value)
    with pytest.raises(UserError, match="has no merges, only bytes, and llama.cpp loads none"):
        vocabulary_settings(byte_tokenizer(), config_of(260))
    words = {"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"}
    other = Tokenizer(json.dumps(vocabulary_of(BYTES) | {"model": words}), {})
    with pytest.raises(UserError, match="of type WordLevel; as GGUF only BPE can be written"):
        vocabulary_settings(other, config_of(2))
