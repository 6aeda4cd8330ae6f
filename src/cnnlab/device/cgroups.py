"""Limits of this process: its cores, and the control groups by which Linux containers limit memory and CPU."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def available_cores() -> int:
    """Return the number of CPU cores that this process may use, given its affinity and its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, cpu_quota() or cores)


def cpu_quota() -> int | None:
    """Return the number of cores that the control groups allow, rounded up; None without a limit."""
    quotas = []
    for version, group in _groups("cpu"):
        if version == 2:
            quota, _, period = read_text(group / "cpu.max").partition(" ")
        else:
            quota, period = (read_text(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota.strip().isdecimal() and period.strip().isdecimal() and int(period) > 0:  # no limit: "max" or -1
            quotas.append(max(1, math.ceil(int(quota) / int(period))))
    return min(quotas, default=None)


def free_memory() -> int | None:
    """Return the bytes that the control groups still allow; None without a limit."""
    free = []
    for version, group in _groups("memory"):
        limit, usage, inactive = (
            ("memory.max", "memory.current", "inactive_file")
            if version == 2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        )
        most, used = find_number(r"^(\d+)$", group / limit), find_number(r"^(\d+)$", group / usage)
        if most is not None and used is not None:
            # The kernel drops cached files before it refuses memory.
            free.append(most - used + (find_number(rf"^{inactive} (\d+)$", group / "memory.stat") or 0))
    return min(free, default=None)


def _groups(controller: str) -> Iterator[tuple[int, Path]]:
    """Yield (cgroup version, folder) of the process's own group and of each group above it."""
    for line in read_text(OWN_GROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            version, root = 2, ROOT
        elif controller in controllers.split(","):
            version, root = 1, ROOT / controller
        else:
            continue
        group = root / path.strip("/")
        if ".." in group.parts:  # above what is mounted here
            group = root
        yield version, group
        while group != root:
            group = group.parent
            yield version, group


def find_number(pattern: str, path: Path) -> int | None:
    """Return the first group of `pattern` in a file as an int; None without a match or a readable file."""
    match = re.search(pattern, read_text(path), re.MULTILINE)
    return int(match[1]) if match else None


def read_text(path: Path) -> str:
    """Return the text of a system file, empty if it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
