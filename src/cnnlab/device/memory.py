"""The host's memory: how much of it is free, and asking for no more than that."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
# Of a control group: the file with its limit, the one with what it uses, and what of that is given up if need be.
_NAMES = ("memory.max", "memory.current", "inactive_file")
_OLD_NAMES = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def free() -> int | None:
    """Bytes that this process may still have, of the system's and of its control groups'; None where nobody says."""
    system = _number(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo"))
    answers = [] if system is None else [system * 1024]
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, kinds, path = line.split(":", 2)
        if not kinds:
            answers += _left_in_groups(_GROUPS, path, _NAMES)
        elif "memory" in kinds.split(","):
            answers += _left_in_groups(_GROUPS / "memory", path, _OLD_NAMES)
    return max(0, min(answers)) if answers else None


@contextmanager
def limited() -> Iterator[None]:
    """While this holds, asking for more memory than is free is an error, on Linux.

    Else the system promises what it does not have, and kills a process once that is used.
    """
    left, used = free(), _number(r"VmData:\s*(\d+) kB", Path("/proc/self/status"))
    if left is None or used is None:
        yield
        return
    import resource  # Windows has none

    before = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [used * 1024 + left, *(limit for limit in before if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _left_in_groups(root: Path, path: str, names: tuple[str, str, str]) -> Iterator[int]:
    """Of the control group at `path`, and of each that it is in, what is left of its limit."""
    group = root / path.strip("/")
    while True:
        most, used = _number(r"^(\d+)$", group / names[0]), _number(r"^(\d+)$", group / names[1])
        if most is not None and used is not None:  # no limit: "max"
            yield most - used + (_number(rf"^{names[2]} (\d+)$", group / "memory.stat") or 0)
        if group == root or ".." in group.parts:
            return
        group = group.parent


def _number(pattern: str, path: Path) -> int | None:
    found = re.search(pattern, _text(path), re.MULTILINE)
    return int(found[1]) if found else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
