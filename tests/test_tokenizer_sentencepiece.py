"""SentencePiece vocabularies, learned and read: the ids are those of SentencePiece and of transformers."""

import hashlib
import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random

import pytest
import sentencepiece
from gguf.vocab import LlamaHfVocab, SentencePieceVocab, SpecialVocab
from hypothesis import example, given
from hypothesis import strategies as st
from materials import llama_cpp_file, mistral_sentencepiece
from transformers import AutoTokenizer

from tutelage.checkpoint.gguf_file import read_header
from tutelage.checkpoint.tokenizer import load_tokenizer
from tutelage.data.stories import conversation, document
from tutelage.errors import UserError
from tutelage.text.template import Template
from tutelage.text.tokenizer import Tokenizer
from tutelage.text.train_sentencepiece import train_sentencepiece

CONTROL = ["<|im_start|>", "<|im_end|>", "<|reserved_special_token_0|>"]
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


@cache
def trained() -> Tokenizer:
    return train_sentencepiece(stories(), 900, CONTROL)


@cache
def processor() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=trained().sentencepiece)


def texts() -> Iterator[str]:
    """Hundreds: every part alone, and parts put together by chance."""
    yield from PARTS
    rng = Random(7)
    for _ in range(500):
        yield "".join(rng.choices(PARTS, k=rng.randint(2, 9)))
    yield from stories()[:100]


def test_ids_are_those_of_sentencepiece_and_of_transformers(tmp_path):
    trained().save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    official = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    read = Tokenizer.load(tmp_path)
    for text in texts():
        wanted = official.encode(text)
        assert read.encode(text) == wanted, text
        assert theirs(text, add_special_tokens=False)["input_ids"] == wanted, text
        assert read.decode(wanted) == official.decode(wanted) == theirs.decode(wanted), text


@given(st.text())
@example("<s></s><unk><|im_start|>")
def test_any_text_has_the_ids_of_sentencepiece_and_comes_back(text):
    tokens = trained().encode(text)
    assert tokens == processor().encode(text)
    assert trained().decode(tokens) == text.replace("▁", " ")  # which is a space to SentencePiece


def test_ids_are_llama_2s_then_bytes_and_control_tokens_come_last():
    tokenizer, official = trained(), processor()
    assert tokenizer.size == official.vocab_size() == 900
    assert (official.unk_id(), official.bos_id(), official.eos_id(), official.pad_id()) == (0, 1, 2, 896)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (1, 2, 896)
    assert [official.id_to_piece(3 + byte) for byte in range(256)] == [f"<0x{b:02X}>" for b in range(256)]
    special = {name: 896 + number for number, name in enumerate(["<pad>", *CONTROL])}
    assert tokenizer.control == {"<unk>": 0, "<s>": 1, "</s>": 2, **special}
    assert all(official.is_control(token) for token in special.values())


def test_no_text_becomes_a_control_token():
    for name in trained().control:
        tokens = trained().encode(f"a{name} {name}")
        assert tokens == processor().encode(f"a{name} {name}")
        assert not set(tokens) & set(trained().control.values())


def test_digits_stand_alone_and_line_ends_are_in_no_longer_token():
    tokenizer = train_sentencepiece(["1234 5678 the end.\nthe end.\nthe end."] * 50, 310)
    assert len(tokenizer.encode("12345678")) == 9  # and the space before the text
    spelled = [tokenizer.token_text(token) for token in range(tokenizer.size)]
    assert "▁end" in spelled and "\n" not in "".join(spelled)
    assert tokenizer.encode("\n")[-1] == 3 + 0x0A


def test_the_same_texts_give_the_same_model_from_any_iterator():
    again = train_sentencepiece(iter(list(stories())), 900, CONTROL)
    assert again.sentencepiece == trained().sentencepiece
    assert again.fingerprint == trained().fingerprint


def test_the_model_is_that_of_the_command_line_of_the_library(tmp_path):
    """All but the order: tinystories.py of llama2.c trains with these settings, one thread or many."""
    path = tmp_path / "stories.txt"
    path.write_text("\n".join(stories()[:600]) + "\n")
    digests = set()
    for threads in (1, 4):
        sentencepiece.SentencePieceTrainer.train(
            input=str(path), model_prefix=str(tmp_path / "m"), model_type="bpe", vocab_size=700,
            self_test_sample_size=0, input_format="text", character_coverage=1.0, num_threads=threads,
            split_digits=True, allow_whitespace_only_pieces=True, byte_fallback=True,
            normalization_rule_name="identity", minloglevel=2,
        )  # fmt: skip
        official = sentencepiece.SentencePieceProcessor(str(tmp_path / "m.model"))
        pieces = [official.id_to_piece(token) for token in range(700)]
        digests.add(hashlib.sha256(repr(pieces).encode()).hexdigest())
        ours = train_sentencepiece(stories()[:600], 701)  # <pad> is the last
        assert [ours.token_text(token) for token in range(700)] == pieces
    assert len(digests) == 1


def test_llama_cpps_own_readers_read_the_directory(tmp_path):
    trained().save(tmp_path, chat_template=Template.load("chatml").jinja)
    official = processor()
    plain = list(SentencePieceVocab(tmp_path).all_tokens())
    assert [text.decode() for text, _, _ in plain] == [official.id_to_piece(token) for token in range(900)]
    of_json = list(LlamaHfVocab(tmp_path).all_tokens())[1:]  # to which the unknown token is control
    assert [(text, kind) for text, _, kind in of_json] == [(text, kind) for text, _, kind in plain[1:]]
    special = SpecialVocab(tmp_path, n_vocab=900)
    assert special.special_token_ids == {"bos": 1, "eos": 2, "unk": 0, "pad": 896}
    assert special.chat_template == Template.load("chatml").jinja


def test_conversations_have_the_ids_of_the_template_that_is_saved(tmp_path):
    trained().save(tmp_path, chat_template=Template.load("chatml").jinja)
    ours, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    template, rng = Template.recognise(ours), Random(3)
    assert template.name == "chatml"
    assert theirs("Hello")["input_ids"] == [1, *ours.encode("Hello")]
    for _ in range(30):
        messages = conversation(rng)
        official = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
        assert template.encode(messages, ours).tokens == official


@pytest.mark.parametrize(
    "options",
    [
        {"normalization_rule_name": "identity", "add_dummy_prefix": False},
        {"normalization_rule_name": "identity", "remove_extra_whitespaces": True},
        {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
        {"normalization_rule_name": "nfkc", "add_dummy_prefix": False, "remove_extra_whitespaces": False},
        {"add_dummy_prefix": False, "user_defined_symbols": ["<sep>", "..."]},
    ],
    ids=["no prefix", "collapses", "nfkc, collapses", "nfkc, no prefix", "symbols, no prefix"],
)
def test_a_model_alone_is_read_as_its_own_settings_say(options, tmp_path):
    given = {"remove_extra_whitespaces": False, "normalization_rule_name": "identity", **options}
    write_model(tmp_path / "tokenizer.model", **given)
    official = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    ours = load_tokenizer(tmp_path)
    assert ours.bos == official.bos_id()
    assert load_tokenizer(tmp_path / "tokenizer.model").fingerprint == ours.fingerprint
    for text in [*texts(), "a<sep>b ... c....", " <sep> <sep>", "  \n  a  \n  b  \n  ", " ▁", "▁ a▁ "]:
        assert ours.encode(text) == official.encode(text), text


def test_mistrals_own_model_is_read(tmp_path):
    path = mistral_sentencepiece("240216.model.v2")
    (tmp_path / "tokenizer.model").write_bytes(path.read_bytes())
    official = sentencepiece.SentencePieceProcessor(str(path))
    ours = Tokenizer.load(tmp_path)
    assert (ours.size, ours.bos, ours.eos) == (32768, 1, 2)
    assert ours.control["[INST]"] == official.piece_to_id("[INST]")
    for text in texts():
        assert ours.encode(text) == official.encode(text), text


def test_llama_2s_ids_are_the_published_ones():
    """Those of llama.cpp's own tests, and two more."""
    path = llama_cpp_file("models/ggml-vocab-llama-spm.gguf")
    ours = load_tokenizer(path)
    texts = path.with_suffix(".gguf.inp").read_bytes().decode()
    inputs = texts.split("\n__ggml_vocab_test__\n")[:-1]
    outputs = path.with_suffix(".gguf.out").read_text().splitlines()
    assert len(inputs) == len(outputs) > 40
    for text, ids in zip(inputs, outputs, strict=True):
        assert ours.encode(text) == [int(token) for token in ids.split()], text
    assert ours.encode("[INST]") == [518, 25580, 29962]
    assert ours.encode("[/INST]") == [518, 29914, 25580, 29962]
    assert (ours.bos, ours.eos, ours.pad, ours.control["<unk>"], ours.size) == (1, 2, None, 0, 32000)


def test_llama_2s_model_alone_is_read(tmp_path):
    """The model is put together again of what llama.cpp has of it, by SentencePiece's own format."""
    from sentencepiece import sentencepiece_model_pb2

    settings = read_header(llama_cpp_file("models/ggml-vocab-llama-spm.gguf")).settings
    columns = [settings[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type")]
    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.remove_extra_whitespaces = False
    for piece, score, kind in zip(*columns, strict=True):
        model.pieces.add(piece=piece, score=score, type=kind)
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    official = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    ours = Tokenizer.load(tmp_path)
    assert (ours.size, ours.bos, ours.eos, ours.pad) == (32000, 1, 2, None)
    assert ours.encode("[INST]") == official.encode("[INST]") == [518, 25580, 29962]
    for text in texts():
        assert ours.encode(text) == official.encode(text), text


REFUSED = {
    "unigram": "it is a SentencePiece model of type Unigram; supported is BPE",
    "no bytes": "it has no bytes for characters it does not know; supported is byte_fallback",
    "suffix": "it writes spaces behind words; supported are spaces before words",
    "symbols": "it has user-defined symbols and a space before every text; one of them is supported",
    "damaged": "it is damaged, or no SentencePiece model",
    "empty": "it is damaged, or no SentencePiece model",
    "text": "it is damaged, or no SentencePiece model",
    "tiktoken": "it holds ranks for tiktoken, not a SentencePiece model",
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_cannot_be_read_are_refused(name, tmp_path):
    path = tmp_path / "tokenizer.model"
    options = {
        "unigram": {"model_type": "unigram", "vocab_size": 320},
        "no bytes": {"byte_fallback": False, "vocab_size": 100},
        "suffix": {"treat_whitespace_as_suffix": True},
        "symbols": {"user_defined_symbols": ["<sep>"]},
    }
    contents = {"empty": b"", "text": b"hello\n", "tiktoken": b"IQ== 0\nIg== 1\n"}
    contents["damaged"] = (trained().sentencepiece or b"")[:-100]
    if name in options:
        write_model(path, **options[name])
    else:
        path.write_bytes(contents[name])
    with pytest.raises(UserError) as refused:
        Tokenizer.load(tmp_path)
    assert str(refused.value) == (
        f"{path} cannot be used: {REFUSED[name]}; save a tokenizer.json beside it with transformers' "
        "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    )


def test_vocabularies_that_are_too_small_are_refused():
    with pytest.raises(UserError) as refused:
        train_sentencepiece(["a"], 263, CONTROL)
    assert str(refused.value) == (
        "a vocabulary of 263 is too small: 256 bytes and 7 control tokens (<unk>, <s>, </s>, <pad>, "
        "<|im_start|>, <|im_end|>, <|reserved_special_token_0|>) take 263 already, and every character takes "
        "one more"
    )
    with pytest.raises(UserError) as refused:
        train_sentencepiece(["abcdefghij"], 265)
    assert str(refused.value) == (
        "a vocabulary of 265 is too small: bytes, control tokens and every character of the text take 271 "
        "already; raise --vocab_size, or take --algorithm byte_bpe, which spells rare characters in bytes"
    )


def write_model(path: Path, **options: object) -> None:
    """A model as a person may have trained it."""
    model = io.BytesIO()
    settings = {"model_type": "bpe", "vocab_size": 700, "byte_fallback": True, "minloglevel": 2, **options}
    lines = [line for text in stories() for line in text.split("\n")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, hard_vocab_limit=False, **settings
    )
    path.write_bytes(model.getvalue())
