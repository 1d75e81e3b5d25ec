"""The tokenizer: control tokens come only from templates, text comes back whole, files load elsewhere."""

import json
import pickle
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conversations import CONTENTS, conversations
from official import source_of
from official import tokenizer as tokenizer_of

from tutelage.text.pieces import Piece
from tutelage.text.roles import ROLE_IDS
from tutelage.text.special_tokens import complete
from tutelage.text.template import Template
from tutelage.text.tokenizer import Tokenizer

OTHER, USER = ROLE_IDS["other"], ROLE_IDS["user"]
SOURCES = ["smollm2", "qwen", "llama3", "mistral_v1", "mistral_v3"]


@cache
def library(name: str) -> Any:
    """The same tokenizer without a twin, from the tokenizers library alone."""
    import tokenizers

    vocabulary = json.loads(tokenizer_of(name).source)
    complete(vocabulary, tokenizer_of(name).settings)
    return tokenizers.Tokenizer.from_str(json.dumps(vocabulary))


def tiny(tmp_path: Path, *, settings: dict[str, Any] | None = None, **changes: Any) -> Tokenizer:
    """A word-level tokenizer of a few words and the control tokens [E] and [F], the second added late."""
    words = ["[E]", "a", "b", "▁", "unknown"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    vocabulary = {
        "version": "1.0",
        "added_tokens": [{"id": 0, "content": "[E]", **flags}, {"id": 5, "content": "[F]", **flags}],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: index for index, word in enumerate(words)},
            "unk_token": "unknown",
        },
        **changes,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings or {"eos_token": "[E]"}))
    return Tokenizer.load(tmp_path)


def control(text: str) -> Piece:
    return Piece(text, OTHER, control=True)


@pytest.mark.parametrize("name", SOURCES)
def test_text_gives_the_ids_that_the_library_gives(name):
    tokenizer = tokenizer_of(name)
    for text in CONTENTS:
        assert tokenizer.encode(text) == library(name).encode(text, add_special_tokens=False).ids
    assert tokenizer.encode_batch(CONTENTS) == [tokenizer.encode(text) for text in CONTENTS]


def test_a_gguf_file_gives_the_ids_that_transformers_reads_from_it():
    """But for digits: SmolLM2's stand alone, as llama.cpp has it, which transformers does not know."""
    from transformers import AutoTokenizer

    path = source_of("smollm2")
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in CONTENTS:
        text = re.sub(r"\d", "", text)
        assert tokenizer_of("smollm2").encode(text) == theirs.encode(text, add_special_tokens=False)
    spelled = [
        tokenizer_of("smollm2").token_text(token) for token in tokenizer_of("smollm2").encode("a  12 3")
    ]
    assert spelled == ["a", "ĠĠ", "1", "2", "Ġ", "3"]


@pytest.mark.parametrize("name", SOURCES)
def test_every_added_token_has_its_own_id_and_only_as_a_piece(name):
    tokenizer = tokenizer_of(name)
    assert len(tokenizer.control) >= 3
    for text, index in tokenizer.control.items():
        assert library(name).token_to_id(text) == index
        (encoded,) = tokenizer.encode_marked([[control(text)]])
        assert encoded.tokens == [index]
        assert index not in tokenizer.encode(text)
        assert index not in tokenizer.encode(f"so {text}{text} it is")
    added = json.loads(tokenizer.source)["added_tokens"]
    for token in added:
        if token["content"] not in tokenizer.control:
            assert tokenizer.encode(token["content"]) == [token["id"]]


@pytest.mark.parametrize("name", ["smollm2", "llama3"])
def test_text_that_looks_like_control_tokens_comes_back_as_it_was(name):
    tokenizer = tokenizer_of(name)
    text = "".join(tokenizer.control) + " \n" + " ".join(tokenizer.control)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert not set(tokenizer.encode(text)) & set(tokenizer.control.values())


def test_nobody_can_type_a_sentinel():
    """The two noncharacters that mark control tokens become U+FFFD, and half a surrogate pair does too."""
    tokenizer = tokenizer_of("llama3")
    text = "\ufdd00\ufdd1 \ufdd0" + "\ud800"
    tokens = tokenizer.encode(text)
    assert not set(tokens) & set(tokenizer.control.values())
    assert tokenizer.decode(tokens) == "\ufffd0\ufffd \ufffd\ufffd"


def test_a_number_that_is_no_token_is_spelled_as_nothing(tmp_path):
    tokenizer = tiny(tmp_path)
    assert [tokenizer.token_text(token) for token in (-1, tokenizer.size, 2**40)] == ["", "", ""]


def test_empty_documents_have_no_tokens():
    tokenizer = tokenizer_of("smollm2")
    assert tokenizer.encode("") == []
    for encoded in tokenizer.encode_marked([[], [Piece("", OTHER)]]):
        assert (encoded.tokens, encoded.weights, encoded.roles) == ([], [], [])
    assert tokenizer.encode_marked([]) == []


def test_a_control_token_that_takes_the_space_on_its_left_is_still_itself(tmp_path):
    """[F] strips the space before it; its token starts there, but it belongs to its own piece."""
    flags = {"single_word": False, "lstrip": True, "rstrip": False, "normalized": False, "special": True}
    tokenizer = tiny(tmp_path, added_tokens=[{"id": 5, "content": "[F]", **flags}])
    pieces = [Piece("a ", USER), Piece("[F]", OTHER, learned=True, control=True), Piece("b", USER)]
    (encoded,) = tokenizer.encode_marked([pieces])
    assert encoded.tokens == [1, 5, 2]
    assert (encoded.weights, encoded.roles) == ([0.0, 1.0, 0.0], [USER, OTHER, USER])


def test_control_tokens_that_only_the_settings_name_are_control_tokens(tmp_path):
    settings = {
        "eos_token": {"content": "[E]"},
        "pad_token": "▁",
        "bos_token": "[none such]",
        "added_tokens_decoder": {"6": {"content": "[G]", "special": True}},
    }
    tokenizer = tiny(tmp_path, settings=settings)
    assert tokenizer.control == {"[E]": 0, "▁": 3, "[F]": 5, "[G]": 6, "[none such]": 7}
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.size) == (7, 0, 3, 8)
    assert tokenizer.encode_marked([[control("[G]"), control("▁")]])[0].tokens == [6, 3]


def test_an_added_token_that_the_settings_call_special_is_a_control_token(tmp_path):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    added = [{"id": 5, "content": "[F]", **flags}, {"id": 6, "content": "[G]", **flags}]
    tokenizer = tiny(tmp_path, added_tokens=added, settings={"additional_special_tokens": ["[F]"]})
    assert tokenizer.control == {"[F]": 5}
    assert 5 not in tokenizer.encode("[F]") and tokenizer.encode("[G]") == [6]
    assert tokenizer.decode([1, 5, 6]) == "a [G]"


def test_no_merge_makes_a_control_token(tmp_path):
    """`[E]` is a merge of this vocabulary, and still the text gives its three letters."""
    model = {
        "type": "BPE",
        "vocab": {"[": 0, "E": 1, "]": 2, "[E": 3, "[E]": 4},
        "merges": [["[", "E"], ["[E", "]"]],
    }
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = tiny(
        tmp_path, model=model, pre_tokenizer=None, added_tokens=[{"id": 4, "content": "[E]", **flags}]
    )
    assert tokenizer.encode("[E]") == [3, 2]
    assert tokenizer.encode_marked([[control("[E]")]])[0].tokens == [4]


def test_ids_follow_from_the_fingerprint(tmp_path):
    one = tiny(tmp_path)
    assert one.fingerprint == tiny(tmp_path, decoder={"type": "Fuse"}).fingerprint
    assert one.fingerprint != tiny(tmp_path, normalizer={"type": "NFC"}).fingerprint
    assert len({tokenizer_of(name).fingerprint for name in SOURCES}) == len(SOURCES)


def test_a_tokenizer_crosses_into_another_process():
    tokenizer = pickle.loads(pickle.dumps(tokenizer_of("smollm2")))
    assert tokenizer.fingerprint == tokenizer_of("smollm2").fingerprint
    assert tokenizer.encode(CONTENTS[8]) == tokenizer_of("smollm2").encode(CONTENTS[8])


@pytest.mark.parametrize("name", ["smollm2", "qwen", "llama3", "mistral_v3"])
def test_transformers_loads_what_is_saved(name, tmp_path):
    from transformers import AutoTokenizer

    templates = {"smollm2": "smollm2", "qwen": "qwen2.5_instruct", "llama3": "llama3_instruct"}
    template = Template.load(templates.get(name, "mistral_instruct"))
    tokenizer = tokenizer_of(name)
    tokenizer.save(tmp_path / "made", chat_template=template.jinja)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "made")
    assert (loaded.bos_token_id, loaded.eos_token_id) == (tokenizer.bos, tokenizer.eos)
    assert loaded.pad_token_id == tokenizer.pad and len(loaded) == tokenizer.size
    for messages in conversations(40, seed=4):
        encoded = template.encode(messages, tokenizer)
        assert loaded.apply_chat_template(messages, return_dict=False) == encoded.tokens
        text = messages[0]["content"]
        assert loaded.encode(text, add_special_tokens=False) == tokenizer.encode(text)
    again = Tokenizer.load(tmp_path / "made")
    assert (again.fingerprint, again.control) == (tokenizer.fingerprint, tokenizer.control)
    assert again.chat_template == template.jinja


def test_what_is_saved_keeps_the_models_own_template_unless_told_otherwise(tmp_path):
    tokenizer = tokenizer_of("smollm2")
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).chat_template == tokenizer.chat_template
    (tmp_path / "chat_template.jinja").write_text("newer")
    assert Tokenizer.load(tmp_path).chat_template == "newer"


FLAGS = [
    {"lstrip": True},
    {"rstrip": True},
    {"single_word": True},
    {"normalized": True},
    {"normalized": True, "lstrip": True, "rstrip": True},
]


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: " ".join(flags))
def test_added_tokens_are_found_in_a_text_as_transformers_finds_them(flags, tmp_path):
    """Those that are not special; a special one of the same kind is never found in what people type."""
    from transformers import AutoTokenizer

    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    added = [
        {"id": 0, "content": "[E]", **plain, "special": True},
        {"id": 5, "content": "Tool", **plain, **flags},
    ]
    added.append({"id": 6, "content": "End", **plain, **flags, "special": True})
    model = {
        "type": "BPE",
        "vocab": {"[E]": 0, **{word: 1 + i for i, word in enumerate("▁tol")}},
        "merges": [],
    }
    model["vocab"] |= {"n": 7, "d": 8, "e": 9, "T": 10, "E": 11, "[": 12, "]": 13}
    names = {"bos_token": None, "eos_token": "[E]", "tokenizer_class": "PreTrainedTokenizerFast"}
    model["vocab"] |= {"Tool": 5, "End": 6}
    lower = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, _spaces()]}
    ours = tiny(
        tmp_path, settings=names, model=model, pre_tokenizer=None, added_tokens=added, normalizer=lower
    )
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["Tool", "to Tool lot", "toTool Tool", "  Tool  Tool\nTool", "tool TOOL", "Tool.Tool", "[E]"]
    for text in texts[:-1]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
    assert {5} <= set(theirs.encode("to Tool lot", add_special_tokens=False)), "the case is not empty"
    for text in [*texts, "End", "to End lot", "End[E]"]:
        assert not {0, 6} & set(ours.encode(text))
    marked = ours.encode_marked([[Piece("to ", USER), control("End"), Piece(" lot", USER)]])[0].tokens
    assert marked == theirs.encode("to End lot", add_special_tokens=False)


def _spaces() -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
