"""Writing files so that a crash, a full disk or a second process never leaves a torn one."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from cnnlab.errors import CnnlabError, reason


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `content` beside `path`, flush it to the disk, then rename it over `path`.

    Whoever reads `path` sees the old bytes or the new ones, never a mixture. If anything fails, the old file is
    still there and the temporary one is gone.

    Raises: OSError as the system gives it (no space, read-only, ...).
    """
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # noqa: PTH101 - mkstemp makes files private; these are results to share
        os.replace(name, path)  # noqa: PTH105 - Path.replace would want a Path made for the purpose
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises CnnlabError, naming the file, where it cannot be read or is something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CnnlabError(f"cannot read {path}: {reason(error)}") from error
    except ValueError as error:
        raise CnnlabError(f"{path} is damaged: not JSON ({reason(error)})") from error
    if not isinstance(value, dict):
        raise CnnlabError(f"{path} is damaged: it should hold a JSON object")
    return value


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    # The rename itself is on the disk only once the folder is. Windows cannot open a folder: there it is left out.
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError:  # some network file systems cannot; the file itself is safe by now
            pass
        finally:
            os.close(handle)
