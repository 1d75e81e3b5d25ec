"""Building shards: what is in them, what is refused, and that a kill at any moment changes nothing."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_data import refusal
from tiny_shards import TOKENIZER, built, shards, text_file, texts

from tutelage.data import shard_build
from tutelage.data.shards import TokenShards
from tutelage.text.tokenizer import Tokenizer


def files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def documents(directory: Path) -> list[list[int]]:
    source = TokenShards(directory)
    return [piece.tokens.tolist() for piece in source.pieces(0, source.positions)]


def test_documents_come_back_closed_by_eos_and_in_order(tmp_path):
    lines = texts(50)
    built(tmp_path / "out", text_file(tmp_path / "a.txt", lines))
    wanted = [[*TOKENIZER.encode(line), TOKENIZER.eos] for line in lines]
    assert documents(tmp_path / "out" / "train") == wanted


def test_blank_lines_are_left_out_and_several_files_follow_one_another(tmp_path):
    one, two = (
        text_file(tmp_path / "a.txt", ["x", "", "   ", "\u3000", "beta"]),
        text_file(tmp_path / "b.txt", ["42"]),
    )
    meta = built(tmp_path / "out", one, two)["train"]
    assert meta["documents"] == 3
    read = [TOKENIZER.decode(tokens) for tokens in documents(tmp_path / "out" / "train")]
    assert read == ["x", "beta", "42"]


def test_records_and_whole_files_are_documents_too(tmp_path):
    texts = ["alpha\nbeta", " ", "Grüße"]  # the second is counted as empty
    path, play = tmp_path / "a.jsonl", tmp_path / "play.md"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    play.write_text("x\n\n42\n" * 5)
    meta = built(tmp_path / "out", f"jsonl:{path}", f"document:{play}")["train"]
    read = [TOKENIZER.decode(tokens) for tokens in documents(tmp_path / "out" / "train")]
    assert read == ["alpha\nbeta", "Grüße", play.read_text()]
    assert (meta["documents"], meta["empty"]) == (3, 1)
    assert meta["sources"] == [f"jsonl:{path}", f"document:{play}"]
    again = built(tmp_path / "again", f"text:{path}", f"document:{play}")["train"]
    assert (again["documents"], again["sources"][0]) == (4, f"text:{path}")


def test_parts_and_processes_do_not_change_a_byte(tmp_path, monkeypatch):
    path = text_file(tmp_path / "a.txt", texts(400))
    built(tmp_path / "whole", path, val_percent=10)
    one = documents(tmp_path / "whole" / "train")
    monkeypatch.setattr(shard_build, "MIB", 1 << 10)
    built(tmp_path / "alone", path, val_percent=10)
    built(tmp_path / "parallel", path, val_percent=10, workers=2)
    assert len(json.loads((tmp_path / "alone/train/meta.json").read_text())["shards"]) > 10
    assert files(tmp_path / "alone") == files(tmp_path / "parallel")
    assert documents(tmp_path / "alone" / "train") == one


def test_the_validation_set_is_disjoint_by_content_and_of_about_the_size_asked_for(tmp_path):
    lines = [f"x {number}" for number in range(3000)]
    built(tmp_path / "out", text_file(tmp_path / "a.txt", lines + lines), val_percent=10)
    train, val = ({tuple(d) for d in documents(tmp_path / "out" / split)} for split in ("train", "val"))
    assert not train & val and len(train | val) == 3000
    assert 200 < len(val) < 400


def test_large_vocabularies_take_32_bits():
    assert shard_build.token_dtype(65536) == "<u2" and shard_build.token_dtype(65537) == "<u4"


def test_meta_says_what_it_was_made_of(tmp_path):
    lines = texts(30)
    meta = built(tmp_path / "out", text_file(tmp_path / "a.txt", lines))["train"]
    assert meta["tokenizer_fingerprint"] == TOKENIZER.fingerprint and meta["vocab_size"] == TOKENIZER.size
    assert meta["tokens"] == sum(len(TOKENIZER.encode(line)) + 1 for line in lines)
    assert meta["text_bytes"] == sum(len(line.encode()) for line in lines)


def test_bad_rows_are_named_by_line_or_counted_and_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_build, "MIB", 1 << 8)
    path = tmp_path / "a.txt"
    rows = [line.encode() for line in texts(100)]
    rows[41], rows[77] = b"\xff\xfe bad", b"also \x80"
    path.write_bytes(b"\n".join(rows))
    told = refusal(built, tmp_path / "out", f"text:{path}")
    assert f"{path}:42: not UTF-8" in told
    assert not (tmp_path / "out/train/meta.json").exists()
    meta = built(tmp_path / "out", f"text:{path}", skip_bad_rows=True)["train"]
    assert meta["documents"] == 98 and meta["bad_rows_skipped"] == 2


def test_conversations_are_no_text(tmp_path):
    path = tmp_path / "a.jsonl"
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    path.write_text(json.dumps({"messages": messages}) + "\n")
    assert "holds conversations" in refusal(built, tmp_path / "out", f"jsonl:{path}")


@pytest.mark.parametrize("part", ["tokens", "offsets"])
def test_what_was_lost_or_cut_off_is_made_again_by_the_same_build(tmp_path, part):
    path = text_file(tmp_path / "a.txt", texts(20))
    built(tmp_path / "out", path)
    before, broken = files(tmp_path / "out"), tmp_path / "out" / "train" / f"shard-00000.{part}.bin"
    broken.write_bytes(broken.read_bytes()[:-3])
    built(tmp_path / "out", path)
    assert files(tmp_path / "out") == before
    broken.unlink()
    built(tmp_path / "out", path)
    assert files(tmp_path / "out") == before


def test_a_directory_of_another_build_is_refused_unless_it_is_to_be_overwritten(tmp_path):
    one, other = text_file(tmp_path / "a.txt", texts(50)), text_file(tmp_path / "b.txt", texts(5, seed=1))
    built(tmp_path / "out", one, val_percent=30)
    assert "another build (sources differ)" in refusal(built, tmp_path / "out", other, val_percent=30)
    # Without --val_percent all documents would be trained on, those of the old val directory too.
    assert "another build (val_percent differ)" in refusal(built, tmp_path / "out", one)
    built(tmp_path / "out", other, overwrite=True)
    assert not (tmp_path / "out" / "val").exists()
    assert len(documents(tmp_path / "out" / "train")) == 5


def test_overwriting_removes_shards_and_nothing_else(tmp_path):
    text = text_file(tmp_path / "a.txt", texts(5))
    built(tmp_path / "out", text, val_percent=30)
    inside = text_file(tmp_path / "out" / "train" / "shard-of.txt", texts(3))
    before = files(tmp_path)
    told = refusal(built, tmp_path / "out", inside, overwrite=True)
    assert "shard-of.txt lies in" in told and "give another --output_dir" in told
    assert files(tmp_path) == before
    (tmp_path / "out" / "train" / ".shard-00000.json.7.partial").write_text("of a kill")
    built(tmp_path / "out", text, overwrite=True)
    left = {path.name for path in (tmp_path / "out" / "train").iterdir()}
    assert left == {"meta.json", "shard-of.txt", *(f"shard-00000{end}" for end in ENDS)}
    assert not (tmp_path / "out" / "val").exists()


ENDS = (".json", ".tokens.bin", ".offsets.bin")


def test_a_text_without_any_token_is_no_document(tmp_path):
    """A character vocabulary without an end token, in a text with a line of unknown characters alone."""
    vocabulary = json.loads(TOKENIZER.source)
    settings = {name: value for name, value in TOKENIZER.settings.items() if name != "eos_token"}
    silent = Silent(json.dumps(vocabulary), settings)
    meta = built(tmp_path / "out", text_file(tmp_path / "a.txt", ["x y", "?", "x"]), tokenizer=silent)[
        "train"
    ]
    assert (meta["documents"], meta["empty"]) == (2, 1)


class Silent(Tokenizer):
    """Has no tokens for question marks."""

    def encode_batch(self, texts):
        return [[] if text == "?" else super(Silent, self).encode(text) for text in texts]


def test_a_changed_file_is_read_again_and_leftovers_go(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_build, "MIB", 1 << 10)
    built(tmp_path / "out", text_file(tmp_path / "a.txt", texts(300)))
    before = len(list((tmp_path / "out/train").glob("*.json")))
    built(tmp_path / "out", text_file(tmp_path / "a.txt", texts(50, seed=3)))
    built(tmp_path / "fresh", text_file(tmp_path / "a.txt", texts(50, seed=3)))
    assert len(list((tmp_path / "out/train").glob("*.json"))) < before
    assert documents(tmp_path / "out/train") == documents(tmp_path / "fresh/train")


def test_missing_and_damaged_files_are_refused_in_words(tmp_path):
    source = shards(tmp_path, 20)
    directory = source.directory
    tokens = directory / "shard-00000.tokens.bin"
    content = bytearray(tokens.read_bytes())
    tokens.write_bytes(content[:-1])
    assert "bytes and not" in refusal(TokenShards, directory)
    content[5] ^= 1
    tokens.write_bytes(content)
    assert "is damaged" in refusal(TokenShards(directory).check_contents)
    tokens.unlink()
    assert "is missing" in refusal(TokenShards, directory)
    (directory / "meta.json").unlink()
    assert "interrupted" in refusal(TokenShards, directory)
    assert "has no meta.json" in refusal(TokenShards, tmp_path)


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from tutelage.data import shard_build
from tiny_shards import built
shard_build.MIB = 1 << 12
if __name__ == "__main__":
    print("ready", flush=True)
    built(Path({out!r}), {path!r}, val_percent=5, workers={workers})
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_build_killed_at_random_and_run_again_is_as_if_nothing_had_happened(tmp_path, workers, monkeypatch):
    path = text_file(tmp_path / "a.txt", texts(6000))
    monkeypatch.setattr(shard_build, "MIB", 1 << 12)
    built(tmp_path / "unbroken", path, val_percent=5)
    tests = str(Path(__file__).parent)
    script = tmp_path / "build.py"
    script.write_text(KILLED.format(tests=tests, out=str(tmp_path / "broken"), path=path, workers=workers))
    chance, cut_short = random.Random(workers), 0
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, str(script)], stdout=subprocess.PIPE, start_new_session=True
        )
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        wanted = len(list((tmp_path / "broken").rglob("*.json"))) + chance.randint(1, 12)
        while len(list((tmp_path / "broken").rglob("*.json"))) < wanted and process.poll() is None:
            time.sleep(chance.uniform(0.0, 0.02))
        process.send_signal(signal.SIGKILL)
        cut_short += process.wait() != 0
        process.stdout.close()
    assert cut_short >= 3
    built(tmp_path / "broken", path, val_percent=5)
    assert files(tmp_path / "broken") == files(tmp_path / "unbroken")
    assert np.sum([len(d) for d in documents(tmp_path / "broken/train")]) > 0
