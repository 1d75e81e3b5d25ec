"""Every kind of file that holds a tokenizer is read, and a damaged or foreign one gets one clear refusal."""

import json

import pytest
from tiny_sentencepiece import write_model
from tiny_tokenizer_files import ranks, write_pair, write_tekken

from tutelage.checkpoint.tokenizer import load_tokenizer
from tutelage.errors import UserError
from tutelage.text.pieces import Piece
from tutelage.text.tokenizer import Tokenizer

_REMEDY = (
    "; save a tokenizer.json beside it with transformers' "
    "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
)


def test_a_pair_of_files_is_read_as_the_class_says_that_reads_it(tmp_path):
    write_pair(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2TokenizerFast"}')
    read = load_tokenizer(tmp_path)
    assert [read.token_text(token) for token in read.encode("hello hell1\n")] == [
        "hello",
        "Ġ",
        "hell",
        "1",
        "Ċ",
    ]
    assert (read.bos, read.eos, read.pad, read.size) == (260, 260, None, 261)  # <|endoftext|> comes last
    assert load_tokenizer(tmp_path / "merges.txt").fingerprint == read.fingerprint
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": None}
    settings["added_tokens_decoder"] = {"260": {"content": "<|im_end|>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    read = load_tokenizer(tmp_path)
    assert (read.eos, read.pad, read.size) == (260, None, 261)
    assert read.encode("e\u0301") == read.encode("é"), "Qwen composes characters, GPT-2 does not"


@pytest.mark.parametrize("reader", ["GPT2Tokenizer", "Qwen2Tokenizer"])
@pytest.mark.parametrize("added", [{}, {"<|endoftext|>": 260, "<|im_end|>": 261, "<tool>": 262, "<é>": 263}])
def test_transformers_reads_a_pair_of_files_alike(reader, added, tmp_path):
    from transformers import AutoTokenizer

    write_pair(tmp_path)
    settings = {"tokenizer_class": reader, "eos_token": "<|im_end|>" if added else "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    if added:
        (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ours.save(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert (ours.bos, ours.eos, ours.pad) == (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    for text in ["hello hell", "It's é e\u0301\n\n 12", "say <tool> hello", "a<tool>b<e\u0301>"]:
        wanted = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text) == saved.encode(text, add_special_tokens=False) == wanted


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("reader", ["GPT2Tokenizer", "Qwen2Tokenizer"])
def test_settings_that_a_class_heeds_are_heeded(reader, saved, tmp_path):
    """A space before a text; named tokens that no file numbers after all others, in transformers' order."""
    from transformers import AutoTokenizer

    write_pair(tmp_path)
    settings = {"tokenizer_class": reader, "bos_token": "<|b|>", "eos_token": "<|endoftext|>"}
    if saved:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        load_tokenizer(tmp_path).save(tmp_path)
    settings |= {"add_prefix_space": True, "pad_token": "[PAD]", "additional_special_tokens": ["<z>", "<y>"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert (ours.bos, ours.eos, ours.pad, ours.size) == (
        *(theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id), len(theirs)
    )  # fmt: skip
    assert [ours.control[name] for name in ("<z>", "<y>")] == theirs.convert_tokens_to_ids(["<z>", "<y>"])
    for text in ["hello hell", " hello", "\nhell,o", ""]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)


def test_the_names_of_openai_are_read_too(tmp_path):
    write_pair(tmp_path, names=("encoder.json", "vocab.bpe"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    assert load_tokenizer(tmp_path).encode("hello") == [259]
    assert load_tokenizer(tmp_path / "vocab.bpe").encode("hello") == [259]


def test_tekken_has_its_control_tokens_first(tmp_path):
    read = load_tokenizer(write_tekken(tmp_path, b"he", b"ll", b"hell", b"hello"))
    assert read.encode("hello hell") == [32 + 259, 32 + 32, 32 + 258]
    assert (read.bos, read.eos, read.pad, read.size) == (1, 2, 11, 292)
    assert (read.control["[INST]"], read.control["<SPECIAL_31>"]) == (3, 31)
    assert json.loads(read.source)["post_processor"]["special_tokens"]["<s>"]["ids"] == [1]
    assert not set(read.encode("[INST]<s>")) & set(read.control.values())
    named = [
        {"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(["<s>", "[X]"])
    ]
    read = load_tokenizer(write_tekken(tmp_path, special_tokens=named) / "tekken.json")
    assert (read.control["[X]"], read.control["<SPECIAL_2>"], read.eos, read.bos) == (1, 2, None, 0)


def test_tokens_that_a_file_beside_adds_are_found_whole(tmp_path):
    write_model(tmp_path / "tokenizer.model")
    (tmp_path / "added_tokens.json").write_text('{"<tool>": 700, "<|im_end|>": 701}')
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>"}')
    read = load_tokenizer(tmp_path)
    assert 700 in read.encode("a<tool>b")
    assert read.eos == 701 and 700 in read.encode("a <tool> b") and 701 not in read.encode("<|im_end|>")


def test_a_control_token_that_settings_call_normalized_is_still_itself(tmp_path):
    """As the first published files of Llama 2 have it; a space goes before every text there."""
    write_model(tmp_path / "tokenizer.model")
    load_tokenizer(tmp_path).save(tmp_path / "saved")
    source = json.loads((tmp_path / "saved" / "tokenizer.json").read_text())
    for token in source["added_tokens"]:
        token["normalized"] = True
    (tmp_path / "saved" / "tokenizer.json").write_text(json.dumps(source))
    pieces = [
        Piece("Lily", 0),
        Piece("</s>", 0, control=True),
        Piece("<s>", 0, control=True),
        Piece("Jack", 0),
    ]
    (encoded,) = load_tokenizer(tmp_path / "saved").encode_marked([pieces])
    assert [token for token in encoded.tokens if token in (1, 2)] == [2, 1]


def test_a_gap_before_an_added_token_is_refused(tmp_path):
    """The library would number it otherwise, and so would transformers."""
    write_model(tmp_path / "tokenizer.model")
    (tmp_path / "added_tokens.json").write_text('{"<tool>": 900}')
    with pytest.raises(UserError) as refused:
        load_tokenizer(tmp_path)
    assert str(refused.value) == (
        f"{tmp_path}/tokenizer.model is not a tokenizer that can be read: the added token '<tool>' has the "
        "number 900, where 700 is next: tokens between are missing"
    )


@pytest.mark.parametrize("adds", [(True, True), (True, False), (False, True), (False, False)])
def test_what_is_saved_begins_and_ends_texts_as_the_settings_say(adds, tmp_path):
    from transformers import AutoTokenizer

    write_model(tmp_path / "tokenizer.model")
    settings = {"add_bos_token": adds[0], "add_eos_token": adds[1]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours = load_tokenizer(tmp_path)
    ours.save(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert saved("Lily").input_ids == [1] * adds[0] + ours.encode("Lily") + [2] * adds[1]


UNKNOWN_SIZE = (
    "it holds 257 ranks and does not say how text is cut before; "
    "known are Llama 3's file of 128,000 and Qwen's of 151,643"
)
NO_MODEL = "it is damaged, or no SentencePiece model"
CASES = {  # the file, what is in it, and why it cannot be used
    "rank file of another model": ("tokenizer.model", ranks(b"he"), UNKNOWN_SIZE),
    "the same by its name": ("qwen.tiktoken", ranks(b"he"), UNKNOWN_SIZE),
    "a rank is missing": (
        "tokenizer.model",
        ranks(b"he", skip=7),
        "its ranks are not 0, 1, 2 and so on, each once: it is damaged",
    ),
    "torn": ("tokenizer.model", ranks()[:-3] + b"=", "line 256 is not a token in base64 and its rank"),
    "no base64": ("qwen.tiktoken", b"IQ== 0\n!! 1\n", "line 2 is not a token in base64 and its rank"),
    "empty": ("tokenizer.model", b"", NO_MODEL),
    "text": ("tokenizer.model", b"hello\n", NO_MODEL),
    "a picture": ("tokenizer.model", b"\x89PNG\r\n\x1a\n" + bytes(40), NO_MODEL),
    "JSON": ("tokenizer.model", b'{"model": {}}', NO_MODEL),
    "tekken, torn": ("tekken.json", b'{"config": {"pat', "it is not valid JSON: "),
    "tekken, foreign": (
        "tekken.json",
        b'{"model": {}}',
        "it is no tekken.json: it has no config with a pattern, or no vocab",
    ),
    "tekken, halved": ("tekken.json", b'{"config": {}, "vocab": []}', "it is damaged, or no tekken.json"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_damaged_or_foreign_file_is_refused_with_its_reason(name, tmp_path):
    file, content, reason = CASES[name]
    (tmp_path / file).write_bytes(content)
    for source in (tmp_path, tmp_path / file):
        with pytest.raises(UserError) as refused:
            load_tokenizer(source)
        assert str(refused.value).startswith(f"{tmp_path / file} cannot be used: {reason}")
        assert str(refused.value).endswith(_REMEDY)


def test_a_torn_sentencepiece_model_is_refused(tmp_path):
    write_model(tmp_path / "tokenizer.model")
    content = (tmp_path / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(content[:-100])
    with pytest.raises(UserError, match="it is damaged, or no SentencePiece model"):
        load_tokenizer(tmp_path)


def test_a_tekken_that_lost_tokens_is_refused(tmp_path):
    write_tekken(tmp_path)
    content = json.loads((tmp_path / "tekken.json").read_text())
    content["vocab"] = content["vocab"][:200]
    (tmp_path / "tekken.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="it does not hold 256 ranks and at most 32 control tokens"):
        load_tokenizer(tmp_path)


PAIRS = {  # the settings, the merges, and the refusal
    "no class": ({}, "h e\n", "vocab.json cannot be used: nothing says how text is cut before: None is not"),
    "class": (
        {"tokenizer_class": "BertTokenizer"},
        "h e\n",
        "vocab.json cannot be used: nothing says how text is cut before: BertTokenizer is not known; "
        "name GPT2Tokenizer or Qwen2Tokenizer as tokenizer_class in tokenizer_config.json",
    ),
    "no pair": (
        {"tokenizer_class": "GPT2Tokenizer"},
        "h e\nhe\n",
        "its merges, line 3: 'he' is no pair of tokens that make a third",
    ),
    "no token": (
        {"tokenizer_class": "GPT2Tokenizer"},
        "h x\n",
        "its merges, line 2: 'h x' is no pair of tokens that make a third",
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_of_files_that_does_not_fit_is_refused(name, tmp_path):
    settings, merges, reason = PAIRS[name]
    write_pair(tmp_path, merges=merges)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError) as refused:
        load_tokenizer(tmp_path)
    assert reason in str(refused.value) and str(refused.value).startswith(f"{tmp_path}/vocab.json")


def test_half_a_pair_is_refused(tmp_path):
    write_pair(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"merges.txt is missing: it belongs to .*vocab.json"):
        load_tokenizer(tmp_path)
    for content in (b'{"a": 1', b"\xff\xfe"):
        (tmp_path / "merges.txt").write_bytes(b"")
        (tmp_path / "vocab.json").write_bytes(content)
        with pytest.raises(UserError, match=r"vocab.json and merges.txt cannot be read: "):
            load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("[1, 2]")
    with pytest.raises(
        UserError, match="it is no vocabulary: an object of tokens and their numbers is wanted"
    ):
        load_tokenizer(tmp_path)


SETTINGS = {
    "tokenizer_config.json": ('{"added_tokens_decoder": {"x": {}}}', "added_tokens_decoder is no object of"),
    "added_tokens.json": ('{"<x>": "9"}', "an object of tokens and their numbers is wanted"),
    "special_tokens_map.json": ("[]", "holds a JSON list, an object is wanted"),
    "chat_template.jinja": (
        "{{ 'caf\udce9' }}",
        "is not text in UTF-8: 'utf-8' codec can't decode byte 0xe9",
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_make_no_sense_are_refused_by_file(name, tmp_path):
    write_tekken(tmp_path)
    content, reason = SETTINGS[name]
    (tmp_path / name).write_text(content, errors="surrogateescape")
    with pytest.raises(UserError) as refused:
        load_tokenizer(tmp_path)
    assert reason in str(refused.value) and str(refused.value).startswith(f"{tmp_path / name}")


@pytest.mark.parametrize("content", ["{", "[]", '{"model": null}', '{"model": {"vocab": 3}}', "\udcff"])
def test_a_tokenizer_json_that_is_none_is_refused(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content, errors="surrogateescape")
    with pytest.raises(UserError, match=r"tokenizer.json is not a tokenizer that can be read: "):
        Tokenizer.load(tmp_path)


def test_a_place_without_a_tokenizer_is_named_with_what_was_looked_for(tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError) as refused:
            Tokenizer.load(place)
        assert str(refused.value) == (
            f"{place} has no tokenizer.json and no tokenizer.model, spiece.model, tekken.json, qwen.tiktoken"
            ", nor vocab.json and merges.txt; put the model's own there (transformers' "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...) writes it), or name its directory by "
            "--tokenizer, which convert, doctor, generate and chat have"
        )
