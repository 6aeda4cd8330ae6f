"""A lock file between processes that reports what it waits for, and gives up on a stalled holder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from cnnlab.io.errors import CnnlabError, reason

_POLL = 0.2  # seconds between two attempts
_STALLED = 600.0  # seconds without any progress of the other process


@contextmanager
def file_lock(
    path: Path, report: Callable[[str, int, int], None], *, progress: Path | None = None, stalled: float = _STALLED
) -> Iterator[None]:
    """Hold the lock file `path`.lock. The system releases it when its holder ends, even if it is killed.

    While another process holds it, report once what this one waits for. progress: a file that the holder writes; give
    up when it has not changed for `stalled` seconds. Without `progress`, wait until the holder ends. Raise
    CnnlabError if the holder stalls; OSError if no lock file can be created.
    """
    lock_path = path.with_name(path.name + ".lock")
    lock_path.touch()  # fail at once where no file can be created: filelock would wait
    lock = FileLock(lock_path)
    deadline, last = time.monotonic() + stalled, _state(progress)
    reported = False
    while True:
        try:
            lock.acquire(timeout=_POLL)
            break
        except Timeout:
            if not reported:
                report(f"waiting for another process that is writing {path.name} (lock: {lock_path})", 0, 0)
            reported = True
        except NotImplementedError as error:
            raise CnnlabError(f"cannot lock {lock_path}: {reason(error)}; name a folder on another disk") from error
        if progress is not None and (state := _state(progress)) != last:
            deadline, last = time.monotonic() + stalled, state
        if progress is not None and time.monotonic() > deadline:
            raise CnnlabError(
                f"another process holds {lock_path} and has written nothing for {stalled:g} seconds; end that process "
                "and run again"
            )
    try:
        yield
    finally:
        lock.release()


def _state(path: Path | None) -> tuple[int, int] | None:
    """Return the size and modification time of the file, or None if it does not exist."""
    try:
        info = path.stat() if path is not None else None
    except OSError:
        return None
    return None if info is None else (info.st_size, info.st_mtime_ns)
