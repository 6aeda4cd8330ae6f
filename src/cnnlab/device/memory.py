"""The host's memory: free memory, a limit, the peak, and keeping freed memory in the process."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from cnnlab.device import cgroups

# Names of malloc.h for mallopt.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4


def free_memory() -> int | None:
    """Return the bytes that the system and the control groups still allow this process; None if unknown."""
    system = cgroups.find_number(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo"))
    limits = (None if system is None else system * 1024, cgroups.free_memory())
    known = [limit for limit in limits if limit is not None]
    return max(0, min(known)) if known else None


@contextmanager
def limit_memory() -> Iterator[None]:
    """Make an allocation beyond the free memory an error, on Linux.

    Without the limit, Linux promises memory that it does not have and kills the process once it is used. The limit
    applies to all threads and is restored at the end.
    """
    free, used = free_memory(), cgroups.find_number(r"VmData:\s*(\d+) kB", Path("/proc/self/status"))
    if free is None or used is None:
        yield
        return
    import resource  # not on Windows

    before = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [used * 1024 + free, *(limit for limit in before if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


class _Allocator:
    """A switch that makes glibc's allocator keep freed memory while any caller wants that. No effect without glibc."""

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0
        self._libc: Any = None
        if platform.system() == "Linux":
            with suppress(OSError):
                self._libc = ctypes.CDLL(None)
        if not hasattr(self._libc, "mallopt"):
            self._libc = None

    def acquire(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1 and self._libc:
                self._libc.mallopt(_MMAP_MAX, 0)
                self._libc.mallopt(_TRIM_THRESHOLD, -1)  # never

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._libc:
                # The largest of glibc's adaptive thresholds, unless the user has set others.
                self._libc.mallopt(_MMAP_MAX, _user_setting("mmap_max", 65536))
                self._libc.mallopt(_MMAP_THRESHOLD, _user_setting("mmap_threshold", 32 * 2**20))
                self._libc.mallopt(_TRIM_THRESHOLD, _user_setting("trim_threshold", 64 * 2**20))
                self._libc.malloc_trim(0)

    def trim(self) -> None:
        """Give memory that has been freed back to the system."""
        if self._libc:
            self._libc.malloc_trim(0)


def _user_setting(name: str, default: int) -> int:
    """Return glibc's setting of that name in the environment."""
    tunable = re.search(rf"glibc\.malloc\.{name}=(\w+)", os.environ.get("GLIBC_TUNABLES", ""))
    with suppress(ValueError, KeyError):
        return int(tunable[1] if tunable else os.environ[f"MALLOC_{name.upper()}_"], 0)
    return default


_allocator = _Allocator()


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Keep freed memory in the process, where the C library is glibc. May be nested and used by several threads.

    Each step of a training asks for the same buffers again. By default glibc returns large ones to the system, which
    must clear every page anew: up to two thirds of a step on a CPU (docs/log.md). At the end of the outermost use, free
    memory is returned, and the user's thresholds or else the largest adaptive ones of glibc apply. The previous state
    cannot be restored: glibc does not report its thresholds, and stops adapting them once they are set.
    """
    _allocator.acquire()
    try:
        yield
    finally:
        _allocator.release()


class PeakMemory:
    """The peak of memory since this object was created: of tensors on CUDA, otherwise of the whole process."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._reset = device, False
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        gc.collect()
        _allocator.trim()
        with suppress(OSError):  # Linux resets the peak to the present size; other systems cannot
            self._reset = bool(Path("/proc/self/clear_refs").write_text("5"))
        self._before = _peak_resident()

    def bytes(self) -> int | None:
        """Return the peak in bytes; None if the system only knows an earlier, higher one."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        now = _peak_resident()
        return now if now is not None and (self._reset or now != self._before) else None


def _peak_resident() -> int | None:
    """Return the process's peak resident set in bytes; None if the system does not record it."""
    kib = cgroups.find_number(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status"))
    if kib is not None:
        return kib * 1024
    with suppress(ImportError):  # not on Windows
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
    return None
