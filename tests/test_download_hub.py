"""`tutelage data download` of data sets, models and URLs, against a server that speaks the hub's API."""

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest
from test_download import Handler, Server, serving

from tutelage import cli
from tutelage.data import download as downloading
from tutelage.data.hub import CONVERTED, SHORT_NAMES
from tutelage.recipes.download import DownloadConfig
from tutelage.recipes.download import run as fetch

PARQUET = {f"main/train/000{n}.parquet": bytes([n]) * 30_000 for n in range(2)}
PARQUET |= {"main/test/0000.parquet": b"t" * 5000, "socratic/partial-train/0000.parquet": b"s" * 7000}
OWN = {"README.md": b"# Sums\n", "data/train.jsonl": b'{"a": 1}\n' * 100}
WEIGHTS = (
    "model.safetensors",
    "pytorch_model.bin",
    "config.json",
    "tokenizer.json",
    "onnx/model.onnx",
    "tf_model.h5",
)
MODEL = {path: path.encode() * 50 for path in WEIGHTS}
REPOSITORIES = {
    "datasets": {"openai/gsm8k": {CONVERTED: PARQUET, "main": OWN}, "me/own": {"main": OWN}},
    "models": {"me/model": {"main": MODEL}},
}


class Hub(ThreadingHTTPServer):
    """The hub's API for `REPOSITORIES`, and their files, which lie on another host, as large ones do."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.commits: dict[str, dict[str, bytes]] = {}
        self.moved, self.gated, self.damaged, self.cut = 0, False, False, 0
        self.asked: list[str] = []
        self.tokens: list[tuple[str, str | None]] = []


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(path)
        self.server.tokens.append((path.split("/")[1], self.headers.get("Authorization")))
        if path.startswith("/elsewhere/"):
            self._file(path.removeprefix("/elsewhere/"))
        elif found := re.fullmatch(r"/api/(datasets|models)/([^/]+/[^/]+)/(revision|tree)/(.+)", path):
            self._answer(*found.groups())
        elif found := re.fullmatch(r"/(?:datasets/)?[^/]+/[^/]+/resolve/(.+)", path):
            host = self.headers["Host"].replace("127.0.0.1", "localhost")
            self._send(302, b"", Location=f"http://{host}/elsewhere/{found.group(1)}")
        else:
            self._send(404, b"")

    def _answer(self, kind: str, name: str, what: str, revision: str) -> None:
        if self.server.gated:
            self._send(403, b"{}", **{"X-Error-Code": "GatedRepo"})
        elif name not in REPOSITORIES[kind]:
            self._send(404, b"{}", **{"X-Error-Code": "RepoNotFound"})
        elif what == "tree":
            self._send(200, json.dumps(self._tree(self.server.commits[revision])).encode())
        elif revision not in REPOSITORIES[kind][name]:
            self._send(404, b"{}", **{"X-Error-Code": "RevisionNotFound"})
        else:
            commit = hashlib.sha1(f"{name} {revision} {self.server.moved}".encode()).hexdigest()
            self.server.commits[commit] = REPOSITORIES[kind][name][revision]
            self._send(200, json.dumps({"id": name, "sha": commit, "siblings": []}).encode())

    def _tree(self, files: dict[str, bytes]) -> list[dict]:
        entries: list[dict] = [{"type": "directory", "path": "main", "oid": "0" * 40, "size": 0}]
        for path, content in files.items():
            oid = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            entry = {"type": "file", "path": path, "oid": oid, "size": len(content)}
            if path.endswith((".parquet", ".safetensors", ".bin")):
                digest = hashlib.sha256(content).hexdigest()
                entry |= {"oid": "1" * 40, "lfs": {"oid": digest, "size": len(content), "pointerSize": 134}}
            entries.append(entry)
        return entries

    def _file(self, place: str) -> None:
        commit, _, path = place.partition("/")
        content = self.server.commits[commit][path]
        if self.server.damaged:
            content = content[:-1] + b"!"
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1]) if self.headers["Range"] else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", '"one"')
        self.end_headers()
        cut, self.server.cut = self.server.cut, 0
        self.wfile.write(content[start:][: cut or None])

    def _send(self, code: int, body: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(downloading, "PAUSE", 0.0)
    monkeypatch.setattr(downloading, "_BLOCK", 1000)


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"  # which HF_ENDPOINT says, when it is imported
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # which tests are otherwise
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def run(capsys, *words: object) -> tuple[int, str, str]:
    code = 0
    try:
        cli.main(["data", "download", *map(str, words)])
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


def found(directory) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != ".downloaded"
    }


def test_a_data_set_comes_as_the_subsets_and_splits_that_were_asked_for(hub, tmp_path, capsys):
    where = tmp_path / "openai_gsm8k"
    code, out, err = run(capsys, "gsm8k", "--output_dir", tmp_path)
    assert (code, out) == (0, f"{where}\n"), err
    assert found(where) == PARQUET and "4 files, 0.1 MB" in err
    count = len(hub.asked)
    assert run(capsys, "openai/gsm8k", "--output_dir", tmp_path)[0] == 0
    assert len(hub.asked) == count + 2, "nothing that is there is fetched again"
    words = ["openai/gsm8k", "--subsets", "main", "--splits", "test", "--output_dir", tmp_path / "b"]
    assert run(capsys, *words)[0] == 0
    assert list(found(tmp_path / "b")) == ["openai_gsm8k/main/test/0000.parquet"]
    words = ["gsm8k", "--subsets", "socratic", "--splits", "train", "--output_dir", tmp_path / "c"]
    assert run(capsys, *words)[0] == 0
    assert list(found(tmp_path / "c")) == ["openai_gsm8k/socratic/partial-train/0000.parquet"]


def test_the_token_is_told_to_the_hub_and_to_no_other_host(hub, tmp_path, capsys):
    assert run(capsys, "gsm8k", "--splits", "test", "--output_dir", tmp_path)[0] == 0
    assert {place for place, token in hub.tokens if token == "Bearer hf_secret"} == {"api", "datasets"}
    assert [token for place, token in hub.tokens if place == "elsewhere"] == [None]


def test_own_files_and_models_are_fetched_too(hub, tmp_path, capsys):
    assert run(capsys, "me/own", "--files", "data/*", "--output_dir", tmp_path)[0] == 0
    assert found(tmp_path / "me_own") == {"data/train.jsonl": OWN["data/train.jsonl"]}
    assert run(capsys, "me/own", "--revision", "main", "--output_dir", tmp_path)[0] == 0
    assert found(tmp_path / "me_own") == OWN
    assert run(capsys, "me/model", "--repo", "model", "--output_dir", tmp_path)[0] == 0
    assert set(found(tmp_path / "me_model")) == {"model.safetensors", "config.json", "tokenizer.json"}


def test_a_download_that_broke_off_goes_on_and_one_of_another_commit_is_refused(
    hub, tmp_path, capsys, monkeypatch
):
    hub.cut = 10_000
    with monkeypatch.context() as once:
        once.setattr(downloading, "_DROPPED", ())  # as if the process had ended there
        with pytest.raises(ConnectionError):
            fetch(DownloadConfig(name="gsm8k", output_dir=tmp_path))
    where = tmp_path / "openai_gsm8k"
    (part,) = where.rglob("*.part")
    assert part.stat().st_size == 10_000
    assert run(capsys, "gsm8k", "--output_dir", tmp_path)[0] == 0
    assert found(where) == PARQUET
    hub.moved = 1
    code, _, err = run(capsys, "gsm8k", "--output_dir", tmp_path)
    assert (code, "remove the directory, or give another --output_dir" in err) == (2, True)


def test_what_is_not_as_the_hub_says_is_not_kept(hub, tmp_path, capsys):
    hub.damaged = True
    for words, name in [(["gsm8k"], "SHA-256"), (["me/own", "--files", "*.md"], "git hash")]:
        code, _, err = run(capsys, *words, "--output_dir", tmp_path)
        assert code == 2 and f"is not the file that it should be, and was not kept: its {name} is" in err
    assert not found(tmp_path)
    hub.damaged = False
    assert run(capsys, "gsm8k", "--output_dir", tmp_path)[0] == 0
    (tmp_path / "openai_gsm8k/main/test/0000.parquet").write_bytes(b"short")
    code, _, err = run(capsys, "gsm8k", "--output_dir", tmp_path)
    assert (
        code == 2
        and "0000.parquet is there and is another file: it has 5 bytes, and should have 5,000" in err
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["gsm8q"],
            "gsm8q is neither a short name, an id of the hub (owner/name) nor a URL; did you mean gsm8k?",
        ),
        (["me/nothing"], "the hub has no dataset me/nothing, or it is private"),
        (["me/own"], "the hub has not converted me/own to parquet; take its own files"),
        (["me/own", "--revision", "v2"], "me/own has no revision v2"),
        (["me/own", "--files", "*.csv"], "me/own has no file like *.csv; it has README.md, data/train.jsonl"),
        (["gsm8k", "--subsets", "mein"], "openai/gsm8k has no subset mein; it has main, socratic"),
        (["gsm8k", "--splits", "val"], "openai/gsm8k has no split val; it has test, train"),
        (["gsm8k", "--subsets", "socratic", "--splits", "test"], "no file of the subsets and splits"),
        (["gsm8k", "--sha256", "0" * 64], "sha256 is for a URL"),
        (["http://x/y", "--sha256", "0"], "must be 64 hexadecimal digits"),
        (["http://x/y", "--splits", "train"], "and this is a URL"),
        (["http://x/"], "http://x/ names no file"),
        (["me/own", "--splits", "train", "--files", "*"], "subsets and splits are of converted data sets"),
    ],
)
def test_mistakes_are_named(hub, tmp_path, capsys, words, message):
    code, _, err = run(capsys, *words, "--output_dir", tmp_path)
    assert (code, message in err) == (2, True), err
    assert not found(tmp_path)


def test_a_hub_that_is_gated_or_out_of_reach_is_told_in_words(hub, tmp_path, capsys, monkeypatch):
    hub.gated = True
    code, _, err = run(capsys, "gsm8k", "--output_dir", tmp_path)
    assert (code, "openai/gsm8k is gated: agree to its terms" in err) == (2, True)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    code, _, err = run(capsys, "gsm8k", "--output_dir", tmp_path)
    assert (code, "the hub cannot be reached for openai/gsm8k" in err) == (2, True)


def test_a_file_that_would_lie_outside_is_refused(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(REPOSITORIES["datasets"], "me/own", {"main": {"../../evil": b"x"}})
    code, _, err = run(capsys, "me/own", "--files", "*", "--output_dir", tmp_path)
    assert (code, "which would lie outside" in err) == (2, True)
    assert not (tmp_path / "evil").exists() and not (tmp_path.parent / "evil").exists()


def test_the_names_of_universal_llm_trainer_are_known():
    names = {"gsm8k", "ai2_arc", "hellaswag", "winogrande", "mmlu", "truthful_qa"}
    assert names <= set(SHORT_NAMES)
    assert SHORT_NAMES["ai2_arc"].subsets == ("ARC-Challenge", "ARC-Easy")


# Files by their URL


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
