"""Pieces of text that are learned or not become tokens that are."""

from official import tokenizer as tokenizer_of

from tutelage.text.pieces import Piece
from tutelage.text.roles import ROLE_IDS

OTHER, USER = ROLE_IDS["other"], ROLE_IDS["user"]
END = Piece("<|im_end|>", OTHER, control=True)


def test_a_token_is_what_the_piece_it_starts_in_is():
    """In "ab" + " cd", all one run of text, the space begins the second word's token."""
    tokenizer = tokenizer_of("smollm2")
    pieces = [
        Piece("hello", OTHER),
        Piece(" world", USER, learned=True),
        END,
        Piece("\n", OTHER),
    ]
    (encoded,) = tokenizer.encode_marked([pieces])
    assert [tokenizer.token_text(token) for token in encoded.tokens] == ["hello", "Ġworld", "<|im_end|>", "Ċ"]
    assert encoded.weights == [0.0, 1.0, 0.0, 0.0]
    assert encoded.roles == [OTHER, USER, OTHER, OTHER]
    (joined,) = tokenizer.encode_marked([[Piece("hel", OTHER), Piece("lo", USER)]])
    assert (joined.weights, joined.roles) == ([0.0], [OTHER])


def test_a_token_that_brings_the_first_words_of_what_is_learned_is_learned():
    """Of "bot: " + "Yes" the space and the word are one token; spaces alone are no words.

    "." and "..." are one token too, but that is the words of both."""
    tokenizer = tokenizer_of("smollm2")
    documents = [
        [Piece("bot: ", OTHER), Piece(first, USER, learned=True), END] for first in ("Yes", "\n\nYes", " Yes")
    ]
    documents.append([Piece("bot:  ", OTHER), Piece("  Yes", USER, learned=True)])
    documents.append([Piece("Yes", USER, learned=True), Piece(" and", OTHER)])
    documents.append([Piece("won't.", OTHER), Piece("...", USER, learned=True), END])
    for encoded, words in zip(
        tokenizer.encode_marked(documents), ["ĠYes", "ĊYes", "ĠYes", "ĠYes", "Yes", ""], strict=True
    ):
        learned = [token for token, weight in zip(encoded.tokens, encoded.weights, strict=True) if weight]
        assert "".join(map(tokenizer.token_text, learned)) == words


def test_every_part_of_a_character_has_its_weight():
    """An emoji of several byte tokens is learned by all of them."""
    tokenizer = tokenizer_of("smollm2")
    (encoded,) = tokenizer.encode_marked(
        [[Piece("a", OTHER), Piece("🧿", USER, learned=True), Piece("b", OTHER)]]
    )
    assert len(encoded.tokens) > 4
    assert encoded.weights == [0.0] + [1.0] * (len(encoded.tokens) - 2) + [0.0]
