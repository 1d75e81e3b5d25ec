"""Fetch a large file over HTTP, going on where an earlier try ended, and unpack the shards in it."""

import gzip
import http.client
import json
import os
import re
import shutil
import ssl
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path

from tutelage.errors import UserError

ATTEMPTS = 4  # in a row that bring nothing, before giving up
PAUSE = 1.0  # seconds after the first of them, twice as many after each next
_TIMEOUT = 60.0  # seconds without a byte
_BLOCK = 1 << 20
_DROPPED = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)
OnBytes = Callable[[int, int], None]  # bytes here, bytes in all, which is 0 where the server does not say


def download(url: str, path: Path, on_bytes: OnBytes) -> None:
    """Fetch `url` into `path`, unless it is there. What is not whole is called `path`.part, and continued."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    failures = 0
    while True:
        before = _size(part)
        try:
            _fetch(url, part, on_bytes)
            break
        except urllib.error.HTTPError as error:
            if error.code not in (408, 429) and error.code < 500:
                raise UserError(f"{url} cannot be downloaded: {error.code} {error.reason}") from error
            reason = f"{error.code} {error.reason}"
        except _DROPPED as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        failures = 0 if _size(part) > before else failures + 1
        if failures == ATTEMPTS:
            kept = f"; what came, {_size(part):,} bytes, is kept, and the same command goes on from it"
            raise UserError(
                f"{url} cannot be downloaded: {reason}; check the connection, or fetch the file elsewhere "
                f"and put it at {path}{kept if _size(part) else ''}"
            )
        time.sleep(PAUSE * 2 ** max(failures - 1, 0))
    os.replace(part, path)
    _tag_of(part).unlink(missing_ok=True)


def _fetch(url: str, part: Path, on_bytes: OnBytes) -> None:
    """One request for what is missing of `part`; ConnectionError where it ends before the last byte."""
    tag = _tag_of(part).read_text(encoding="utf-8") if _tag_of(part).exists() else ""
    start = _size(part) if tag else 0
    # If-Range: should the file have changed since, the server sends all of the new one.
    headers = {"Range": f"bytes={start}-", "If-Range": tag} if start else {}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing after `start`: all of it is here, or it is another file's
            total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
            if total == str(start):
                return
            part.unlink()
            raise ConnectionError("the file on the server is another one now") from error
        raise
    with response:
        if response.status != 206:
            start = 0
        total = _total(response.headers, start)
        if total is not None:
            _check_room(part.parent, total - start)
        etag = response.headers.get("ETag") or "W/"
        tag = response.headers.get("Last-Modified") or "" if etag.startswith("W/") else etag
        _tag_of(part).write_text(tag, encoding="utf-8")
        with part.open("ab" if start else "wb") as file:
            on_bytes(start, total or 0)
            while block := response.read(_BLOCK):
                file.write(block)
                start += len(block)
                on_bytes(start, total or 0)
    if total is not None and start != total:
        raise ConnectionError(f"the connection ended after {start:,} of {total:,} bytes")


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
    length = headers.get("Content-Length")
    return None if length is None else start + int(length)


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
