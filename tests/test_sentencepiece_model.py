"""A tokenizer.model alone is a tokenizer: Llama 2's, Mistral's, and models trained with other settings."""

import json
from collections.abc import Iterable

import pytest
import sentencepiece
from materials import llama_cpp_file, mistral_sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tiny_sentencepiece import texts, write_model
from transformers import AutoTokenizer

from tutelage.checkpoint.gguf.file import read_header
from tutelage.checkpoint.tokenizer import load_tokenizer
from tutelage.errors import UserError
from tutelage.text.tokenizer import Tokenizer

_AS_T5 = {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True}


@pytest.mark.parametrize(
    "options",
    [
        {"normalization_rule_name": "identity", "add_dummy_prefix": False},
        {"normalization_rule_name": "identity", "remove_extra_whitespaces": True},
        {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
        {"normalization_rule_name": "nfkc", "add_dummy_prefix": False, "remove_extra_whitespaces": False},
        {"add_dummy_prefix": False, "user_defined_symbols": ["<sep>", "..."]},
        {"user_defined_symbols": ["<sep>", "...", "..", "<s"]},
        {"byte_fallback": False, "vocab_size": 300},
        {"model_type": "unigram", "vocab_size": 500},
        {"model_type": "unigram", "vocab_size": 400, "byte_fallback": False, "add_dummy_prefix": False},
        {"model_type": "unigram", "vocab_size": 500, "user_defined_symbols": ["<sep>", "...", "..", "<s"]},
        {"model_type": "unigram", "vocab_size": 500, **_AS_T5, "byte_fallback": False},
    ],
    ids=[
        *("no prefix", "collapses", "nfkc, collapses", "nfkc, no prefix", "symbols, no prefix"),
        *("symbols and prefix", "no bytes", "unigram", "unigram, no bytes, no prefix", "unigram, symbols"),
        "unigram as T5 has it",
    ],
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


@pytest.mark.parametrize("said", [True, False])
def test_llama_2s_model_alone_is_read(said, tmp_path):
    """Put together again of what llama.cpp has of it; what it does not say is as SentencePiece has it."""
    settings = read_header(llama_cpp_file("models/ggml-vocab-llama-spm.gguf")).settings
    columns = [settings[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type")]
    model = put_together(zip(*columns, strict=True))
    if said:
        model.normalizer_spec.remove_extra_whitespaces = False
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    official = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    ours = Tokenizer.load(tmp_path)
    assert (ours.size, ours.bos, ours.eos, ours.pad) == (32000, 1, 2, None)
    assert ours.encode("[INST]") == official.encode("[INST]") == [518, 25580, 29962]
    for text in texts():
        assert ours.encode(text) == official.encode(text), text


def test_pieces_that_spell_a_byte_do_not_make_one(tmp_path):
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), *((f"<0x{byte:02X}>", 0.0, 6) for byte in range(256))]
    words = ["<0", "<0x", "<0x4", "<0x41", *"▁<0x41>"]
    pieces += [(word, -float(rank), 1) for rank, word in enumerate(words)]
    (tmp_path / "tokenizer.model").write_bytes(put_together(pieces).SerializeToString())
    official = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    assert official.encode("<0x41>", out_type=str) == ["▁", "<0x41", ">"]
    assert Tokenizer.load(tmp_path).encode("<0x41>") == official.encode("<0x41>")


def test_settings_beside_a_model_say_what_it_does_not(tmp_path):
    write_model(tmp_path / "tokenizer.model", control_symbols=["<|im_end|>"])
    settings = {
        "eos_token": "<|im_end|>",
        "chat_template": "{{ messages }}",
        "tokenizer_class": "LlamaTokenizer",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    read = Tokenizer.load(tmp_path)
    assert (read.named["eos_token"], read.named["bos_token"]) == ("<|im_end|>", "<s>")
    assert read.eos == read.control["<|im_end|>"] and read.chat_template == "{{ messages }}"
    read.save(tmp_path / "saved")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs("Lily ran.")["input_ids"] == [1, *read.encode("Lily ran.")]
    assert theirs.eos_token_id == read.eos


def test_spaces_behind_words_and_other_types_are_refused(tmp_path):
    path = tmp_path / "tokenizer.model"
    for options, reason in REFUSED:
        write_model(path, **options)
        with pytest.raises(UserError) as refused:
            Tokenizer.load(tmp_path)
        assert str(refused.value) == (
            f"{path} cannot be used: {reason}; save a tokenizer.json beside it with transformers' "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )


REFUSED = [
    (
        {"model_type": "word", "vocab_size": 300, "byte_fallback": False},
        "it is a SentencePiece model of type word; supported are BPE and Unigram",
    ),
    (
        {"model_type": "char", "vocab_size": 80, "byte_fallback": False},
        "it is a SentencePiece model of type character; supported are BPE and Unigram",
    ),
    (
        {"treat_whitespace_as_suffix": True},
        "it writes spaces behind words; supported are spaces before words",
    ),
]


def put_together(pieces: Iterable[tuple[str, float, int]]) -> sentencepiece_model_pb2.ModelProto:
    """A model of (text, score, kind) pieces, by the format's own library."""
    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.byte_fallback = True
    for piece, score, kind in pieces:
        model.pieces.add(piece=piece, score=score, type=kind)
    return model
