"""llama2.c's tokenizer.bin: its program cuts ours as SentencePiece does, and what it holds comes back."""

import json
import shutil
import struct
from random import Random

from llama2c_files import encode, read_tokens
from llama2c_models import piece_tokenizer, pieces, tiny
from tiny_data import refusal
from tiny_tokenizer import tiny_tokenizer

from tutelage.checkpoint.llama2c.tokenizer import read_tokenizer_bin, write_tokenizer_bin
from tutelage.checkpoint.llama2c.write import write_llama2c
from tutelage.checkpoint.streamed import Held
from tutelage.checkpoint.tokenizer import load_tokenizer
from tutelage.data.stories.plots import story
from tutelage.text.tokenizer import Tokenizer

TEXTS = ["", "Once upon a time", " a  b ", "Zoë: 12 🦜\n\nThe end.", "rabbit's box", "<s> </s>", "日本 x"]


def test_a_vocabulary_is_written_so_that_run_c_cuts_prompts_as_sentencepiece(tmp_path):
    spm, tokenizer = pieces(), piece_tokenizer()
    write_tokenizer_bin(tokenizer, tmp_path / "tokenizer.bin", vocab_size=tokenizer.size + 5)
    texts, scores = read_tokens(tmp_path / "tokenizer.bin")
    assert len(texts) == tokenizer.size + 5
    assert texts[:5] == [b"<unk>", b"\n<s>\n", b"\n</s>\n", b"<0x00>", b"<0x01>"]
    expected = [spm.id_to_piece(token).replace("▁", " ").encode() for token in range(259, tokenizer.size)]
    assert texts[259 : tokenizer.size] == expected
    rng = Random(4)
    for text in [*TEXTS, *(story(rng).text for _ in range(20))]:
        assert encode(text, texts, scores) == spm.encode(text) == tokenizer.encode(text), text


def test_run_c_never_makes_a_control_token_of_what_people_write(tmp_path):
    """A control token that is spelled as two letters which stand side by side in a prompt."""
    source = json.loads(piece_tokenizer().source)
    source["added_tokens"].append(
        {**source["added_tokens"][0], "id": piece_tokenizer().size, "content": "qu"}
    )
    tokenizer = Tokenizer(json.dumps(source), piece_tokenizer().settings)
    write_tokenizer_bin(tokenizer, tmp_path / "tokenizer.bin", vocab_size=tokenizer.size)
    texts, scores = read_tokens(tmp_path / "tokenizer.bin")
    assert texts[-1] == b"qu"
    assert encode("a quick quiz", texts, scores) == tokenizer.encode("a quick quiz")


def test_a_vocabulary_comes_back_as_it_was(tmp_path):
    spm, tokenizer = pieces(), piece_tokenizer()
    write_tokenizer_bin(tokenizer, tmp_path / "tokenizer.bin", vocab_size=tokenizer.size)
    model = tiny()
    write_llama2c(Held(model.state_dict()), model.config, tmp_path / "model.bin")
    shutil.copy(tmp_path / "tokenizer.bin", tmp_path / "tok500.bin")
    for name in ("", "tokenizer.bin", "tok500.bin", "model.bin"):
        path = tmp_path / name
        back = load_tokenizer(path)
        assert (back.size, back.bos, back.eos) == (tokenizer.size, 1, 2)
        for text in TEXTS:
            assert back.encode(text) == spm.encode(text)
            assert back.decode(back.encode(text)) == text


def test_a_vocabulary_that_run_c_would_cut_otherwise_is_refused(tmp_path):
    path, tokenizer = tmp_path / "tokenizer.bin", piece_tokenizer()
    message = refusal(write_tokenizer_bin, tiny_tokenizer(), path, vocab_size=300)
    assert message.startswith(
        "llama2.c's program needs a SentencePiece vocabulary, BPE with the 256 bytes at"
    )
    message = refusal(write_tokenizer_bin, tokenizer, path, vocab_size=400)
    assert message == f"the tokenizer has {tokenizer.size} tokens and the model only 400"
    source = json.loads(tokenizer.source)
    source["normalizer"]["normalizers"] = source["normalizer"]["normalizers"][1:]
    bare = Tokenizer(json.dumps(source), tokenizer.settings)
    message = refusal(write_tokenizer_bin, bare, path, vocab_size=600)
    assert message.startswith(
        "llama2.c's program puts a space before every text, and this tokenizer does not"
    )
    other = Tokenizer(tokenizer.source, tokenizer.settings | {"eos_token": "<unk>"})
    message = refusal(write_tokenizer_bin, other, path, vocab_size=600)
    assert message.startswith(
        "llama2.c's program needs BOS at id 1 and EOS at id 2; this tokenizer has them at"
    )
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_vocabularies_are_refused(tmp_path):
    vocabulary = tmp_path / "tokenizer.bin"
    vocabulary.write_bytes(struct.pack("<IfI", 5, 0.0, 5) + b"abc")
    assert refusal(read_tokenizer_bin, vocabulary).startswith(
        f"{vocabulary} is truncated or not a tokenizer.bin"
    )
    vocabulary.write_bytes(struct.pack("<IfI", 5, 0.0, 3) + b"abc")
    assert refusal(read_tokenizer_bin, vocabulary).startswith(f"{vocabulary} holds 1 tokens; <unk>, BOS, EOS")
