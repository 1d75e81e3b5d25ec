"""A tokenizer.model alone is a tokenizer: Llama 2's, Mistral's, and models trained with other settings."""

import pytest
import sentencepiece
from materials import llama_cpp_file, mistral_sentencepiece
from tiny_sentencepiece import texts, write_model

from tutelage.checkpoint.gguf_file import read_header
from tutelage.checkpoint.tokenizer import load_tokenizer
from tutelage.errors import UserError
from tutelage.text.tokenizer import Tokenizer


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


@pytest.mark.parametrize("said", [True, False])
def test_llama_2s_model_alone_is_read(said, tmp_path):
    """Put together again of what llama.cpp has of it; what it does not say is as SentencePiece has it."""
    from sentencepiece import sentencepiece_model_pb2

    settings = read_header(llama_cpp_file("models/ggml-vocab-llama-spm.gguf")).settings
    columns = [settings[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type")]
    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.byte_fallback = True
    if said:
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
        "damaged": {},
    }
    contents = {"empty": b"", "text": b"hello\n", "tiktoken": b"IQ== 0\nIg== 1\n"}
    if name in options:
        write_model(path, **options[name])
    else:
        path.write_bytes(contents[name])
    if name == "damaged":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError) as refused:
        Tokenizer.load(tmp_path)
    assert str(refused.value) == (
        f"{path} cannot be used: {REFUSED[name]}; save a tokenizer.json beside it with transformers' "
        "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    )
