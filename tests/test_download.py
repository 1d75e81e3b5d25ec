"""`tutelage data download tinystories` against a local server: whole, cut off, changed, offline, hostile."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from story_shards import archive_of, item
from tiny_data import refusal

from tutelage import cli
from tutelage.data import download as downloading
from tutelage.data.download import download, recall, remember, unpack
from tutelage.data.stories.storyteller import SHARD
from tutelage.recipes.data.download_tinystories import URL

ARCHIVE = "TinyStories_all_data.tar.gz"


class Server(ThreadingHTTPServer):
    """Serves one file by ranges; after `cut` bytes of an answer it hangs up, `drops` times."""

    daemon_threads = True

    def __init__(self, content: bytes, *, cut: int = 0, drops: int = 0, etag: str = '"one"') -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.cut, self.drops, self.etag = content, cut, drops, etag
        self.ranges: list[str | None] = []
        self.ignores_ranges = False
        self.lies: dict[str, str] = {}  # headers of answers to ranges, or Content-Length of all

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{ARCHIVE}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start, content = 0, self.server.content
        if self.path.endswith("missing"):
            self.send_error(404)
            return
        fresh = self.headers.get("If-Range") in (None, self.server.etag)
        if asked and fresh and not self.server.ignores_ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("ETag", self.server.lies.get("ETag", self.server.etag))
                self.end_headers()
                return
            self.send_response(206)
            headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        else:
            self.send_response(200)
            headers = {}
        lengthless = "Content-Length" in self.server.lies
        headers |= {"ETag": self.server.etag, "Content-Length": str(len(content) - start)}
        for name, value in (headers | (self.server.lies if start or lengthless else {})).items():
            self.send_header(name, value)
        self.end_headers()
        body = content[start:]
        if self.server.drops:
            self.server.drops -= 1
            body = body[: self.server.cut]
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


@contextmanager
def serving(content: bytes, **options) -> Iterator[Server]:
    server = Server(content, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(downloading, "PAUSE", 0.0)
    monkeypatch.setattr(downloading, "_BLOCK", 1000)


def shards(count: int = 2, size: int = 3) -> dict[str, bytes]:
    return {
        f"data{place:02d}.json": json.dumps([item(10 * place + n) for n in range(size)]).encode()
        for place in range(count)
    }


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = 0
    try:
        cli.main(["data", "download", "tinystories", *words])
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


def silent(count: int, total: int) -> None:
    """For those who do not look at the bar."""


def test_shards_are_downloaded_unpacked_and_one_is_shown(tmp_path, capsys):
    members = {f"./{name}": content for name, content in shards().items()}
    with serving(archive_of({"._data00.json": b"x", "README": b"y", **members})) as server:
        code, out, err = run(capsys, "--output_dir", str(tmp_path), "--url", server.url)
        assert code == 0
        assert run(capsys, "--output_dir", str(tmp_path), "--url", server.url) == (
            0,
            out,
            err.splitlines()[-1] + "\n",
        )
        assert len(server.ranges) == 1
    found = {path.name: path.read_bytes() for path in (tmp_path / "TinyStories_all_data").glob("*.json")}
    assert found == shards()
    assert out.startswith('Write a story. In the story, try to use the verb "climb"')
    assert out.endswith("Once upon a time, Zoë found ring 0.\n\nThe end.\n")
    assert f"{tmp_path / 'TinyStories_all_data'}: 2 shards" in err


def test_the_real_archive_is_the_default():
    assert URL == (
        "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/TinyStories_all_data.tar.gz"
    )


def test_a_download_that_breaks_off_goes_on_where_it_ended(tmp_path):
    content = bytes(range(256)) * 100
    seen = []
    with serving(content, cut=10_000, drops=2) as server:
        download(server.url, tmp_path / "x", lambda count, total: seen.append((count, total)))
        assert server.ranges == [None, "bytes=10000-", "bytes=20000-"]
    assert (tmp_path / "x").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert seen[-1] == (len(content), len(content))
    assert [count for count, _ in seen] == sorted(count for count, _ in seen)


def test_another_run_goes_on_from_what_came(tmp_path):
    content = bytes(range(256)) * 100
    with serving(content, cut=5_000, drops=1) as server:
        part = tmp_path / "x.part"
        part.write_bytes(content[:7_000])
        (tmp_path / "x.part.etag").write_text(server.etag)
        download(server.url, tmp_path / "x", silent)
        assert server.ranges == ["bytes=7000-", "bytes=12000-"]
    assert (tmp_path / "x").read_bytes() == content


@pytest.mark.parametrize("kind", ["changed", "no ranges", "longer", "no tag"])
def test_what_came_of_another_file_is_not_kept(tmp_path, kind):
    content = b"new" * 5_000
    (tmp_path / "x.part").write_bytes(b"old" * (10_000 if kind == "longer" else 1_000))
    with serving(content) as server:
        server.ignores_ranges = kind == "no ranges"
        if kind != "no tag":
            (tmp_path / "x.part.etag").write_text('"zero"' if kind == "changed" else server.etag)
        download(server.url, tmp_path / "x", silent)
    assert (tmp_path / "x").read_bytes() == content


@pytest.mark.parametrize("length", ["abc", "-5", "", "1e3"])
def test_a_length_that_is_no_number_is_as_good_as_none(tmp_path, length):
    seen = []
    with serving(b"new" * 5_000) as server:
        server.lies = {"Content-Length": length}
        download(server.url, tmp_path / "x", lambda count, total: seen.append(total))
    assert (tmp_path / "x").read_bytes() == b"new" * 5_000 and set(seen) == {0}


@pytest.mark.parametrize(
    "lies",
    [
        {"Content-Range": "bytes 2900-14999/15000"},
        {"Content-Range": "15000"},
        {"Content-Range": "bytes 3000-1999/2000"},
        {"ETag": '"two"'},
        {"ETag": 'W/"one"'},
    ],
    ids=str,
)
def test_a_part_that_is_not_what_was_asked_for_is_not_joined_to_another(tmp_path, lies):
    content = b"new" * 5_000
    (tmp_path / "x.part").write_bytes(b"old" * 1_000)
    with serving(content) as server:
        server.lies = lies
        (tmp_path / "x.part.etag").write_text(server.etag)
        download(server.url, tmp_path / "x", silent)
        assert server.ranges == ["bytes=3000-", None]
    assert (tmp_path / "x").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_download_whose_last_byte_came_needs_no_more(tmp_path):
    content = b"new" * 5_000
    with serving(content) as server:
        (tmp_path / "x.part").write_bytes(content)
        (tmp_path / "x.part.etag").write_text(server.etag)
        download(server.url, tmp_path / "x", silent)
        assert server.ranges == ["bytes=15000-"]
    assert (tmp_path / "x").read_bytes() == content


def test_another_file_of_the_same_size_is_downloaded_anew(tmp_path):
    content = b"new" * 5_000
    with serving(content) as server:
        server.lies = {"ETag": '"two"'}
        (tmp_path / "x.part").write_bytes(b"old" * 5_000)
        (tmp_path / "x.part.etag").write_text(server.etag)
        download(server.url, tmp_path / "x", silent)
        assert server.ranges == ["bytes=15000-", None]
    assert (tmp_path / "x").read_bytes() == content


def test_a_server_that_is_not_there_is_told_in_words(tmp_path, capsys):
    with serving(b"x" * 5_000, cut=0, drops=99) as server:
        url = server.url
        part = tmp_path / f"{ARCHIVE}.part"
        code, out, err = run(capsys, "--output_dir", str(tmp_path), "--url", url)
        assert (code, out) == (2, "")
        assert (
            f"error: {url} cannot be downloaded: the connection ended after 0 of 5,000 bytes; check the"
            in err
        )
        part.write_bytes(b"xx")
        code, out, err = run(capsys, "--output_dir", str(tmp_path), "--url", url + "missing")
        assert (code, err.splitlines()[-1]) == (2, f"error: {url}missing cannot be downloaded: 404 Not Found")
    code, _, err = run(capsys, "--output_dir", str(tmp_path), "--url", url)
    assert code == 2
    assert "Connection refused; check the connection, or fetch the file elsewhere and put it at" in err
    assert "2 bytes, is kept, and the same command goes on from it" in err
    assert "Traceback" not in err
    code, _, err = run(capsys, "--output_dir", str(tmp_path), "--url", "nonsense")
    assert (code, "url is nonsense, must begin with https:// or http://" in err) == (2, True)


def test_an_archive_never_writes_outside_its_directory(tmp_path):
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(archive_of({"data00.json": b"[]", "../data01.json": b"[]"}))
    message = refusal(unpack, archive, tmp_path / "in", SHARD, silent)
    assert message.startswith(f"{archive} is not what it should be, and was not unpacked: ")
    assert not (tmp_path / "data01.json").exists()


def test_an_archive_that_is_damaged_or_another_is_refused(tmp_path):
    archive = tmp_path / "a.tar.gz"
    whole = archive_of(shards(size=40))
    for content in (whole[:-200], b"", b"<html>", whole[:300] + b"xxxx" + whole[304:]):
        archive.write_bytes(content)
        message = refusal(unpack, archive, tmp_path / "in", SHARD, silent)
        assert message.startswith(f"{archive} is damaged (")
    archive.write_bytes(archive_of({"other.txt": b"x"}))
    assert refusal(unpack, archive, tmp_path / "in", SHARD, silent).startswith(
        f"{archive} holds no files called"
    )


def test_shards_that_are_there_are_left_alone_and_others_replaced(tmp_path):
    archive, directory = tmp_path / "a.tar.gz", tmp_path / "in"
    archive.write_bytes(archive_of(shards()))
    directory.mkdir()
    same_size = b"x" * len(shards()["data00.json"])
    (directory / "data00.json").write_bytes(same_size)
    (directory / "data01.json").write_bytes(b"cut")
    paths = unpack(archive, directory, SHARD, silent)
    assert [path.read_bytes() for path in paths] == [same_size, shards()["data01.json"]]
    remember(paths, directory / ".complete")
    assert recall(directory / ".complete") == paths
    paths[0].write_bytes(b"cut")
    assert recall(directory / ".complete") == []


def test_a_disk_that_is_too_small_is_told_before(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(downloading.shutil, "disk_usage", lambda _: usage)
    with serving(b"x" * 5_000) as server:
        message = refusal(download, server.url, Path(tmp_path / "x"), silent)
    assert message == f"{tmp_path}: 0.00 GB more are needed, the disk has 0.00 left"
