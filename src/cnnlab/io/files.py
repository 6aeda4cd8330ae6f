"""Write files so that a crash, a full disk or a second process never leaves a half-written one."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cnnlab.io.errors import CnnlabError, reason

_CHECKSUM = "blake2b"
LIMIT = 1 << 24  # bytes of a file that describes a run
_NODE_LIMIT = 1_000_000  # lists and objects in a JSON file: "[[],[],..." takes thirty times its size in memory


def write_atomic(path: Path, content: bytes | str | Iterable[Any], before: Path | None = None) -> None:
    """Write `content` (bytes, text, or pieces of bytes) to a temporary file, flush it, then rename it to `path`.

    Readers see the old content or the new one, never a mixture. If anything fails, the old file stays and the temporary
    file is removed. before: keep the old file under this name, replacing what is there; a process that is killed
    between the two renames leaves `before` and no `path`.

    Raise OSError (no space, read-only, ...).
    """
    # A name that is not UTF-8 becomes an escape, which JSON decodes to the same name.
    content = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    pieces: Iterable[Any] = [content] if isinstance(content, bytes) else content
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    # Not tempfile, whose files are private: these follow the user's umask.
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        if before is not None and path.exists():
            os.replace(path, before)  # noqa: PTH105 - through `os`, where the tests put faults
        os.replace(beside, path)  # noqa: PTH105
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_torn(folder: Path) -> None:
    """Remove the temporary files that a killed process left. No other process may write there meanwhile."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, limit: int = LIMIT) -> dict[str, Any]:
    """Read a JSON object of at most `limit` bytes.

    Raise CnnlabError, naming the file, if it cannot be read or is not a JSON object.
    """
    try:
        content = read_limited(path, limit)
        if content.count(b"[") + content.count(b"{") > _NODE_LIMIT:
            raise ValueError(f"over {_NODE_LIMIT:,} lists and objects")
        value = json.loads(content.decode())
    except FileNotFoundError as error:
        raise CnnlabError(f"cannot read {path}: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise CnnlabError(f"{path} is damaged: not JSON ({reason(error)})") from error
    if not isinstance(value, dict):
        raise CnnlabError(f"{path} is damaged: it should hold a JSON object")
    return value


def read_limited(path: Path, limit: int = LIMIT) -> bytes:
    """Read a regular file of at most `limit` bytes. A pipe is refused, since it would block.

    Raise FileNotFoundError, or CnnlabError, naming the file, if it cannot be read, is not a regular file or is larger.
    """
    try:
        if path.exists() and not path.is_file():
            raise CnnlabError(f"{path} is not a regular file; remove it, or restore it from a copy")
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise CnnlabError(f"cannot read {path}: {reason(error)}") from error
    if len(content) > limit:
        raise CnnlabError(f"{path} is larger than the limit of {limit:,} bytes; restore it from a copy")
    return content


def write_checked(path: Path, value: dict[str, Any]) -> None:
    """Write `value` as JSON with a checksum."""
    write_json(path, {**value, _CHECKSUM: digest(value)})


def read_checked(path: Path) -> dict[str, Any]:
    """Read what `write_checked` wrote, without the checksum.

    Raise CnnlabError, naming the file, if it cannot be read or its checksum is missing or wrong.
    """
    value = read_json(path)
    given = value.pop(_CHECKSUM, None)
    try:
        intact = given == digest_of_json(value)
    except RecursionError as error:
        raise CnnlabError(f"{path} is damaged: {reason(error)}") from error
    if not intact:
        raise CnnlabError(f"{path} is damaged: its checksum is missing or wrong; restore it from a copy")
    return value


def digest(value: Any) -> str:
    """Return a hash of `value` as JSON with sorted keys."""
    return digest_of_json(json.loads(json.dumps(value)))


def digest_of_json(value: Any) -> str:
    """Return `digest` of a value read from JSON, in half the time: its keys are strings already."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def sync_folder(folder: Path) -> None:
    """Flush a folder to the disk."""
    # The rename is durable only once the folder is flushed. Windows cannot open a folder.
    if os.name == "posix":
        # Some network file systems cannot, nor can a user who may only write there. The file itself is safe by now.
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def check_new_csv(path: str | Path) -> None:
    """Raise CnnlabError unless `path` is the name of a new CSV file."""
    if Path(path).suffix.lower() != ".csv":
        raise CnnlabError(f"{path}: the table is saved as CSV; name a file that ends with .csv")
    check_new(Path(path))


def check_new(path: Path) -> None:
    """Raise CnnlabError unless `path` is the name of a new file in a folder that exists."""
    if path.exists():
        raise CnnlabError(f"{path} exists; name another file, or remove it first")
    if not path.parent.is_dir():
        raise CnnlabError(f"the folder {path.parent} does not exist; create it first")


def save_new_csv(path: str | Path, content: str) -> None:
    """Write a table to the new file `path`. Raise CnnlabError if that fails."""
    check_new_csv(path)
    try:
        write_atomic(Path(path), content)
    except OSError as error:
        raise CnnlabError(f"cannot write {path}: {reason(error)}; name another file") from error
