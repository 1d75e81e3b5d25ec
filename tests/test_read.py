"""What is a row, which rows are chosen, and how everything that is wrong is told at once."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.data import read
from tutelage.data.faults import Faults
from tutelage.data.paths import KNOWN, MAGICS
from tutelage.data.read import load_rows, scan
from tutelage.data.sources import parse_sources
from tutelage.errors import UserError

OTHER_NAMES = "; other names for its keys are given by --data_fields, like question=instruction"
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def line(messages=CHAT, **more) -> bytes:
    return json.dumps({"messages": messages, **more}).encode()


def scanned(tmp_path, content: bytes, name: str = "a.jsonl"):
    path = tmp_path / name
    path.write_bytes(content)
    (source,) = parse_sources([path])
    return scan(source)


def reasons(rows) -> list[str]:
    return [re.sub(r"^.*?:(\d+): ", r"\1: ", named) for named in rows.faults.named]


def test_a_path_says_how_it_is_read(tmp_path):
    for name in ("a.jsonl", "b.txt", "c"):
        (tmp_path / name).write_bytes(b"x\n")
    given = [tmp_path / "a.jsonl", f"{tmp_path}/b.txt", f"jsonl:{tmp_path}/c", f"text:{tmp_path}/a.jsonl"]
    assert [(source.kind, source.path.name) for source in parse_sources(given)] == [
        ("jsonl", "a.jsonl"), ("text", "b.txt"), ("jsonl", "c"), ("text", "a.jsonl"),
    ]  # fmt: skip


def test_every_line_that_is_not_blank_is_a_row_wherever_it_begins(tmp_path):
    content = b"\xef\xbb\xbf" + line() + b"\r\n\r\n \t\n" + line([*CHAT, *CHAT]) + b"\n\n" + line()
    rows = scanned(tmp_path, content)
    assert rows.lines.tolist() == [1, 4, 6]
    assert not rows.faults.count
    assert [len(messages) for messages in load_rows(rows.source, rows.offsets)] == [2, 4, 2]


def test_a_line_of_text_keeps_its_spaces_and_loses_its_end(tmp_path):
    rows = scanned(tmp_path, "\ufeff  Grüße 🙂 \r\n\n\u2028x\ty\n{".encode(), "a.txt")
    assert list(load_rows(rows.source, rows.offsets)) == ["  Grüße 🙂 ", "\u2028x\ty", "{"]
    assert rows.lines.tolist() == [1, 3, 4]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=12), st.booleans())
def test_text_comes_back_as_it_was(tmp_path_factory, texts, windows):
    texts = [text.replace("\n", "").rstrip("\r") for text in texts]
    kept = [text for text in texts if text.encode().strip()]
    if not kept or texts[0].startswith("\ufeff"):
        return
    content = ("\r\n" if windows else "\n").join(texts).encode()
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(content)
    if any(content.startswith(magic) for magic in MAGICS):
        return
    rows = scan(*parse_sources([path]))
    assert list(load_rows(rows.source, rows.offsets)) == kept


BAD = [
    (b'{"messages": [', "not JSON: Expecting value at column 15"),
    (b"[1]", "not an object with messages"),
    (b'{"text": "a", "id": 3}', "no messages; the object has 'text', 'id'"),
    (b"{}", "no messages; the object has no keys"),
    (line("hi"), "messages is a string, not a list"),
    (line([]), "messages is empty"),
    (line([{"role": "user"}]), "message 1 has no content"),
    (line(CHAT[:1]), "has no assistant message"),
    (line([CHAT[0], CHAT[0]]), "message 2 is a user message right after a user message"),
    (b'{"messages": "\xe4"}', "not UTF-8: byte 0xe4 at column 15"),
    (b"[" * 100_000, "not JSON we can read: too long a number, or too deeply nested"),
    (b'{"messages": ' + b"9" * 5000 + b"}", "not JSON we can read: too long a number, or too deeply nested"),
    (
        rb'{"messages": [{"role": "user", "content": "\ud83d"}, {"role": "assistant", "content": ""}]}',
        "message 1 has a content with half a surrogate pair, which is no character",
    ),
]


@pytest.mark.parametrize(("row", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_what_is_wrong_with_a_row_is_said(tmp_path, row, reason):
    rows = scanned(tmp_path, line() + b"\n" + row + b"\n" + line())
    assert reasons(rows) == [f"2: {reason}"]
    assert rows.lines.tolist() == [1, 3]


def test_escapes_and_extra_keys_are_no_fault(tmp_path):
    whole = (
        rb'{"messages": [{"role": "user", "content": "\ud83d\ude42"}, {"role": "assistant", "content": ""}]}'
    )
    rows = scanned(tmp_path, whole + b"\n" + line(id=3))
    assert reasons(rows) == []
    assert next(load_rows(rows.source, rows.offsets))[0]["content"] == "🙂"


def test_a_line_without_end_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "LONGEST_LINE", 1 << 20)
    long = b'{"messages": "' + b"x" * (3 << 20) + b'"}'
    rows = scanned(tmp_path, line() + b"\n" + long + b"\n" + line() + b"\n" + long)
    assert reasons(rows) == ["2: longer than 1 MiB", "4: longer than 1 MiB"]
    assert [len(messages) for messages in load_rows(rows.source, rows.offsets)] == [2, 2]
    exact = line([CHAT[0], {"role": "assistant", "content": "x" * ((1 << 20) - len(line()) + 5)}])
    assert len(exact) == 1 << 20
    for end in (b"", b"\n", b"\r\n"):
        rows = scanned(tmp_path, exact + end)
        assert len(list(load_rows(rows.source, rows.offsets))) == 1


def test_ten_bad_rows_are_named_and_the_rest_counted(tmp_path):
    first = scanned(tmp_path, b"\n".join([line()] + [b"{"] * 8), "a.jsonl").faults
    first.extend(scanned(tmp_path, b"\n".join([b"{}"] * 1200), "b.jsonl").faults)
    with pytest.raises(UserError) as error:
        first.refuse()
    named = [f"{tmp_path}/a.jsonl:{number}: not JSON: " for number in range(2, 10)]
    told = str(error.value).split("\n  ")
    assert told[0] == (
        "1,208 bad rows in the data; mend or remove them, or count and skip with --skip_bad_rows:"
    )
    assert all(line.startswith(start) for line, start in zip(told[1:9], named, strict=True))
    assert told[9:] == [
        f"{tmp_path}/b.jsonl:1: no messages; the object has no keys{OTHER_NAMES}",
        f"{tmp_path}/b.jsonl:2: no messages; the object has no keys{OTHER_NAMES}",
        "and 1,198 more",
    ]
    Faults().refuse()


def refusal(function, *arguments) -> str:
    with pytest.raises(UserError) as error:
        function(*arguments)
    return str(error.value)


def test_paths_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "chats.jsonl").write_bytes(line())
    (tmp_path / "new.jsonl").mkdir()
    cases = {
        "hub/name": "hub/name looks like a data set of the hub, which needs a split: "
        "give --train_data_splits, train say",
        f"text:{tmp_path}": f"{tmp_path} holds no file that ends in .txt",
        f"{tmp_path}/new.jsonl": f"{tmp_path}/new.jsonl holds no file that ends in "
        ".jsonl, .ndjson, .txt, .parquet, .csv, .tsv, .json",
        f"{tmp_path}/chat.jsonl": f"{tmp_path}/chat.jsonl does not exist; "
        f"did you mean {tmp_path}/chats.jsonl?",
        f"{tmp_path}/zzzz": f"cannot tell how to read '{tmp_path}/zzzz'; {KNOWN}",
        f"text:{tmp_path}/zzzz": f"{tmp_path}/zzzz does not exist",
        f"{tmp_path}/no/a.txt": f"{tmp_path}/no/a.txt does not exist: there is no directory {tmp_path}/no",
    }
    for given_path, message in cases.items():
        assert refusal(parse_sources, [given_path]) == message


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"\x1f\x8b\x08", "gzip-compressed; give it a name that ends in .gz, or unpack it"),
        ("\ufeffhi".encode("utf-16-le"), "UTF-16 text; save it as UTF-8"),
        (b"PK\x03\x04", "a zip archive; unpack it first"),
        (b"PAR1", "a parquet file; give parquet:PATH"),
    ],
)
def test_files_of_another_kind_are_recognised(tmp_path, start, what):
    path = tmp_path / "a.jsonl"
    path.write_bytes(start)
    assert refusal(parse_sources, [path]) == f"{path} is {what}"


@pytest.mark.parametrize("content", [b"", b"\n\r\n  \n", b"\xef\xbb\xbf\n", b"\xef\xbb\xbf"])
def test_a_file_without_rows_is_refused(tmp_path, content):
    message = refusal(scanned, tmp_path, content)
    assert message == f"{tmp_path}/a.jsonl has no rows: the file is empty or has only blank lines"


def test_one_json_array_is_recognised(tmp_path):
    message = refusal(scanned, tmp_path, b'[\n  {"messages": []}\n]')
    assert message == f"{tmp_path}/a.jsonl is one JSON array; give json:{tmp_path}/a.jsonl"


def some_rows(tmp_path, count: int = 20):
    return scanned(tmp_path, b"\n".join([line()] * count))


def test_amounts_are_counts_ratios_or_everything(tmp_path):
    rows = some_rows(tmp_path)
    assert [len(rows.sample(amount)) for amount in (-1, 1, 1.0, 0.5, 0.05, 2, 20.0)] == [
        20,
        20,
        20,
        10,
        1,
        2,
        20,
    ]
    assert len(some_rows(tmp_path, 100).sample(0.29)) == 29


def test_the_rows_chosen_are_those_the_reference_chooses(tmp_path):
    """`datasets` shuffles with the permutation of numpy's default generator; the first n are taken."""
    rows = some_rows(tmp_path, 50).sample(7)
    assert rows.lines.tolist() == sorted((np.random.default_rng(42).permutation(50)[:7] + 1).tolist())
    datasets = pytest.importorskip("datasets", reason="the reference's own sampling is its oracle")
    theirs = datasets.Dataset.from_dict({"line": range(1, 51)}).shuffle(seed=42).select(range(7))
    assert rows.lines.tolist() == sorted(theirs["line"])
    assert len(list(load_rows(rows.source, rows.offsets))) == 7


def test_amounts_that_cannot_be_had_are_refused(tmp_path):
    rows = some_rows(tmp_path)
    path = tmp_path / "a.jsonl"
    for amount in (0, -2, 1.5, float("nan"), float("inf"), -0.5):
        assert refusal(rows.sample, amount) == (
            f"--train_num_samples {amount:g} is neither a count (a whole number above 1), "
            "a ratio (above 0, up to 1) nor -1 for all"
        )
    assert refusal(rows.sample, 1021, "--val_num_samples") == (
        f"--val_num_samples asks for 1,021 rows of {path}, which has 20 good ones; -1 takes all"
    )
    assert refusal(rows.sample, 0.01) == (
        f"--train_num_samples 0.01 of the 20 good rows of {path} is not one row"
    )
