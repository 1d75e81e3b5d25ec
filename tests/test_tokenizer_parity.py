"""Ids and decoded texts of real tokenizers are those of transformers, of SentencePiece and of tiktoken.

Texts are in conversations and `varied_texts`: Unicode of every kind, long runs, and chats in 17 languages.
"""

import json
import unicodedata
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from materials import mistral_common, mistral_sentencepiece
from real_tokenizers import path_of, tokenizer
from varied_texts import corpus_texts, varied_texts

from tutelage.text.tokenizer import Tokenizer

slow = pytest.mark.slow
QUICK = ["mistral_v1", "gpt2", "phi3"]
OTHERS = ["llama3", "llama3_1", "qwen3", "gemma", "gemma3", "tekken", "llama3_ranks", "qwen_ranks"]
OTHERS += ["olmo2", "llama2", "mistral_v2", "mistral_v3", "mistral_v7"]
NAMES = [*QUICK, *(pytest.param(name, marks=slow) for name in OTHERS)]
# What transformers reads as it is published. Mistral's class there puts parts of its own in the file's place.
PUBLISHED = ["gpt2", *(pytest.param(name, marks=slow) for name in [*OTHERS[:5], "olmo2"])]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    found = [*varied_texts(), *corpus_texts()]
    assert len(found) > 700
    return found


def differences(ours: Tokenizer, theirs: Any, texts: list[str]) -> list[object]:
    """Texts whose ids differ, and ids whose texts do, with control tokens left out and written."""
    found: list[object] = []
    for text in texts:
        ids = theirs.encode(text, add_special_tokens=False)
        found += [(text, ids)] * (ours.encode(text) != ids)
        for skip in (True, False):
            written = theirs.decode(ids, skip_special_tokens=skip)
            found += [(ids, written)] * (ours.decode(ids, skip_control=skip) != written)
    control = list(ours.control.values())[:300]
    mixed = [token for index in control for token in (index, *ids[:2])]
    for skip in (True, False):
        written = theirs.decode(mixed, skip_special_tokens=skip)
        found += [(mixed, written)] * (ours.decode(mixed, skip_control=skip) != written)
    return found


def named(tokenizer: Any) -> tuple[object, ...]:
    return tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_directory_gives_the_ids_and_texts_that_transformers_gives(name, texts):
    from transformers import AutoTokenizer

    ours, theirs = tokenizer(name), AutoTokenizer.from_pretrained(path_of(name))
    assert (ours.bos, ours.eos, ours.pad, ours.size) == named(theirs)
    assert differences(ours, theirs, texts) == []


@pytest.mark.parametrize("name", NAMES)
def test_transformers_reads_the_same_out_of_what_is_saved(name, texts, tmp_path):
    """With a config.json beside it or without: some classes of models bring a tokenizer of their own."""
    from transformers import AutoTokenizer

    ours = tokenizer(name)
    ours.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (ours.bos, ours.eos, ours.pad, ours.size) == named(theirs)
    assert differences(ours, theirs, texts) == []
    again = Tokenizer.load(tmp_path)
    assert (again.fingerprint, again.control) == (ours.fingerprint, ours.control)
    begins = ours.bos is not None and name not in ("gpt2", "olmo2", "llama3")  # have one, and begin without
    assert theirs("Hi").input_ids == [ours.bos] * begins + ours.encode("Hi")


FAMILIES = [("mistral_v1", "mistral"), ("phi3", "phi3")]
MORE_FAMILIES = [("gemma", "gemma"), ("gemma", "gemma2"), ("gemma3", "gemma3_text"), ("llama3", "llama")]
MORE_FAMILIES += [("qwen3", "qwen2"), ("qwen3", "qwen3"), ("tekken", "mistral"), ("llama2", "llama")]
MORE_FAMILIES += [("mistral_v3", "mistral"), ("olmo2", "olmo2"), ("gpt2", "gpt2")]


@pytest.mark.parametrize(
    ("name", "family"), [*FAMILIES, *(pytest.param(*pair, marks=slow) for pair in MORE_FAMILIES)]
)
def test_the_model_beside_it_changes_nothing(name, family, tmp_path):
    from transformers import AutoTokenizer

    ours = tokenizer(name)
    ours.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert differences(ours, theirs, varied_texts()[::3]) == []


def test_where_transformers_departs_from_the_file_we_do_not(texts):
    """Its LlamaTokenizer puts no space before a text that has one; the file and SentencePiece do."""
    from transformers import AutoTokenizer

    ours, theirs = tokenizer("mistral_v1"), AutoTokenizer.from_pretrained(path_of("mistral_v1"))
    official = sentencepiece.SentencePieceProcessor(str(_first_mistral()))
    differ = [text for text in texts if ours.encode(text) != theirs.encode(text, add_special_tokens=False)]
    assert differ and all(text.startswith((" ", "▁")) for text in differ)
    assert [text for text in texts if ours.encode(text) != official.encode(text)] == []


def _first_mistral() -> Path:
    import packages

    name = "tokenizer.model.v1"
    inside = f"mistral_common/data/{name}"
    return (
        packages.unpacked(name, lambda to: packages.from_wheel("mistral-common", "1.13.1", [inside], to))
        / name
    )


VERSIONS = ["240323.model.v3", *(pytest.param(v, marks=slow) for v in ("240216.model.v2", "241114.model.v7"))]


@pytest.mark.parametrize("version", VERSIONS)
def test_mistrals_models_give_sentencepieces_ids(version, texts):
    official = sentencepiece.SentencePieceProcessor(str(mistral_sentencepiece(version)))
    ours = tokenizer(f"mistral_{version[-2:]}")
    assert [text for text in texts if ours.encode(text) != official.encode(text)] == []
    assert ours.size == official.vocab_size()


@slow
def test_ranks_give_tiktokens_ids(texts):
    """Of Llama 3, by Meta's and by Qwen's rules; tiktoken itself has the patterns and the files."""
    mistral_common()
    import tiktoken

    for name, composes in (("llama3_ranks", False), ("qwen_ranks", True)):
        lines = [line.split() for line in path_of(name).read_bytes().splitlines()]
        ranks = {b64decode(token): int(rank) for token, rank in lines}
        pattern = json.loads(tokenizer(name).source)["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
        official = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        for text in texts:
            wanted = unicodedata.normalize("NFC", text) if composes else text
            assert tokenizer(name).encode(text) == official.encode(wanted, disallowed_special=()), text


@slow
def test_ranks_of_llama_3_become_the_published_file():
    ranks, published = (json.loads(tokenizer(name).source) for name in ("llama3_ranks", "llama3_1"))
    assert ranks["model"]["vocab"] == published["model"]["vocab"]
    assert [m.split(" ") for m in ranks["model"]["merges"]] == [
        merge.split(" ") if isinstance(merge, str) else merge for merge in published["model"]["merges"]
    ]
    assert ranks["pre_tokenizer"] == published["pre_tokenizer"]
    ids = {token["content"]: token["id"] for token in published["added_tokens"]}
    mine = tokenizer("llama3_ranks").control
    assert len(mine) == len(ids) == 256
    known = [name for name in mine if name in ids and "reserved" not in name]
    assert len(known) >= 5  # the published file calls some reserved that Meta has named since
    assert {name: mine[name] for name in known} == {name: ids[name] for name in known}


@slow
def test_tekken_gives_the_ids_of_mistrals_own_encoder(texts):
    mistral_common()
    from mistral_common.tokens.tokenizers import tekken

    official, ours = tekken.Tekkenizer.from_file(path_of("tekken")), tokenizer("tekken")
    assert ours.size == official.n_words
    assert {token["token_str"]: token["rank"] for token in official._all_special_tokens} == ours.control
    for text in texts:
        assert ours.encode(text) == official.encode(text, bos=False, eos=False), text
