"""Downloading one file: verified, continued after an interruption, safe for two processes at once."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from cnnlab.data.imageset import Report, no_report
from cnnlab.io.errors import CnnlabError, reason

_CHUNK = 1 << 18
_TIMEOUT = 30  # seconds without a byte
_LARGEST = 1 << 30  # bytes: a server that never ends must not fill the disk


def download(urls: Sequence[str], path: Path, *, md5: str = "", sha1: str = "", report: Report = no_report) -> None:
    """Fetch `path` from the first of `urls` that gives a file with the right `md5`, or the right `sha1`.

    The bytes go to `path` + `.part`, which a later call continues where this one was stopped; only a verified file
    gets the name `path`. Of several processes one downloads while the others wait, then find it done.

    Raises: CnnlabError with one line that says what failed at each address and what to do by hand.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(path) + ".lock"):
            if not path.exists():
                _fetch_any(urls, path, "sha1" if sha1 else "md5", sha1 or md5, report)
    except OSError as error:
        raise CnnlabError(
            f"cannot write {path}: {reason(error)}; free some space or name another folder with --data-dir"
        ) from error


def _fetch_any(urls: Sequence[str], path: Path, kind: str, wanted: str, report: Report) -> None:
    part = path.with_name(path.name + ".part")
    failures = []
    for url in urls:
        try:
            # What an earlier, interrupted call left may be of another file: then it is fetched from the start.
            for fresh in (False, True):
                if fresh:
                    part.unlink(missing_ok=True)
                continued = part.exists() and part.stat().st_size > 0
                _fetch(url, part, report)
                if checksum(part, kind) == wanted:
                    os.replace(part, path)  # noqa: PTH105
                    return
                if not continued:
                    break
            size = part.stat().st_size
            part.unlink()
            failures.append(f"{url}: wrong checksum ({size} bytes)")
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
            why = error.reason if isinstance(error, urllib.error.URLError) else error
            failures.append(f"{url}: {reason(why) if isinstance(why, BaseException) else why}")
    raise CnnlabError(
        f"cannot download {path.name} ({'; '.join(failures)}); check the network and run again (what has arrived is "
        f"kept), or put the file ({kind.upper()} {wanted}) into {path.parent} by hand"
    )


def _fetch(url: str, part: Path, report: Report) -> None:
    """Append to `part` what it lacks, or start again where the server cannot continue."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "cnnlab"})  # noqa: S310 - the caller's addresses
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing lies behind our last byte: the checksum will judge it
            return
        raise
    with response:
        continued = response.status == 206
        done = start if continued else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else 0
        with part.open("ab" if continued else "wb") as file:
            while chunk := _read(response):
                done += len(chunk)
                if done > _LARGEST:
                    raise http.client.HTTPException(f"more than {_LARGEST:,} bytes")
                file.write(chunk)
                report(f"downloading {part.name.removesuffix('.part')}", done, total)
        if total and done < total:
            raise http.client.IncompleteRead(b"", total - done)


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_CHUNK)
    except OSError as error:  # the network's trouble, not the disk's
        raise http.client.HTTPException(reason(error)) from error


def checksum(path: Path, kind: str) -> str:
    """The file's sum, as the publishers give it; kind: md5 or sha1. It guards against damage, not against an enemy."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
