"""`tutelage data show`: the same with and without colour, nothing hidden, nothing obeyed."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text
from tiny_data import TEMPLATE, TOKENIZER, chat, chats, refusal

from tutelage.data.batch import Sample
from tutelage.data.cut import cut
from tutelage.data.store import SampleStore, split_documents
from tutelage.recipes.data.show import DataShowConfig, run
from tutelage.report.inspect import histogram, preview, sample_lines, visible


def store_with(*conversations) -> SampleStore:
    encoded = [TEMPLATE.encode(messages, TOKENIZER) for messages in conversations]
    return SampleStore.of([Sample(each.tokens, each.weights, each.roles) for each in encoded])


def lines_of(store: SampleStore, index: int = 0, tokenizer=TOKENIZER) -> list[str]:
    return [line.plain for line in sample_lines(store, index, tokenizer)]


def test_a_document_is_shown_with_its_roles_and_what_is_learned():
    assert lines_of(store_with(chat("hi\n you", "Grüße\t🙂"))) == [
        "┌─ 0-1: 40 tokens, 13 learned",
        "other      │<|im_start|>user⏎",
        "user       │hi⏎",
        "user       │·you<|im_end|>",
        "other      │⏎",
        "other      │<|im_start|>assistant⏎",
        "assistant  ┃Grüße→🙂<|im_end|>",
        "other      │⏎",
        "└─ end of document",
    ]


def test_what_was_cut_says_so():
    store, _ = cut(store_with(chat("hi", "hello")), max_seq_len=24, too_long="truncate")
    assert lines_of(store)[0] == "┌─ 0-1: 25 of 28 tokens, 4 learned"
    assert lines_of(store)[-2] == "assistant  ┃hell"
    pieces = split_documents(store_with(chat("hi", "hello")), 20)
    assert lines_of(pieces, 1)[0] == "┌─ 0-1/1: 8 of 28 tokens, 6 learned"


def test_a_character_cut_in_half_is_shown_as_such():
    """The token in the middle of ü is learned alone: neither half is a character."""
    tokens = TOKENIZER.encode("aüb")
    store = SampleStore.of([Sample(tokens, [0, 0, 1, 1], [1] * 4)])
    assert lines_of(store)[1:-1] == ["user       │a\ufffd", "user       ┃üb"]


def test_nothing_a_terminal_would_obey_is_printed():
    """Colour codes, bidirectional overrides, carriage returns, no-break spaces."""
    shown = "".join(characters for characters, _ in visible("a\x1b[31m\u202eb\r\xa0\x00é🙂"))
    assert shown == "a\\x1b[31m\\u202eb␍\\xa0\\x00é🙂"
    stream = io.StringIO()
    store = store_with(chat("\x1b[2J[red]x[/red]", "y"))
    preview(store, TOKENIZER, samples=1, console=Console(file=stream))
    assert "\x1b" not in stream.getvalue()
    assert "\\x1b[2J[red]x[/red]" in stream.getvalue()


def test_colour_only_adds_to_what_is_there():
    store = store_with(chat(), chat("x", "y"))
    plain, coloured = io.StringIO(), io.StringIO()
    preview(store, TOKENIZER, samples=9, console=Console(file=plain, width=300))
    preview(
        store,
        TOKENIZER,
        samples=9,
        console=Console(file=coloured, width=300, force_terminal=True, color_system="standard"),
    )
    assert "\x1b[" in coloured.getvalue() and "\x1b[" not in plain.getvalue()
    assert Text.from_ansi(coloured.getvalue()).plain.rstrip() == plain.getvalue().rstrip()
    assert "\x1b[1;32mhello" in coloured.getvalue()  # learned: bold green


def test_a_pipe_gets_long_lines_whole_but_not_endless():
    stream = io.StringIO()
    preview(
        store_with(chat("x" * 1000, "y" * 5000)), TOKENIZER, samples=1, console=Console(file=stream, width=80)
    )
    lines = stream.getvalue().splitlines()
    assert "user       │" + "x" * 1000 + "<|im_end|>" in lines
    (answer,) = (line for line in lines if line.startswith("assistant"))
    assert "y·[…·3,810·more·characters·…]·y" in answer


def test_the_histogram_counts_every_document():
    lengths = np.array([3, 7, 8, 40, 41, 99, 100])
    assert [line.rstrip() for line in histogram(lengths, limit=50)] == [
        "tokens in a document, and how many documents have so many",
        "  0 -   9 ████████████████████████████████████████ 3",
        " 10 -  19                                          0",
        " 20 -  29                                          0",
        " 30 -  39                                          0",
        " 40 -  49 ███████████████████████████              2",
        " 50 -  59                                          0  ← 50 fit",
        " 60 -  69                                          0",
        " 70 -  79                                          0",
        " 80 -  89                                          0",
        " 90 -  99 █████████████                            1",
        "100 - 109 █████████████                            1",
        "7 documents, 298 tokens: mean 43, median 40, 95 % have at most 99, longest 100",
    ]
    assert histogram(np.array([], np.int64)) == ["no documents"]
    assert histogram(np.array([1]))[1:] == [
        "0 - 0                                          0",
        "1 - 1 ████████████████████████████████████████ 1",
        "1 documents, 1 tokens: mean 1, median 1, 95 % have at most 1, longest 1",
    ]


@pytest.fixture
def model(tmp_path):
    TOKENIZER.save(tmp_path / "model")
    return tmp_path / "model"


def config(tmp_path, model, paths, **options) -> DataShowConfig:
    options = {"template_config": "chatml", "cache_dir": tmp_path / "cache"} | options
    return DataShowConfig(train_data_paths=paths, ckpt_paths=(str(model),), **options)


def test_the_command_shows_samples_lengths_and_losses(tmp_path, model, capsys):
    path = chats(tmp_path / "a.jsonl", [chat(), chat("", "z" * 300)])
    run(config(tmp_path, model, (path,), max_seq_len=100))
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].startswith("role ")
    assert "┌─ 0-1: 28 tokens, 6 learned" in lines
    assert "┌─ 0-2: 101 of 321 tokens, 82 learned" in lines
    assert any(line.endswith("← 101 fit") for line in lines)
    assert lines[-1].startswith("  truncated to 100 positions: 1 row (50.0 %), 220 tokens")
    assert shown.err == f"encoding 2 rows of {path}\n"


def test_the_command_shows_the_rows_asked_for_even_dropped_ones(tmp_path, model, capsys):
    path = chats(tmp_path / "a.jsonl", [chat(), chat("", "z" * 300)])
    run(config(tmp_path, model, (path,), max_seq_len=100, too_long="drop", ids=("0-2", "0-1")))
    heads = [line for line in capsys.readouterr().out.splitlines() if line.startswith("┌")]
    assert heads == ["┌─ 0-2: 321 tokens, 301 learned (would be dropped)", "┌─ 0-1: 28 tokens, 6 learned"]
    assert refusal(run, config(tmp_path, model, (path,), ids=("0-1", "0-3", "7"))) == (
        "no document is called 0-3, 7: ids are <path>-<line>, the first path is 0"
    )


def test_the_command_shows_data_of_which_nothing_is_left(tmp_path, model, capsys):
    path = chats(tmp_path / "a.jsonl", [chat("", "z" * 300)])
    run(config(tmp_path, model, (path,), max_seq_len=10))
    assert "┌─ 0-1: 321 tokens, 301 learned" in capsys.readouterr().out


def test_text_needs_no_template_and_nothing_needs_torch(tmp_path, model):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    words = ["data", "show", "--train_data_paths", f"text:{tmp_path}/a.txt", "--ckpt_paths", str(model)]
    words += ["--cache_dir", str(tmp_path / "cache")]
    code = f"""
import sys
from tutelage import cli
cli.main({json.dumps(words)})
assert "torch" not in sys.modules
"""
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert "other      ┃two<|im_end|>" in output


def test_settings_that_cannot_be_meant_are_refused():
    message = refusal(
        DataShowConfig, train_data_paths=(), ckpt_paths=("a", "b"), max_seq_len=0, num_samples=-1, seed=-1
    )
    assert message.split("\n  ") == [
        "max_seq_len is 0, must be at least 1",
        "num_samples is -1, must be at least 0",
        "seed is -1, must be at least 0",
        "train_data_paths names no path",
        "ckpt_paths names 2 models, and data is encoded for one",
    ]
