"""CSV as Excel, pandas and others write it: quoted, separated in several ways, with columns of no name."""

import json

import pytest
from test_tables import CHATS, find, rows_of
from tiny_data import refusal

from tutelage.data.builders.raw_rows import rows_of as raw_rows_of
from tutelage.data.read import load_rows, raw_rows, scan
from tutelage.data.sources import parse_sources
from tutelage.data.tables import table_rows


def csv_of(tmp_path, content: bytes, name: str = "a.csv", **options) -> list:
    (tmp_path / name).write_bytes(content)
    return rows_of(tmp_path / name, cache=tmp_path / "cache", **options)


def test_csv_has_quotes_line_ends_in_cells_and_any_delimiter(tmp_path):
    content = '\ufeffinstruction,output\r\n"Say ""a, b""",c\r\n\r\n"two\nlines",d\r\n'.encode()
    asked = [messages[0]["content"] for messages in csv_of(tmp_path, content)]
    assert asked == ['Say "a, b"', "two\nlines"]
    for delimiter, name in ((";", "b.csv"), ("\t", "c.tsv")):
        (chat,) = csv_of(tmp_path, f"instruction{delimiter}output\nq,{delimiter}é".encode(), name)
        assert [message["content"] for message in chat] == ["q,", "é"]


def test_a_row_of_csv_is_named_by_the_line_it_begins_on(tmp_path):
    content = b'instruction,output\n"two\nlines",d\n\n" ",x\nlast,y\n'
    (tmp_path / "a.csv").write_bytes(content)
    (source,) = parse_sources(find(tmp_path / "a.csv", cache_dir=tmp_path / "cache"))
    rows = scan(source)
    assert rows.faults.named == [f"{tmp_path}/a.csv:5: its instruction is blank, and it has no input"]
    assert rows.lines.tolist() == [2, 6]


def test_cells_of_csv_may_spell_lists_and_labels(tmp_path):
    spelled = json.dumps(CHATS[0]).replace('"', '""')
    (chat,) = csv_of(tmp_path, f'messages\n"{spelled}"'.encode())
    assert chat == CHATS[0]
    (tmp_path / "k.csv").write_text("prompt,completion,label\nq,a,True\nq,b,false\n")
    sources = parse_sources(find(tmp_path / "k.csv", cache_dir=tmp_path / "cache"), ranked=True)
    rows = scan(sources[0])
    assert [row.ranks for row in load_rows(sources[0], rows.offsets)] == [[0], [1]] and not rows.faults.count


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"instruction,output\na,b,c\n",
            ":2: 3 fields, and the header has 2; quote texts that hold a delimiter",
        ),
        (b"instruction,output\na,b\na\n", ":3: 1 fields, and the header has 2"),
        (b'instruction,output\na,b\n"a"x,b\n', ":3: ',' expected after '\"'; quote texts in \""),
        (b'instruction,output\na,"b\n', ":2: unexpected end of data"),
        (b"output,output\na,b\n", ":1: two columns are called 'output'; give each its own name"),
        (b"instruction,output\n\xe4,b\n", " is not UTF-8: byte 0xe4; save it as UTF-8"),
    ],
)
def test_broken_csv_is_refused_with_its_line(tmp_path, content, message):
    assert f"a.csv{message}" in refusal(csv_of, tmp_path, content)


def records(tmp_path, content: bytes) -> list:
    (tmp_path / "a.csv").write_bytes(content)
    return list(table_rows(tmp_path / "a.csv", "csv"))


def test_a_name_may_hold_line_ends_and_delimiters(tmp_path):
    for content in (b'"a\nb",c\nx,y\n', b'\r\n"a\r\nb",c\r\n\r\nx,y', b'"a;;;\n""b",c\nx,"y\nz"\nu,v\n'):
        rows = records(tmp_path, content)
        assert list(rows[0][1])[1] == "c" and rows[0][1]["c"][0] == "y"
    assert [line for line, _ in rows] == [3, 5]
    assert records(tmp_path, b'5" pipe,b\n1,2\n') == [(2, {'5" pipe': "1", "b": "2"})]
    message = refusal(records, tmp_path, b'"a,b\n' + b"1,2\n" * (1 << 18))
    assert message.startswith(f"{tmp_path}/a.csv: its header does not end; quote names")


def test_columns_without_a_name_are_left_out_if_nothing_is_in_them(tmp_path):
    assert records(tmp_path, b"a,b,,\n1,2,, \n") == [(2, {"a": "1", "b": "2"})]
    assert records(tmp_path, b",a,b\n0,1,2\n") == [(2, {"a": "1", "b": "2"})]  # as pandas writes its index
    assert records(tmp_path, b",a,b,\n0,1,2,\n") == [(2, {"a": "1", "b": "2"})]
    (tmp_path / "b.csv").write_bytes(b"instruction,output,,\nq,a,,\nq,a,,note\n")
    (source,) = parse_sources(find(tmp_path / "b.csv", cache_dir=tmp_path))
    assert scan(source).faults.named == [
        f"{tmp_path}/b.csv:3: column 4 holds 'note' and has no name; give it one"
    ]


def test_rows_that_do_not_fit_their_header_can_be_left_out(tmp_path):
    path, reason = (
        tmp_path / "a.csv",
        "3 fields, and the header has 2; quote texts that hold a delimiter or a line end",
    )
    path.write_bytes(b"instruction,output\nq,a,b\nq,a\n")
    (source,) = parse_sources(find(path, cache_dir=tmp_path / "cache"))
    rows = scan(source)
    assert len(rows) == 1 and rows.faults.named == [f"{path}:2: {reason}"]
    (streamed,) = parse_sources(find(path, streaming=True))
    assert [line for line, _, _ in raw_rows(streamed)] == [2, 3] and streamed.first == 3
    assert dict(raw_rows_of(path))[f"{path}:2"] == reason


def test_other_separators_are_told_of(tmp_path):
    message = refusal(records, tmp_path, b"instruction|output\nq|a\n")
    assert (
        "a.csv:1: its only column is called 'instruction|output'; columns are separated by commas" in message
    )
