"""From files to documents: encoded alike by any number of processes, and only once."""

import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tiny_data import TEMPLATE, TOKENIZER, chat, chats, refusal
from tiny_tokenizer import tiny_tokenizer

from tutelage.data import dataset, encode
from tutelage.data.dataset import encode_paths, prepare
from tutelage.data.store import SampleStore
from tutelage.text.template import Template

OTHER = 4


@pytest.fixture
def encoded(tmp_path):
    """`encode_paths` with a cache of the test's own."""
    return partial(
        encode_paths, num_samples=(), template=TEMPLATE, tokenizer=TOKENIZER, log=lambda line: None,
        cache_dir=tmp_path / "cache",
    )  # fmt: skip


@pytest.fixture
def prepared(tmp_path):
    """`prepare`, the same way."""
    return partial(
        prepare, num_samples=(), template=TEMPLATE, tokenizer=TOKENIZER, log=lambda line: None,
        cache_dir=tmp_path / "cache", max_seq_len=512,
    )  # fmt: skip


def same(first: SampleStore, second: SampleStore) -> bool:
    return first.ids == second.ids and all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for one, other in zip(first, second, strict=True)
        for name in ("tokens", "weights", "roles")
    )


def test_a_line_of_text_is_learned_whole_and_ends_in_eos(tmp_path, encoded):
    (tmp_path / "a.txt").write_text("ab\n\né <|im_end|>\n")
    store, _ = encoded([tmp_path / "a.txt"], template=None)
    assert store.ids == ["0-1", "0-3"]
    assert store[0].tokens.tolist() == [*TOKENIZER.encode("ab"), TOKENIZER.eos]
    assert store[0].weights.tolist() == [1, 1, 1]
    assert store[0].roles.tolist() == [OTHER] * 3
    assert store[1].tokens.tolist().count(TOKENIZER.eos) == 1  # what a person typed stays text
    assert TOKENIZER.decode(store[1].tokens.tolist()) == "é <|im_end|>"


@pytest.mark.parametrize(
    ("tokenizer", "begins"),
    [
        (tiny_tokenizer(adds_bos=True), True),
        (tiny_tokenizer(adds_bos=True, add_bos_token=False), False),
        (tiny_tokenizer(add_bos_token=True), True),
        (tiny_tokenizer(), False),
    ],
)
def test_text_begins_with_bos_where_the_tokenizer_says_so(tmp_path, encoded, tokenizer, begins):
    (tmp_path / "a.txt").write_text("ab")
    store, _ = encoded([tmp_path / "a.txt"], tokenizer=tokenizer)
    bos = [tokenizer.bos] if begins else []
    assert store[0].tokens.tolist() == [*bos, *tokenizer.encode("ab"), tokenizer.eos]


def test_a_tokenizer_without_eos_ends_text_with_the_text(tmp_path, encoded):
    (tmp_path / "a.txt").write_text("ab")
    store, _ = encoded([tmp_path / "a.txt"], tokenizer=tiny_tokenizer(eos_token=None))
    assert store[0].tokens.tolist() == TOKENIZER.encode("ab")


def test_a_conversation_is_what_the_template_makes_of_it(tmp_path, encoded):
    conversations = [chat("  Grüße 🙂\n", " <|im_end|> "), chat("", ""), [*chat(), *chat("b", "c")]]
    store, _ = encoded([chats(tmp_path / "a.jsonl", conversations)])
    for sample, messages in zip(store, conversations, strict=True):
        expected = TEMPLATE.encode(messages, TOKENIZER)
        assert sample.tokens.tolist() == expected.tokens
        assert sample.weights.tolist() == expected.weights
        assert sample.roles.tolist() == expected.roles


def test_any_number_of_processes_gives_the_same(tmp_path, encoded, monkeypatch):
    monkeypatch.setattr(encode, "FEW", 0)
    monkeypatch.setattr(encode, "CHUNK", 32)  # more chunks than may wait
    path = chats(tmp_path / "a.jsonl", [chat("x" * (n % 37), "y" * (n % 11)) for n in range(700)])
    told = []
    one, _ = encoded([path], cache_dir=tmp_path / "one")
    two, _ = encoded(
        [path], cache_dir=tmp_path / "two", workers=2, progress=lambda *numbers: told.append(numbers)
    )
    assert len(one) == 700
    assert same(one, two)
    assert one.fingerprint == two.fingerprint
    assert told == [(done, 700) for done in (*range(32, 700, 32), 700)]


class Dying(encode.Encoder):
    def chunk(self, source, lines, offsets):
        os._exit(9)


def test_a_process_that_dies_is_explained(tmp_path, encoded, monkeypatch):
    monkeypatch.setattr(encode, "FEW", 0)
    monkeypatch.setattr(dataset, "Encoder", Dying)
    path = chats(tmp_path / "a.jsonl", [chat()] * 3)
    assert refusal(encoded, [path], workers=2) == (
        "a process that encoded data died, most likely for lack of memory; lower --num_data_workers"
    )
    assert not list((tmp_path / "cache").iterdir())


def test_encoding_and_its_processes_need_no_torch():
    code = "import sys, tutelage.data.dataset; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code]) == b"False\n"


def test_what_was_encoded_once_is_read_back(tmp_path, encoded, monkeypatch):
    path = chats(tmp_path / "a.jsonl", [chat(), chat("x", "y")])
    log = []
    before, _ = encoded([path], log=log.append)
    assert log == [f"encoding 2 rows of {path}"]
    monkeypatch.setattr(dataset, "scan", lambda source: pytest.fail("read again"))
    moved = shutil.move(path, tmp_path / "b.jsonl")
    after, _ = encoded([moved], log=log.append)
    assert same(before, after)
    assert before.fingerprint == after.fingerprint
    assert len(log) == 1


def test_whatever_changes_the_tokens_is_encoded_anew(tmp_path, encoded):
    path = chats(tmp_path / "a.jsonl", [chat(), chat("x", "y"), chat("z", "z")])
    (tmp_path / "own.yaml").write_text(
        (Path(encode.__file__).parents[1] / "text/templates/chatml.yaml").read_text()
        + "\nlearned: [user, assistant]\n"
    )
    stores = [
        encoded([path])[0],
        encoded([path], template=Template.load(tmp_path / "own.yaml"))[0],
        encoded([path], tokenizer=tiny_tokenizer(additional_special_tokens=["a"]))[0],
        encoded([path], num_samples=[2])[0],
        encoded([chats(tmp_path / "a.jsonl", [chat(), chat("x", "Y"), chat("z", "z")])])[0],
    ]
    assert len(list((tmp_path / "cache").iterdir())) == 5
    assert len({store.fingerprint for store in stores}) == 5


def spoil(directory: Path, how: str) -> None:
    tokens = directory / "tokens.bin"
    if how == "a flipped bit":
        content = bytearray(tokens.read_bytes())
        content[5] ^= 1
        tokens.write_bytes(content)
    elif how == "cut off":
        os.truncate(tokens, tokens.stat().st_size - 4)
    elif how == "half a number":
        os.truncate(tokens, tokens.stat().st_size - 1)
    elif how == "emptied":
        os.truncate(tokens, 0)
    elif how == "no meta":
        (directory / "meta.json").unlink()
    elif how == "meta of another kind":
        (directory / "meta.json").write_text("[]")
    elif how == "meta cut off":
        os.truncate(directory / "meta.json", 10)
    else:
        (directory / "lines.bin").unlink()


@pytest.mark.parametrize(
    "how",
    [
        "a flipped bit",
        "cut off",
        "half a number",
        "emptied",
        "no meta",
        "meta of another kind",
        "meta cut off",
        "gone",
    ],
)
def test_a_damaged_cache_is_made_anew(tmp_path, encoded, how):
    path = chats(tmp_path / "a.jsonl", [chat(), chat("x", "y")])
    before, _ = encoded([path])
    expected = [sample.tokens.tolist() for sample in before]
    (directory,) = (tmp_path / "cache").iterdir()
    del before
    spoil(directory, how)
    after, _ = encoded([path])
    assert [sample.tokens.tolist() for sample in after] == expected
    assert (directory / "meta.json").is_file()
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_named(tmp_path, encoded):
    (tmp_path / "cache").write_text("")
    message = refusal(encoded, [chats(tmp_path / "a.jsonl", [chat()])])
    assert message == (
        f"cannot keep encoded data in {tmp_path}/cache: File exists; free it or pass another --cache_dir"
    )


def test_bad_rows_of_all_paths_are_told_before_anything_is_encoded(tmp_path, encoded):
    good = chats(tmp_path / "good.jsonl", [chat()])
    first, second = (chats(tmp_path / f"{name}.jsonl", [chat(), [], chat()]) for name in "ab")
    message = refusal(encoded, [good, first, second])
    assert message == (
        "2 bad rows in the data; mend or remove them, or count and skip with --skip_bad_rows:\n"
        f"  {first}:2: messages is empty\n  {second}:2: messages is empty"
    )
    assert not (tmp_path / "cache").exists()
    for _ in range(2):  # the second time from the cache
        store, faults = encoded([good, first, second], skip_bad_rows=True)
        assert store.ids == ["0-1", "1-1", "1-3", "2-1", "2-3"]
        assert (faults.count, len(faults.named)) == (2, 2)
    assert refusal(encoded, [good, first, second]) == message  # what was skipped once is not good for ever


def test_a_role_that_the_template_does_not_know_makes_a_bad_row(tmp_path, encoded):
    template = Template.load("chatml")
    template.file.turns.pop("tool", None)
    called = [*chat(), {"role": "tool", "content": "3"}, {"role": "assistant", "content": "three"}]
    path = chats(tmp_path / "a.jsonl", [chat(), called])
    message = refusal(encoded, [path], template=template)
    assert message == (
        "1 bad row in the data; mend or remove it, or count and skip with --skip_bad_rows:\n"
        f"  {path}:2: message 3 is a tool message, for which template chatml has no form"
    )
    assert not list((tmp_path / "cache").iterdir())
    store, faults = encoded([path], template=template, skip_bad_rows=True)
    assert store.ids == ["0-1"] and faults.count == 1


def test_only_bad_rows_leave_an_empty_store(tmp_path, encoded, prepared):
    path = chats(tmp_path / "a.jsonl", [[], []])
    store, faults = encoded([path], skip_bad_rows=True)
    assert (len(store), store.ids, faults.count) == (0, [], 2)
    assert refusal(prepared, [path], skip_bad_rows=True, max_cut_percent=100) == (
        f"no row of {path} is left to learn from"
    )


def test_flags_that_do_not_fit_the_paths_are_refused(tmp_path, encoded):
    path = chats(tmp_path / "a.jsonl", [chat()])
    assert refusal(encoded, [path, path], num_samples=[1.0], split="val") == (
        "--val_num_samples has 1 values and --val_data_paths has 2; give one for each path"
    )
    assert refusal(encoded, [path], template=None) == (
        "conversations need a template; give --template_config, or only text: --train_data_paths"
    )


def test_a_hundred_thousand_rows_take_seconds_and_little_memory(tmp_path):
    """Lines of 40 characters: 100,000 of them take 38 MB on disk, and far less in memory while encoding."""
    (tmp_path / "a.txt").write_text(
        "".join(f"{n:05} the quick brown fox jumps again now\n" for n in range(100_000))
    )
    code = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from tiny_data import TEMPLATE, TOKENIZER, chat, chats, refusal
from tiny_tokenizer import tiny_tokenizer
from tutelage.data.dataset import prepare
tokenizer = tiny_tokenizer()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store = prepare(["{tmp_path}/a.txt"], num_samples=(), template=None, tokenizer=tokenizer, max_seq_len=64,
    cache_dir=__import__("pathlib").Path("{tmp_path}/cache"), log=lambda line: None)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(store), store.lengths.sum(), after - before)
"""
    start = time.perf_counter()
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    rows, tokens, kilobytes = map(int, output.split())
    assert (rows, tokens) == (100_000, 100_000 * 42)
    assert kilobytes < 120_000
    assert time.perf_counter() - start < 60
