"""Files with one JSON object per line, each with a checksum: metrics.jsonl, evaluations.jsonl."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.files import digest, digest_of_json, read_limited

_LIMIT = 1 << 26  # bytes of such a file


def as_line(row: dict[str, Any]) -> str:
    """Return the line of `row`, with its checksum under the key `check`."""
    return json.dumps({**row, "check": digest(row)[:16]}) + "\n"


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Add a line to the file, after one that a crash left incomplete. Raise OSError or CnnlabError."""
    content = read_limited(path, _LIMIT) if path.exists() else b""
    torn = bool(content) and not content.endswith(b"\n")
    # Not through a symlink: the folder may come from anyone, and the symlink may lead anywhere.
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    with os.fdopen(handle, "a", encoding="utf-8") as file:
        file.write("\n" * torn + as_line(row))


def read_lines(path: Path, *, skip_damaged: bool = False) -> list[dict[str, Any]]:
    """Return the rows of the file, none if it does not exist. Raise CnnlabError if it is damaged.

    skip_damaged: ignore damaged lines.
    """
    rows = []
    try:
        content = read_limited(path, _LIMIT).decode(errors="replace" if skip_damaged else "strict")
        for text in content.splitlines():
            try:
                rows.append(_row(text))
            except (ValueError, RecursionError) as error:
                if not skip_damaged:
                    raise ValueError(reason(error, 200)) from error
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise CnnlabError(f"{path} is damaged: {reason(error)}") from error
    return rows


def _row(text: str) -> dict[str, Any]:
    """Return the row of a line of `as_line`. Raise ValueError."""
    row = json.loads(text)
    if not isinstance(row, dict) or row.pop("check", None) != digest_of_json(row)[:16]:
        raise ValueError("the checksum of a line is wrong")
    return row
