"""SentencePiece vocabularies, learned: the ids are those of SentencePiece and of transformers."""

import hashlib
import pickle
from functools import cache
from random import Random

import pytest
import sentencepiece
from gguf.vocab import LlamaHfVocab, SentencePieceVocab, SpecialVocab
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_sentencepiece import stories, texts
from transformers import AutoTokenizer

from tutelage.data.stories.plots import conversation
from tutelage.errors import UserError
from tutelage.text.template import Template
from tutelage.text.tokenizer import Tokenizer
from tutelage.text.train_sentencepiece import train_sentencepiece

CONTROL = ["<|im_start|>", "<|im_end|>", "<|reserved_special_token_0|>"]


@cache
def trained() -> Tokenizer:
    return train_sentencepiece(stories(), 900, CONTROL)


@cache
def processor() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=trained().sentencepiece)


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


def test_no_line_is_left_out():
    """The library by itself skips lines that are long or have its sign for the unknown."""
    tokenizer = train_sentencepiece(["a ▅crocodile", "giraffe " * 2000, "\0 penguin"], 350)
    spelled = {tokenizer.token_text(token) for token in range(tokenizer.size)}
    assert {"▁crocodile", "▁giraffe", "▁penguin"} <= spelled


def test_text_that_spells_bytes_or_control_tokens_is_no_such_token():
    text = "<0x41> <s> </s> <unk> <pad>"
    tokenizer = train_sentencepiece([text] * 20, 400)
    official = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.sentencepiece)
    assert tokenizer.encode(text) == official.encode(text)
    assert not set(tokenizer.encode(text)) & {3 + 0x41, *tokenizer.control.values()}


def test_another_process_and_a_copy_have_the_model_too(tmp_path):
    copy = pickle.loads(pickle.dumps(trained()))
    copy.save(tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == trained().sentencepiece


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
    assert special.add_special_token["bos"]
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
