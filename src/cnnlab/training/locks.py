"""The lock of a run's folder: at most one process trains in it, and others can ask which."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from cnnlab.io.errors import CnnlabError, reason


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock the run's folder `path`, so that no other process trains in it; reading is always allowed.

    The system releases the lock when the process ends, however that happens. Raise CnnlabError if another process holds
    it, or if the folder contains symlinks, through which files would be written elsewhere.
    """
    for folder in (path, path / "tensorboard"):
        for entry in folder.iterdir() if folder.is_dir() else ():
            if entry.is_symlink():
                raise CnnlabError(
                    f"{entry} is a symlink and could point anywhere; replace it with the file or folder itself"
                )
    file = path / ".lock"
    lock = FileLock(file, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        who = ""
        with suppress(OSError, ValueError):
            text = file.read_text(encoding="utf-8").strip()[:200]
            who = f" ({text})" if text and text.isprintable() else ""
        raise CnnlabError(f"{path} is being trained by another process{who}; wait for it, or stop it") from error
    except (OSError, NotImplementedError) as error:
        raise CnnlabError(f"cannot write into {path}: {reason(error)}") from error
    try:
        with suppress(OSError):  # only messages and `lock_pid` need its content
            file.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):  # this process may live on, as in a notebook, and `lock_pid` would take it for training
            file.write_text("", encoding="utf-8")
        lock.release()


def lock_pid(folder: Path) -> int | None:
    """Return the id of the process on this machine that trains in `folder`, according to its lock file, or None.

    This is quick, but the id may have been reused by another process since; `is_locked` is certain.
    """
    with suppress(OSError, ValueError, OverflowError):  # the last: an id that no process can have
        found = re.fullmatch(r"process (\d{1,10}) on (.*)\n", (folder / ".lock").read_text(encoding="utf-8"))
        if found and found[2] == platform.node():
            if os.name == "posix":
                os.kill(int(found[1]), 0)  # raises OSError if there is none
            elif not is_locked(folder):  # on Windows, this signal would stop the process
                return None
            return int(found[1])
    return None


def is_locked(folder: Path) -> bool:
    """Return whether a process trains in `folder`."""
    if not (folder / ".lock").exists():
        return False
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def training_pid(folder: Path) -> int | None:
    """Return the id of the process on this machine that trains in `folder`, or None."""
    return lock_pid(folder) if is_locked(folder) else None
