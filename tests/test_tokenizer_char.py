"""Vocabularies of single characters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tutelage.errors import UserError
from tutelage.text.tokenizer import Tokenizer
from tutelage.text.train_char import train_char

PLAY = "First Citizen:\r\nBefore we proceed,\n\n  hear me speak.\t\x00 naïve e\u0301 東京 🙂 <unk>\n"


def test_ids_are_control_tokens_then_characters_in_the_order_of_unicode():
    tokenizer = train_char([PLAY, "a"], 4096, ["<|im_start|>"])
    characters = sorted(set(PLAY))
    assert tokenizer.control == {"<unk>": 0, "<|endoftext|>": 1, "<|pad|>": 2, "<|im_start|>": 3}
    assert tokenizer.size == 4 + len(characters)
    assert tokenizer.encode(PLAY) == [4 + characters.index(character) for character in PLAY]
    assert tokenizer.decode(tokenizer.encode(PLAY)) == PLAY
    assert tokenizer.encode("") == []


@given(st.text())
def test_every_character_is_one_token_and_an_unseen_one_is_unknown(text):
    tokenizer, seen = train_char([PLAY], 4096), set(PLAY)
    tokens = tokenizer.encode(text)
    assert len(tokens) == len(text)
    assert [token == 0 for token in tokens] == [character not in seen for character in text]
    assert tokenizer.decode(tokens) == "".join(character for character in text if character in seen)


def test_where_not_all_fit_the_most_frequent_characters_are_kept():
    tokenizer = train_char(["zzzyyx", "ba"], 3 + 3)  # of those seen once, the first in the alphabet
    assert [tokenizer.token_text(token) for token in range(3, 6)] == ["a", "y", "z"]


def test_characters_that_cannot_be_encoded_are_learned_as_what_stands_for_them():
    tokenizer = train_char(["a\ufdd0"], 4096)
    assert [tokenizer.token_text(token) for token in range(3, tokenizer.size)] == ["a", "\ufffd"]
    assert tokenizer.encode("\ufdd0") == [4]


def test_no_text_becomes_a_control_token():
    tokenizer = train_char([PLAY], 4096, ["<|im_start|>"])
    tokens = tokenizer.encode("<unk>")
    assert 0 not in tokens and len(tokens) == 5


def test_transformers_reads_the_same_tokenizer(tmp_path):
    tokenizer = train_char([PLAY], 4096, ["<|im_start|>"])
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint
    assert (theirs.unk_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 2)
    for text in ["", " ", "\n\n", "Before  we\nzzz ЖЖ", "東京🙂"]:
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text)) == tokenizer.decode(
            tokenizer.encode(text), skip_control=False
        )


def test_a_vocabulary_without_room_for_a_character_is_refused():
    with pytest.raises(UserError) as refused:
        train_char([PLAY], 3)
    assert str(refused.value) == (
        "a vocabulary of 3 is too small: the control tokens (<unk>, <|endoftext|>, <|pad|>) take 3 already, "
        "and every character takes one more"
    )
