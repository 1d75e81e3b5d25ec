"""Documents in other forms than a line of text: records with a text, and whole files."""

import json
from pathlib import Path

import pytest
from tiny_data import TOKENIZER, chat, refusal

from tutelage.data import read
from tutelage.data.dataset import encode_paths
from tutelage.data.read import Rows, load_rows, scan
from tutelage.data.sources import parse_sources


def scanned(path: Path, content: bytes) -> Rows:
    path.write_bytes(content)
    return scan(*parse_sources([path]))


def record(text, key: str = "text") -> bytes:
    return json.dumps({"id": 7, key: text, "source": "web"}).encode()


@pytest.mark.parametrize("key", ["text", "content", "raw_content", "story"])
def test_a_record_with_a_text_is_a_document_that_keeps_its_line_ends(tmp_path, key):
    texts = ["  Grüße 🙂 \n\nand more\r\n", "\u2028x\ty", "{}", "naïve\x00"]
    blank = ["", " \n\t", "\u3000"]
    rows = scanned(tmp_path / "a.jsonl", b"\n".join(record(text, key) for text in [*texts, *blank]))
    assert (rows.source.kind, rows.source.unit) == ("text", "record")
    assert list(load_rows(rows.source, rows.offsets)) == texts
    assert not rows.faults.count and rows.lines.tolist() == [1, 2, 3, 4]


BAD_RECORDS = [
    (b"[1]", "not an object with text"),
    (b'{"content": "b"}', "no text; the object has 'content'"),
    (
        json.dumps({"messages": chat()}).encode(),
        "no text; the object has 'messages'; its shape is messages, that of FIRST is text: "
        "keep them in two files",
    ),
    (b'{"text": null}', "its text is null, not a string"),
    (b'{"text": 7}', "its text is a number, not a string"),
    (rb'{"text": "\ud83d"}', "its text has half a surrogate pair, which is no character"),
    (b'{"text": "\xe4"}', "not UTF-8: byte 0xe4 at column 11"),
    (b'{"text": "a"', "not JSON: Expecting ',' delimiter at column 13"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_RECORDS, ids=[reason for _, reason in BAD_RECORDS])
def test_what_is_wrong_with_a_record_of_text_is_said(tmp_path, row, reason):
    rows = scanned(tmp_path / "a.jsonl", record("a") + b"\n" + row + b"\n" + record("b"))
    path = rows.source.path
    assert rows.faults.named == [f"{path}:2: {reason}".replace("FIRST", f"{path}:1")]
    assert list(load_rows(rows.source, rows.offsets)) == ["a", "b"]


def test_records_with_messages_are_conversations_whatever_else_they_have(tmp_path):
    rows = scanned(
        tmp_path / "a.jsonl", json.dumps({"text": "a", "messages": chat()}).encode() + b"\n" + record("a")
    )
    assert rows.source.kind == "jsonl"
    (fault,) = rows.faults.named
    assert fault.endswith("a.jsonl:2: no messages; the object has 'id', 'text', 'source'")


def test_a_document_is_a_whole_file_as_it_is(tmp_path):
    path = tmp_path / "play.md"
    whole = "First Citizen:\r\nBefore we proceed,\n\n\n  hear me 🙂\n"
    path.write_bytes(b"\xef\xbb\xbf" + whole.encode())
    (source,) = parse_sources([f"document:{path}"])
    rows = scan(source)
    assert list(load_rows(source, rows.offsets)) == [whole] and len(rows) == 1
    assert len(rows.sample(1.0)) == len(rows.sample(-1)) == 1


def test_documents_that_cannot_be_read_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "LONGEST_LINE", 1 << 20)
    path = tmp_path / "a.txt"
    for content, reason in [
        (b"ab\ncd\xff", "not UTF-8: byte 0xff at byte 6"),
        (b"x" * ((1 << 20) + 1), "longer than 1 MiB; split it up, or read it a line at a time with text:"),
    ]:
        path.write_bytes(content)
        assert scan(*parse_sources([f"document:{path}"])).faults.named == [f"{path}:1: {reason}"]
    path.write_bytes(b"x" * (1 << 20))
    assert len(scan(*parse_sources([f"document:{path}"]))) == 1
    path.write_bytes(b"\xef\xbb\xbf \n \n")
    assert refusal(scan, *parse_sources([f"document:{path}"])) == (
        f"{path} has no rows: the file is empty or has only blank lines"
    )


def test_every_form_is_learned_alike_and_has_a_place_of_its_own_in_the_cache(tmp_path):
    """One file, read in three ways."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps({"text": "ab\ncd", "story": "ef"}).encode())
    options = {"num_samples": (), "template": None, "tokenizer": TOKENIZER, "log": lambda line: None}
    for form in (f"jsonl:{path}", f"text:{path}", f"document:{path}"):
        for _ in range(2):
            store, _ = encode_paths([form], cache_dir=tmp_path / "cache", **options)
            text = "ab\ncd" if form.startswith("jsonl") else path.read_text()
            assert store[0].tokens.tolist() == [*TOKENIZER.encode(text), TOKENIZER.eos]
            assert store.ids == ["0-1"] and store[0].weights.tolist() == [1] * len(store[0].tokens)
