"""Which process trains in a run's folder: `cnnlab.training.runs.locked` writes its number into the lock file."""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout


def holder(folder: Path) -> int | None:
    """Return the process of this machine that trains in `folder`, according to its lock file; None without one.

    Quick, but the number may have been given to another process since; `is_locked` is certain.
    """
    with suppress(OSError, ValueError, OverflowError):  # the last: a number that no process can have
        found = re.fullmatch(r"process (\d{1,10}) on (.*)\n", (folder / ".lock").read_text(encoding="utf-8"))
        if found and found[2] == platform.node():
            if os.name == "posix":
                os.kill(int(found[1]), 0)  # raises OSError if there is none
            elif not is_locked(folder):  # elsewhere, this signal would stop it
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


def trainer(folder: Path) -> int | None:
    """Return the process of this machine that trains in `folder`, or None."""
    return holder(folder) if is_locked(folder) else None
