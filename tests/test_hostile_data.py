"""Data files made to do harm: refused in words, soon, in little memory."""

import json
import os
import pickle
import pickletools
import struct

import numpy as np
import pytest
import torch
from hostile import damaged, refusal, survives
from tiny_shards import shards
from tiny_tokenizer import tiny_tokenizer

from tutelage.data.dataset import encode_paths
from tutelage.data.faults import Faults
from tutelage.data.inert_pickle import read_pickle
from tutelage.data.legacy import conversations, parts_of, token_records
from tutelage.data.read import scan
from tutelage.data.shards import TokenShards
from tutelage.data.sources import parse_sources
from tutelage.data.stories.storyteller import items_of
from tutelage.text.template import Template

MEMORY = 200 << 20


class Runs:
    def __reduce__(self):
        return os.system, ("touch /tmp/never",)


def calls(name):
    module, function = name.rsplit(".", 1)
    return f"c{module}\n{function}\n(S'x'\ntR.".replace("S'x'", "Vx").encode()


LONG = struct.pack("<I", 1 << 30)
PICKLES = {
    "empty": b"",
    "text": b"hello, world",
    "no end": b"\x80\x04]",
    "an empty stack": b"\x80\x04.",
    "os.system": pickle.dumps(Runs()),
    "builtins.eval": calls("builtins.eval"),
    "numpy's own loader of pickles": calls("os.numpy.load"),
    "a call by another name": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
    "an object of a class": b"\x80\x04\x8c\x0asubprocess\x8c\x05Popen\x93)\x81.",
    "a name in the registry of extensions": b"\x80\x04\x82\x01.",
    "a name from outside": b"\x80\x04Pabc\n.",
    "a buffer from outside": b"\x80\x05\x97.",
    "a string longer than the file": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"abc.",
    "bytes longer than the file": b"\x80\x04\x8e" + struct.pack("<Q", (1 << 64) - 1) + b"abc.",
    "a number of 2^30 bytes": b"\x80\x04\x8b" + LONG + b"1.",
    "a number of a million digits": b"I" + b"9" * 1_000_000 + b"\n.",
    "a memo far away": b"\x80\x04]r\xff\xff\xff\x7f.",
    "a memo that is not there": b"\x80\x04h\x07.",
    "a million lists": b"\x80\x04" + b"]" * 1_100_000 + b".",
    "a million objects": b"\x80\x04" + b"}" * 1_100_000 + b".",
    "marks in marks": b"(" * 100_000 + b".",
    "tuples in tuples, 65 deep": b"(" * 65 + b"t" * 65 + b".",
    "a value from below a mark": b"K\x01(0t.",
    "more marks taken than made": b"\x80\x04ttt.",
    "an item for what is no list": b"\x80\x04K\x01K\x02a.",
    "a key that is a number": b"\x80\x04}K\x01K\x02s.",
    "a key that is a list": b"\x80\x04}]K\x02s.",
    "a state for a list": b"\x80\x04]]b.",
    "a call of text": b"\x80\x04\x8c\x02os)R.",
    "one text spelled a thousand times": b"\x80\x02c_codecs\nencode\nq\x00X"
    + struct.pack("<I", 1 << 20)
    + b"a" * (1 << 20)
    + b"q\x01(lq\x02"
    + b"h\x00h\x01\x85Ra".replace(b"\x85", b"X\x06\x00\x00\x00latin1\x86") * 1000
    + b".",
    "two values": b"\x80\x04K\x01K\x02.",
}


@pytest.mark.parametrize("kind", PICKLES)
def test_pickles_made_to_do_harm_are_refused(tmp_path, kind):
    path = tmp_path / "train.pkl"
    path.write_bytes(PICKLES[kind])
    refusal(read_pickle, path, names=str(path), memory=MEMORY)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_back_as_pickle_itself_reads_them(tmp_path, protocol):
    path = tmp_path / "train.pkl"
    values = [True, False, None, 0, 255, 256, -1, -(1 << 31), -(1 << 40), 1 << 62, -1.5, "東\ud800", b"\xff"]
    path.write_bytes(pickle.dumps([*values, {"a": (1, (2, 3, 4), [])}], protocol))
    found = read_pickle(path)
    assert repr(found) == repr(pickle.loads(path.read_bytes()))


def test_no_instruction_is_known_that_calls_or_looks_anything_up():
    """Every instruction of the format is either one that makes plain values, or refused."""
    from tutelage.data.inert_pickle import _STEPS

    known = {op.name for op in pickletools.opcodes if ord(op.code) in {*_STEPS, 0x2E, 0x4D, 0x4B}}
    assert {op.name for op in pickletools.opcodes} - known == {
        "PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "INST", "OBJ", "STRING", "BINSTRING",
        "SHORT_BINSTRING", "EMPTY_SET", "ADDITEMS", "FROZENSET", "NEXT_BUFFER", "READONLY_BUFFER",
    }  # fmt: skip


def read_all(path):
    for part in parts_of(path):
        rows = conversations(part, Faults()) if part.kind == "conversations" else None
        for _ in rows if rows is not None else token_records(part, Faults(), 0.0):
            pass


TOKENS = list(range(300, 4300))
DATA = {
    "a number": 7,
    "a list of numbers": [1, 2, 3],
    "an unknown record": [{"x": 1}],
    "splits of numbers": {"a": {"train": 7}},
    "keys without splits": {"a": [1]},
    "one record 50,000 times": [{"prompt_tokens": TOKENS, "completion_tokens": TOKENS}] * 50_000,
    "one list under many": {str(key): {"train": TOKENS} for key in range(10_000)},
    "a model of PyTorch": torch.nn.Linear(2, 2),
    "an array of objects": np.array([{}, None], object),
    "a Subset beyond its end": torch.utils.data.Subset([1], [5]),
}


@pytest.mark.parametrize("kind", DATA)
def test_pickles_of_something_else_are_refused(tmp_path, kind):
    path = tmp_path / "train.pkl"
    path.write_bytes(pickle.dumps(DATA[kind]))
    refusal(read_all, path, names=str(path), memory=MEMORY)


@pytest.mark.parametrize("seeds", [range(150), pytest.param(range(150, 6000), marks=pytest.mark.slow)])
def test_random_damage_to_pickles_is_harmless(tmp_path, seeds):
    path, failed = tmp_path / "train.pkl", 0
    rows = [{"prompt_tokens": TOKENS[:20], "completion_tokens": np.arange(9)} for _ in range(5)]
    for protocol in (0, 2, 5):
        sound = pickle.dumps(rows, protocol)
        for seed in seeds:
            path.write_bytes(damaged(sound, seed))
            failed += not survives(read_all, path)
    assert failed > len(seeds)


LINES = {
    "NUL bytes": b"\0" * 100,
    "bytes that are no UTF-8": b'{"messages": "\xff\xfe"}',
    "half a surrogate": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "nested 100,000 deep": b"[" * 100_000,
    "objects 100,000 deep": b'{"messages":' * 100_000,
    "a number of 100,000 digits": b'{"messages": ' + b"9" * 100_000 + b"}",
    "messages that are text": b'{"messages": "hi"}',
    "a role that is a list": b'{"messages": [{"role": [], "content": "x"}]}',
    "a role of 10,000 letters": b'{"messages": [{"role": "' + b"r" * 10_000 + b'", "content": "x"}]}',
    "NaN": b"NaN",
}


def scanned(path):
    for source in parse_sources([f"jsonl:{path}"]):
        scan(source).faults.refuse()


@pytest.mark.parametrize("kind", LINES)
def test_lines_made_to_do_harm_are_refused(tmp_path, kind):
    path = tmp_path / "data.jsonl"
    path.write_bytes(LINES[kind] + b"\n")
    refusal(scanned, path, names=str(path))


def test_a_line_of_a_gigabyte_is_refused_without_being_held(tmp_path):
    path = tmp_path / "data.jsonl"
    with path.open("wb") as file:
        file.write(b'{"messages": "')
        file.seek(1 << 30)
        file.write(b'"}\n')
    assert "longer than 64 MiB" in refusal(scanned, path, names=f"{path}:1", memory=400 << 20)


ARRAYS = {
    "nested": b"[" * 100_000,
    "an item cut short": b'[{"a": 1}, {"b"',
    "not UTF-8": b'[{"a": "\xff"}]',
    "no array": b'{"a": 1}',
    "a number of 100,000 digits": b"[" + b"9" * 100_000 + b"]",
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_shards_of_stories_made_to_do_harm_are_refused(tmp_path, kind):
    path = tmp_path / "data00.json"
    path.write_bytes(ARRAYS[kind])
    refusal(lambda: list(items_of(path)), names=str(path))


def edited(change):
    def apply(directory):
        path = directory / "meta.json"
        meta = json.loads(path.read_text())
        change(meta)
        path.write_text(json.dumps(meta))

    return apply


SHARDS = {
    "no JSON": lambda d: (d / "meta.json").write_text("{"),
    "a list": lambda d: (d / "meta.json").write_text("[]"),
    "nested 100,000 deep": lambda d: (d / "meta.json").write_text("[" * 100_000),
    "a dtype of objects": edited(lambda meta: meta.update(dtype="O")),
    "a dtype that is none": edited(lambda meta: meta.update(dtype="x9")),
    "a name elsewhere": edited(lambda meta: meta["shards"][0].update(name="../../x")),
    "a negative count": edited(lambda meta: meta["shards"][0].update(documents=-1)),
    "a count that is text": edited(lambda meta: meta["shards"][0].update(tokens="9")),
    "shards that are a number": edited(lambda meta: meta.update(shards=7)),
    "tokens cut short": lambda d: os.truncate(d / "shard-00000.tokens.bin", 7),
    "offsets swapped": lambda d: (d / "shard-00000.offsets.bin").write_bytes(
        (d / "shard-00000.offsets.bin").read_bytes()[::-1]
    ),
    "tokens overwritten": lambda d: (d / "shard-00000.tokens.bin").write_bytes(
        bytes((d / "shard-00000.tokens.bin").stat().st_size)
    ),
}


@pytest.mark.parametrize("kind", SHARDS)
def test_shards_made_to_do_harm_are_refused(tmp_path, kind):
    directory = shards(tmp_path, 30).directory
    SHARDS[kind](directory)
    refusal(lambda: TokenShards(directory).check_contents(), names=str(directory))


def test_damaged_rows_in_the_cache_are_made_anew(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 3
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def encoded():
        return encode_paths(
            [path], num_samples=(), template=Template.load("chatml"), tokenizer=tiny_tokenizer(),
            cache_dir=tmp_path / "cache", log=lambda text: None,
        )[0]  # fmt: skip

    sound = [sample.tokens.tolist() for sample in encoded()]
    for file in [*(tmp_path / "cache").rglob("*.bin"), *(tmp_path / "cache").rglob("meta.json")]:
        for seed in range(3):
            file.write_bytes(damaged(file.read_bytes() or b"\0", seed))
            assert [sample.tokens.tolist() for sample in encoded()] == sound
