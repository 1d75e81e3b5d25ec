"""A vocabulary learned from text: the same every time, whole for any Unicode, read by transformers too."""

import hashlib
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tutelage.cli import main
from tutelage.data.stories.plots import conversation, document
from tutelage.errors import UserError
from tutelage.text.template import Template
from tutelage.text.tokenizer import Tokenizer
from tutelage.text.train import train_tokenizer

CHATML = ["<|im_start|>", "<|im_end|>"]


@cache
def stories() -> list[str]:
    rng = Random(0)
    return [document(rng) for _ in range(1000)]


@cache
def trained() -> Tokenizer:
    return train_tokenizer(stories(), 512, CHATML)


def write_stories(path: Path) -> Path:
    path.write_text("".join(f"{text}\n" for text in stories()), encoding="utf-8")
    return path


@given(st.text())
@example("")
@example("\n\n \t\r\n")
@example("naïve café e\u0301 \ufb01 ½ ١٢٣ 東京 🇫🇷 👩‍👩‍👧 \u202e \x00 \ufffd")
@example("  leading, trailing  ")
def test_any_text_comes_back_as_it_was(text):
    assert trained().decode(trained().encode(text)) == text


def test_ids_are_control_tokens_then_bytes_then_merges_and_fill_the_vocabulary():
    tokenizer = trained()
    assert tokenizer.size == 512
    assert tokenizer.control == {"<|endoftext|>": 0, "<|pad|>": 1, "<|im_start|>": 2, "<|im_end|>": 3}
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (None, 0, 1)
    letters = bytes(range(32, 127)).decode()
    assert all(4 <= token < 260 for letter in letters for token in tokenizer.encode(letter))
    assert sum(map(len, tokenizer.encode_batch(stories()))) < sum(map(len, stories())) / 2.5


@pytest.mark.parametrize("name", ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"])
def test_no_text_becomes_a_control_token(name):
    tokens = trained().encode(f"a{name} {name}")
    assert not set(tokens) & set(trained().control.values())
    assert trained().decode(tokens) == f"a{name} {name}"


def test_every_digit_is_a_token_and_words_do_not_merge():
    tokenizer = train_tokenizer(["1234 5678 the end. the end."] * 50, 300)
    assert len(tokenizer.encode("12345678")) == 8
    spelled = [tokenizer.token_text(token) for token in range(tokenizer.size)]
    assert "Ġend" in spelled
    assert not any("Ġ" in token[1:] for token in spelled if token not in tokenizer.control)


@pytest.mark.parametrize("algorithm", ["byte_bpe", "sentencepiece", "char"])
def test_the_same_text_gives_the_same_files_in_another_process(algorithm, tmp_path):
    write_stories(tmp_path / "stories.txt")
    digests = set()
    for number in range(2):
        target = tmp_path / str(number)
        command = [sys.executable, "-m", "tutelage", "tokenizer", "train", "--vocab_size", "512"]
        command += ["--train_data_paths", f"text:{tmp_path / 'stories.txt'}", "--output_dir", str(target)]
        command += ["--algorithm", algorithm]
        environment = os.environ | {"PYTHONHASHSEED": str(number), "RAYON_NUM_THREADS": str(number + 1)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        files = sorted(path for path in target.iterdir())
        digests.add(hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest())
    assert len(digests) == 1


def test_transformers_and_we_read_the_same_tokenizer_back(tmp_path):
    transformers = pytest.importorskip("transformers")
    trained().save(tmp_path, chat_template=Template.load("chatml").jinja)
    ours, theirs = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.fingerprint == trained().fingerprint
    assert (len(theirs), theirs.eos_token_id, theirs.pad_token_id) == (512, 0, 1)
    template, rng = Template.recognise(ours), Random(3)
    assert template.name == "chatml"
    for _ in range(50):
        messages = conversation(rng)
        official = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
        assert template.encode(messages, ours).tokens == official
    for text in ("", " Jack  had 12 boxes.\n", "東京 🇫🇷"):
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
        assert theirs.decode(ours.encode(text)) == text


def test_llama_cpps_own_reader_reads_the_vocabulary(tmp_path):
    from gguf.vocab import BpeVocab, SpecialVocab

    trained().save(tmp_path, chat_template=Template.load("chatml").jinja)
    read = [text for text, _, _ in BpeVocab(tmp_path).all_tokens()]
    assert read == [trained().token_text(token) for token in range(512)]
    special = SpecialVocab(tmp_path, load_merges=True, n_vocab=512)
    assert special.special_token_ids == {"eos": 0, "pad": 1}
    assert len(special.merges) == 512 - 256 - 4


def test_conversations_are_learned_from_by_what_is_said(tmp_path):
    rng = Random(0)
    with (tmp_path / "chats.jsonl").open("w") as file:
        for _ in range(300):
            file.write(json.dumps({"messages": conversation(rng)}) + "\n")
    run("--train_data_paths", f"jsonl:{tmp_path / 'chats.jsonl'}", "--output_dir", tmp_path / "t")
    tokenizer = Tokenizer.load(tmp_path / "t")
    spelled = {tokenizer.token_text(token) for token in range(tokenizer.size)}
    assert "Ġnamed" in spelled
    assert not spelled & {"messages", "Ġmessages", "assistant", '{"'}


def test_texts_of_every_form_are_learned_from(tmp_path):
    """Each form has a word of its own, often enough to become a token."""
    from datasets import Dataset

    (tmp_path / "lines.txt").write_text("alligator\n" * 20)
    (tmp_path / "whole.txt").write_text("butterfly\n" * 20)
    (tmp_path / "web.jsonl").write_text('{"text": "caterpillar\\n"}\n' * 20)
    Dataset.from_dict({"text": ["dragonfly"] * 20}).save_to_disk(tmp_path / "saved")
    paths = [tmp_path / "lines.txt", f"document:{tmp_path / 'whole.txt'}", tmp_path / "web.jsonl"]
    paths.append(f"local:{tmp_path / 'saved'}")
    run("--train_data_paths", *paths, "--cache_dir", tmp_path / "c", "--output_dir", tmp_path / "t")
    tokenizer = Tokenizer.load(tmp_path / "t")
    spelled = {tokenizer.token_text(token) for token in range(tokenizer.size)}
    assert {"alligator", "butterfly", "caterpillar", "dragonfly"} <= spelled


def test_more_text_than_is_learned_from_is_sampled_aloud(tmp_path, capsys):
    """All through the file, and so much of each path as its share of all is."""
    (tmp_path / "a.txt").write_text("".join(f"{number:05}\n" for number in range(4000)))
    (tmp_path / "b.txt").write_text("".join(f"x{chr(0x4E00 + number)}\n" for number in range(300)))
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    run("--train_data_paths", *paths, "--max_train_bytes", "2120", "--algorithm", "char", "--output_dir",
        tmp_path / "t")  # fmt: skip
    said = capsys.readouterr().err
    assert "learning from 430 of 4,300 rows, drawn by chance: all have about 21,200 bytes of text" in said
    tokenizer = Tokenizer.load(tmp_path / "t")
    chinese = [at for at in range(300) if 0 not in tokenizer.encode(chr(0x4E00 + at))]
    assert len(chinese) == 30 and chinese[0] < 60 and chinese[-1] > 240
    run("--train_data_paths", f"document:{paths[0]}", "--max_train_bytes", "9", "--algorithm", "char",
        "--output_dir", tmp_path / "one")  # fmt: skip
    assert "learning from 1 of 1 rows, " in capsys.readouterr().err
    run("--train_data_paths", *paths, "--max_train_bytes", "21200", "--algorithm", "char", "--output_dir",
        tmp_path / "whole")  # fmt: skip
    assert "learning from" not in capsys.readouterr().err


@pytest.mark.parametrize("algorithm", ["byte_bpe", "sentencepiece", "char"])
def test_reserved_tokens_follow_those_of_the_template_and_cannot_be_typed(algorithm, tmp_path):
    stories_file, target = write_stories(tmp_path / "stories.txt"), tmp_path / "t"
    run("--train_data_paths", stories_file, "--output_dir", target, "--algorithm", algorithm,
        "--reserved_tokens", "2")  # fmt: skip
    tokenizer = Tokenizer.load(target)
    reserved = ["<|reserved_special_token_0|>", "<|reserved_special_token_1|>"]
    assert list(tokenizer.control)[-4:] == [*CHATML, *reserved]
    assert (target / "tokenizer.model").exists() == (algorithm == "sentencepiece")
    assert tokenizer.control[reserved[1]] not in tokenizer.encode(reserved[1])
    assert Template.recognise(tokenizer).name == "chatml"


def test_overwriting_leaves_no_file_of_the_tokenizer_before(tmp_path):
    words = ["--train_data_paths", write_stories(tmp_path / "stories.txt"), "--output_dir", tmp_path / "t"]
    run(*words, "--algorithm", "sentencepiece")
    run(*words, "--overwrite")
    assert not (tmp_path / "t" / "tokenizer.model").exists()
    assert Tokenizer.load(tmp_path / "t").sentencepiece is None


@pytest.mark.parametrize("name", ["chatml", "llama3_instruct"])
def test_the_directory_has_the_template_and_its_control_tokens(tmp_path, name):
    stories_file = write_stories(tmp_path / "stories.txt")
    run("--train_data_paths", stories_file, "--output_dir", tmp_path / "t", "--template_config", name)
    tokenizer = Tokenizer.load(tmp_path / "t")
    assert Template.recognise(tokenizer).name == name
    assert set(Template.load(name).file.control) <= set(tokenizer.control)


def test_a_vocabulary_of_little_text_is_small_and_says_so(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("hm hm\n")
    run("--train_data_paths", tmp_path / "a.txt", "--output_dir", tmp_path / "t")
    said = capsys.readouterr()
    assert said.out == ""
    assert f"{tmp_path / 't'}: 261 tokens" in said.err
    assert "512 were asked for, but nothing else occurs twice in the text" in said.err


def test_mistakes_are_named(tmp_path):
    stories_file = write_stories(tmp_path / "stories.txt")
    with pytest.raises(UserError) as caught:
        train_tokenizer([], 259, CHATML)
    assert str(caught.value) == (
        "a vocabulary of 259 is too small: 256 bytes and 4 control tokens "
        "(<|endoftext|>, <|pad|>, <|im_start|>, <|im_end|>) take 260 already"
    )
    for flag in ("--reserved_tokens", "--max_train_bytes"):
        assert f"{flag[2:]} is -1, must be at least" in refusal("--train_data_paths", "a", flag, "-1")
    assert refusal("--train_data_paths", tmp_path / "no.txt") == f"{tmp_path / 'no.txt'} does not exist"
    assert refusal("--train_data_paths", stories_file, "--train_num_samples", "1", "2") == (
        "tokenizer train: train_num_samples has 2 numbers for 1 paths"
    )
    run("--train_data_paths", stories_file, "--output_dir", tmp_path / "t")
    assert refusal("--train_data_paths", stories_file, "--output_dir", tmp_path / "t") == (
        f"{tmp_path / 't'} already holds a tokenizer; give --overwrite to replace it, or another --output_dir"
    )
    run("--train_data_paths", stories_file, "--output_dir", tmp_path / "t", "--overwrite")


def test_bad_rows_are_refused_or_skipped_aloud(tmp_path, capsys):
    path = tmp_path / "a.txt"
    path.write_bytes(b"good text, good text\n\xff\xfe broken\n" * 2)
    reason = f"{path}:2: not UTF-8: byte 0xff at column 1"
    assert reason in refusal("--train_data_paths", path, "--output_dir", tmp_path / "t")
    run("--train_data_paths", path, "--output_dir", tmp_path / "t", "--skip_bad_rows")
    assert f"2 bad rows skipped, the first of them {reason}" in capsys.readouterr().err


def run(*words: object) -> None:
    main(["tokenizer", "train", "--vocab_size", "512", *map(str, words)])


def refusal(*words: object) -> str:
    from tutelage.cli import configure
    from tutelage.recipes.tokenizer import run

    with pytest.raises(UserError) as caught:
        run(configure(["tokenizer", "train", *map(str, words)])[1])
    return str(caught.value)
