"""`tutelage data download` of a URL: checked by a digest, and from a server that says "later"."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate

import pytest
from test_download import Handler, Server, serving
from test_download_hub import run

from tutelage.data import download as downloading


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(downloading, "PAUSE", 0.0)
    monkeypatch.setattr(downloading, "_BLOCK", 1000)


def test_a_url_is_fetched_and_checked(tmp_path, capsys):
    content = b"new" * 5000
    digest = hashlib.sha256(content).hexdigest()
    with serving(content, cut=4000, drops=1) as server:
        code, out, err = run(capsys, server.url, "--sha256", digest.upper(), "--output_dir", tmp_path)
        assert (code, out) == (0, f"{tmp_path / 'TinyStories_all_data.tar.gz'}\n"), err
        assert server.ranges == [None, "bytes=4000-"]
        code, _, err = run(capsys, server.url, "--sha256", digest, "--output_dir", tmp_path)
        assert (code, "is there already" in err, len(server.ranges)) == (0, True, 2)
        code, _, err = run(capsys, server.url, "--sha256", "0" * 64, "--output_dir", tmp_path)
        assert (
            code == 2 and f"is there and is another file: its SHA-256 is {digest}, and should be 000" in err
        )
        code, _, err = run(capsys, server.url, "--sha256", "0" * 64, "--output_dir", tmp_path / "b")
        assert (
            code == 2
            and f"was not kept: its SHA-256 is {digest}" in err
            and not any((tmp_path / "b").iterdir())
        )


@pytest.fixture
def slept(monkeypatch) -> list[float]:
    seconds: list[float] = []
    monkeypatch.setattr(downloading.time, "sleep", seconds.append)
    return seconds


@contextmanager
def busy(monkeypatch, later: str, times: int) -> Iterator[Server]:
    """A server that answers 429 a few times, with `later` for Retry-After."""
    answer, left = Handler.do_GET, [times]

    def do_GET(handler: Handler) -> None:
        if left[0]:
            left[0] -= 1
            handler.send_response(429, "Too Many Requests")
            handler.send_header("Retry-After", later)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        else:
            answer(handler)

    monkeypatch.setattr(Handler, "do_GET", do_GET)
    with serving(b"new" * 5000) as server:
        yield server


def test_a_server_that_is_busy_is_asked_again_when_it_says(tmp_path, capsys, monkeypatch, slept):
    with busy(monkeypatch, "7", 2) as server:
        assert run(capsys, server.url, "--output_dir", tmp_path / "a")[0] == 0
    assert slept == [7.0, 7.0]
    with busy(monkeypatch, formatdate(time.time() + 60, usegmt=True), 1) as server:
        assert run(capsys, server.url, "--output_dir", tmp_path / "b")[0] == 0
    assert 50 < slept[2] <= 60
    with busy(monkeypatch, "soon", 1) as server:
        assert run(capsys, server.url, "--output_dir", tmp_path / "c")[0] == 0
    assert slept[3] == 0.0
    with busy(monkeypatch, "86400", 1) as server:
        code, _, err = run(capsys, server.url, "--output_dir", tmp_path / "d")
    assert code == 2 and "429 Too Many Requests; the server wants to be asked again in 86,400 seconds" in err
