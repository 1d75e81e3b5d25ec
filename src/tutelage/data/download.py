"""Fetch a large file over HTTP, going on where an earlier try ended, and unpack the shards in it."""

import email.utils
import gzip
import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO

from tutelage.errors import UserError

ATTEMPTS = 4  # in a row that bring nothing, before giving up
PAUSE = 1.0  # seconds after the first of them, twice as many after each next
PATIENCE = 600.0  # seconds, the most that a server's "later" is waited for
_TIMEOUT = 60.0  # seconds without a byte
_BLOCK = 1 << 20
_DROPPED = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)
OnBytes = Callable[[int, int], None]  # bytes here, bytes in all, which is 0 where the server does not say


@dataclass(frozen=True, slots=True)
class Expected:
    """What is known of a file before it comes; hexadecimal digests."""

    size: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None  # of the blob that git keeps: a few words and the content

    def fault(self, path: Path) -> str | None:
        """In which way a file is another one, or None."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return f"it has {size:,} bytes, and should have {self.size:,}"
        for name, wanted, digest, start in (
            ("SHA-256", self.sha256, hashlib.sha256(), b""),
            ("git hash", self.git_sha1, hashlib.sha1(), f"blob {size}\0".encode()),
        ):
            if wanted is None:
                continue
            digest.update(start)
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
            if digest.hexdigest() != wanted.lower():
                return f"its {name} is {digest.hexdigest()}, and should be {wanted}"
        return None


def download(
    url: str,
    path: Path,
    on_bytes: OnBytes,
    *,
    expected: Expected | None = None,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Fetch `url` into `path`, unless it is there. What is not whole is called `path`.part, and continued.

    A file that is not as `expected`, there or fetched, is refused; nothing of it is called `path`."""
    expected = expected or Expected()
    if path.exists():
        if fault := expected.fault(path):
            raise UserError(f"{path} is there and is another file: {fault}; remove it to download it anew")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    failures = 0
    while True:
        before, wait = _size(part), 0.0
        try:
            _fetch(url, part, on_bytes, headers or {})
            break
        except urllib.error.HTTPError as error:
            if error.code not in (408, 429) and error.code < 500:
                raise UserError(
                    f"{url} cannot be downloaded: {error.code} {error.reason}{_why(error.code)}"
                ) from error
            reason = f"{error.code} {error.reason}"
            wait = _asked_to_wait(error.headers)
            if wait > PATIENCE:
                raise UserError(
                    f"{url} cannot be downloaded now: {reason}; the server wants to be asked again in "
                    f"{wait:,.0f} seconds"
                ) from error
        except _DROPPED as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        failures = 0 if _size(part) > before else failures + 1
        if failures == ATTEMPTS:
            kept = f"; what came, {_size(part):,} bytes, is kept, and the same command goes on from it"
            raise UserError(
                f"{url} cannot be downloaded: {reason}; check the connection, or fetch the file elsewhere "
                f"and put it at {path}{kept if _size(part) else ''}"
            )
        time.sleep(max(wait, PAUSE * 2 ** max(failures - 1, 0)))
    fault = expected.fault(part)
    _tag_of(part).unlink(missing_ok=True)
    if fault:
        part.unlink()
        raise UserError(f"{url} is not the file that it should be, and was not kept: {fault}")
    os.replace(part, path)


def _asked_to_wait(headers: Message) -> float:
    """Seconds, from Retry-After: a number, or a date; 0 where there is neither."""
    said = (headers.get("Retry-After") or "").strip()
    if said.isdecimal():
        return float(said)
    try:
        return max(email.utils.parsedate_to_datetime(said).timestamp() - time.time(), 0.0)
    except ValueError:
        return 0.0


def _why(code: int) -> str:
    remedies = {401: "it wants a token: set HF_TOKEN", 403: "you may have to agree to its terms first"}
    return f"; {remedies[code]}" if code in remedies else ""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to other hosts without the token, which is meant for the first one only."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if (
            new is not None
            and urllib.parse.urlsplit(newurl).netloc != urllib.parse.urlsplit(req.full_url).netloc
        ):
            new.remove_header("Authorization")
        return new


def _fetch(url: str, part: Path, on_bytes: OnBytes, more: Mapping[str, str]) -> None:
    """One request for what is missing of `part`; ConnectionError where it ends before the last byte."""
    tag = _tag_of(part).read_text(encoding="utf-8") if _tag_of(part).exists() else ""
    start = _size(part) if tag else 0
    # If-Range: should the file have changed since, the server sends all of the new one.
    headers = {**more, **({"Range": f"bytes={start}-", "If-Range": tag} if start else {})}
    try:
        opener = urllib.request.build_opener(_Redirects)
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing after `start`: all of it is here, or it is another file's
            total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
            if total == str(start) and _is_same(error.headers, tag):
                return
            _drop(part)
            raise ConnectionError("the file on the server is another one now") from error
        raise
    with response:
        if response.status == 206:
            _check_continues(response.headers, part, start, tag)
        else:
            start = 0
        total = _total(response.headers, start)
        if total is not None:
            _check_room(part.parent, total - start)
        if not start:
            etag = response.headers.get("ETag") or "W/"
            tag = response.headers.get("Last-Modified") or "" if etag.startswith("W/") else etag
            _tag_of(part).write_text(tag, encoding="utf-8")
        with part.open("ab" if start else "wb") as file:
            on_bytes(start, total or 0)
            while block := response.read(_BLOCK):
                file.write(block)
                start += len(block)
                on_bytes(start, total or 0)
    if total is not None and start > total:
        _drop(part)
        raise ConnectionError(f"{start:,} bytes came of {total:,}")
    if total is not None and start != total:
        raise ConnectionError(f"the connection ended after {start:,} of {total:,} bytes")


def _check_continues(headers: http.client.HTTPMessage, part: Path, start: int, tag: str) -> None:
    """Drop what came so far, and say so, where a server sends on from elsewhere, or of another file."""
    said = headers.get("Content-Range") or ""
    if not re.fullmatch(rf"bytes {start}-\d+/(\d+|\*)", said.strip()) or not _is_same(headers, tag):
        _drop(part)
        raise ConnectionError(
            f"bytes from {start:,} on were asked for, and the server sent {said or 'others'}"
            + ("" if _is_same(headers, tag) else " of another file")
        )


def _is_same(headers: Message, tag: str) -> bool:
    """Whether an answer is about the file of this tag. RFC 9110 lets it leave out the tag that we sent."""
    said = headers.get("ETag" if tag.startswith('"') else "Last-Modified")
    return not tag or said is None or said == tag


def _drop(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag_of(part).unlink(missing_ok=True)


def unpack(archive: Path, directory: Path, wanted: re.Pattern[str], on_bytes: OnBytes) -> list[Path]:
    """The files of a tar archive whose names are `wanted`, in `directory`; those there are left alone."""
    directory.mkdir(parents=True, exist_ok=True)
    found = []
    try:
        with archive.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:*") as tar:
            for member in tar:
                tarfile.data_filter(member, str(directory))  # refuses links, devices and paths that lead out
                path = directory / Path(member.name).name
                if member.isfile() and wanted.fullmatch(path.name):
                    if _size(path) != member.size:
                        _extract(tar, member, path)
                    found.append(path)
                on_bytes(raw.tell(), archive.stat().st_size)
    except tarfile.FilterError as error:
        raise UserError(f"{archive} is not what it should be, and was not unpacked: {error}") from error
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{archive} is damaged ({error}); remove it and download it anew") from error
    if not found:
        raise UserError(f"{archive} holds no files called {wanted.pattern}; is it another archive?")
    return sorted(found)


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    content = tar.extractfile(member)
    assert content is not None
    _check_room(path.parent, member.size)
    partial = path.with_name(path.name + ".partial")
    with content, partial.open("wb") as file:
        shutil.copyfileobj(content, file, _BLOCK)
    os.replace(partial, path)


def remember(paths: list[Path], record: Path) -> None:
    """Write down that these files are whole."""
    record.write_text(json.dumps({path.name: path.stat().st_size for path in paths}), encoding="utf-8")


def recall(record: Path) -> list[Path]:
    """The files that `record` says are whole, if all of them still are; else none."""
    if not record.exists():
        return []
    sizes = json.loads(record.read_text(encoding="utf-8"))
    paths = [record.parent / name for name in sizes]
    return paths if all(_size(path) == sizes[path.name] for path in paths) else []


def _total(headers: http.client.HTTPMessage, start: int) -> int | None:
    """Bytes of the whole file, from Content-Range or from Content-Length."""
    whole = (headers.get("Content-Range") or "").rpartition("/")[2]
    if whole.isdecimal():
        return int(whole)
    length = (headers.get("Content-Length") or "").strip()
    return start + int(length) if length.isdecimal() else None


def _check_room(directory: Path, size: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < size:
        raise UserError(
            f"{directory}: {size / 1e9:.2f} GB more are needed, the disk has {free / 1e9:.2f} left"
        )


def _tag_of(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
