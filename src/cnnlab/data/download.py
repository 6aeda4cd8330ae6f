"""Download a file: verified, resumed after an interruption, safe for two processes at once."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from cnnlab.data.imageset import Report, no_report
from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.lock import file_lock

_CHUNK = 1 << 18
_TIMEOUT = 30  # seconds without a byte
LIMIT = 1 << 32  # bytes: an endless response must not fill the disk
_STALLED = 120.0  # seconds without progress of the process that we wait for: several timeouts


def download(
    urls: Sequence[str],
    path: Path,
    *,
    md5: str = "",
    sha1: str = "",
    sha256: str = "",
    report: Report = no_report,
    limit: int = LIMIT,
    remedy: str = "name another folder with --data-dir",
) -> None:
    """Download `path` from the first of `urls` that has a file with the right checksum, if one is given.

    md5, sha1, sha256: the expected checksum, at most one of them. limit: largest size in bytes. remedy: what to do if
    `path` cannot be written.

    The bytes go to `path`.part, which a later call continues; only a verified file gets the name `path`. If several
    processes ask for the same file, one downloads it and the others wait; they report this, and give up if nothing
    arrives for two minutes.

    Raise CnnlabError, which says what failed at each address and what to do by hand.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(path, report, progress=_part(path), stalled=_STALLED):
            if not path.exists():
                kind = "sha256" if sha256 else "sha1" if sha1 else "md5"
                _fetch_any(urls, path, kind, sha256 or sha1 or md5, report, limit)
    except OSError as error:
        raise CnnlabError(f"cannot write {path}: {reason(error)}; free some space or {remedy}") from error


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _fetch_any(urls: Sequence[str], path: Path, kind: str, wanted: str, report: Report, limit: int) -> None:
    part = _part(path)
    failures = []
    for url in urls:
        try:
            # An interrupted call may have left a part of another file: then start again.
            for fresh in (False, True):
                if fresh:
                    part.unlink(missing_ok=True)
                continued = part.exists() and part.stat().st_size > 0
                _fetch(url, part, report, limit)
                if not wanted or checksum(part, kind) == wanted:
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
    whole = f" ({kind.upper()} {wanted})" if wanted else ""
    raise CnnlabError(
        f"cannot download {path.name} ({'; '.join(failures)}); check the network and run again (the "
        f"download continues where it stopped), or put the file{whole} into {path.parent} by hand"
    )


def _fetch(url: str, part: Path, report: Report, limit: int) -> None:
    """Append the missing bytes to `part`, or start again if the server cannot continue."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "cnnlab"})  # noqa: S310 - the caller's addresses
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing follows our last byte; the checksum decides
            return
        raise
    with response:
        continued = response.status == 206
        done = start if continued else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else 0
        if total > limit:
            raise _too_large(url, part, f"has {total:,} bytes", limit)
        with part.open("ab" if continued else "wb") as file:
            while chunk := _read(response):
                done += len(chunk)
                if done > limit:
                    raise _too_large(url, part, "does not end", limit)
                file.write(chunk)
                report(f"downloading {part.name.removesuffix('.part')}", done, total)
        if total and done < total:
            raise http.client.IncompleteRead(b"", total - done)


def _too_large(url: str, part: Path, why: str, limit: int) -> CnnlabError:
    return CnnlabError(
        f"cannot download {part.name.removesuffix('.part')}: {url} {why}, and the limit is {limit:,} bytes; put the "
        f"file into {part.parent} by hand"
    )


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_CHUNK)
    except OSError as error:  # an error of the network, not of the disk
        raise http.client.HTTPException(reason(error)) from error


def checksum(path: Path, kind: str) -> str:
    """Return the file's checksum; kind: md5, sha1 or sha256. Only the last protects against an attacker."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
