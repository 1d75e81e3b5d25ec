"""A server that speaks as much of the hub's API as downloading takes, with two data sets and a model."""

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from tutelage.data.hub import CONVERTED

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
