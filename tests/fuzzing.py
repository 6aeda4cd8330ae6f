"""Generated inputs for tests/test_fuzz.py, and the properties that are checked for each of them.

Python's audit events report what a parser does. Writing outside its folder, starting a program, connecting, and loading
a class from a pickle are violations.
"""

from __future__ import annotations

import os
import re
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from cnnlab.io.errors import CnnlabError

MOST_SECONDS = 10.0  # CPU seconds for one input
MOST_MIB = 512  # memory for one input

_WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.utime",
           "os.chown", "shutil.rmtree", "shutil.move", "tempfile.mkstemp", "tempfile.mkdtemp"}  # fmt: skip
_NEVER = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "pickle.find_class",
          "urllib.Request"}  # fmt: skip
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_folder: list[str] = []  # the folder of the running trial
_violations: list[str] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _folder:
        return
    paths: tuple[Any, ...] = ()
    if event in _NEVER:
        _violations.append(f"{event} {arguments!r:.200}")
    elif event == "open":
        path, mode, flags = arguments
        writes = any(c in mode for c in "wax+") if isinstance(mode, str) else bool(flags and flags & _WRITE_FLAGS)
        paths = (path,) if writes else ()
    elif event in ("os.remove", "os.rmdir") and arguments[1] >= 0:  # from shutil.rmtree: relative to an open folder
        below = Path(f"/proc/self/fd/{arguments[1]}")
        paths = (below.resolve() / os.fsdecode(arguments[0]),) if below.exists() else ()
    elif event in _WRITES:
        paths = arguments
    for path in paths:
        if isinstance(path, str | bytes | os.PathLike):
            place = os.path.realpath(os.fsdecode(path))
            if place not in (os.devnull, _folder[0]) and not place.startswith(_folder[0] + os.sep):
                _violations.append(f"{event} {place}")


sys.dont_write_bytecode = True  # otherwise a late import would write
sys.addaudithook(_audit)


@dataclass
class Count:
    """The trials of one parser. inputs: how many; refused: how many of them; seconds, mib: the most for one input."""

    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0
    mib: float = 0.0


class Trials:
    """Trials of parsers, with a check of how each one ends."""

    def __init__(self) -> None:
        self.counts: dict[str, Count] = {}

    @contextmanager
    def __call__(self, parser: str, folder: Path) -> Iterator[None]:
        """Check a trial: success or a one-line CnnlabError, no writes outside `folder`, bounded time and memory."""
        count = self.counts.setdefault(parser, Count())
        count.inputs += 1
        _violations.clear()
        memory, start = _memory(reset=True), time.process_time()
        _folder.append(os.path.realpath(folder))
        try:
            yield
        except CnnlabError as error:
            count.refused += 1
            assert re.fullmatch(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{1,20000}", str(error)), str(error)
        finally:
            _folder.clear()
        seconds, mib = time.process_time() - start, _memory() - memory
        count.seconds, count.mib = max(count.seconds, seconds), max(count.mib, mib)
        assert not _violations, _violations
        assert seconds < MOST_SECONDS
        assert mib < MOST_MIB

    def table(self) -> str:
        """Return the table of docs/security.md."""
        lines = ["| parser | inputs | refused | longest, seconds | most memory, MiB |", "|---|---:|---:|---:|---:|"]
        for name, c in self.counts.items():
            lines.append(f"| {name} | {c.inputs:,} | {c.refused:,} | {c.seconds:.3f} | {max(c.mib, 0):.0f} |")
        total = sum(c.inputs for c in self.counts.values())
        return "\n".join([*lines, f"| all | {total:,} | {sum(c.refused for c in self.counts.values()):,} | | |"]) + "\n"


def _memory(*, reset: bool = False) -> float:
    """Return the memory of this process in MiB: with `reset`, now; else the peak since. Return 0 outside Linux."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        name = "VmRSS" if reset else "VmHWM"
        found = re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) / 1024 if found else 0.0
    except OSError:
        return 0.0


# Changes of bytes: where (as a fraction of the length), how, and with what.
_BYTES = [b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0",
          b"\1\0\0\0", b"\0" * 8, b"\xff" * 8, b"-1", b"999999999999", b"../", b"\x1b[2J", b"\n", b"\r\n", b'"']  # fmt: skip
changes: st.SearchStrategy[list[Any]] = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["flip", "set", "insert", "delete", "copy", "cut"]),
        st.one_of(st.sampled_from(_BYTES), st.binary(min_size=1, max_size=6)),
    ),
    min_size=1, max_size=5,
)  # fmt: skip


def changed(content: bytes, drawn: list[Any]) -> bytes:
    """Return `content` after these changes."""
    data = bytearray(content)
    for where, how, value in drawn:
        at = int(where * len(data))
        if how == "flip" and data:
            data[at] ^= 1 << (value[0] % 8)
        elif how == "set":
            data[at : at + len(value)] = value
        elif how == "insert":
            data[at:at] = value * (1 + value[-1] // 64)
        elif how == "delete":
            del data[at : at + value[0]]
        elif how == "copy":
            data[at:at] = data[at : at + 4 * value[0]]
        else:
            del data[at:]
    return bytes(data)


# Values that replace those of a JSON file.
plain: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-3, 3), st.integers(), st.floats(), st.text(max_size=20),
        st.sampled_from([2**31, 2**53, 2**63, 2**64, 10**30, 10**400, -(2**63), 1e-300, 1e300, float("nan"), float("inf"),
                         "", "\x1b[2J\x9b1m", "\u202eevil", "../../x", "con", "=1+1", "<b>&|`", "a\nb", "x" * 5000,
                         "folder:", "store:/dev/null", "timm:x", "validation", "test", "train", "cpu", "\ud800"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)  # fmt: skip
edits: st.SearchStrategy[list[Any]] = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True), st.sampled_from(["set", "set", "set", "remove", "add", "large", "deep"]), plain
    ),
    min_size=1, max_size=3,
)  # fmt: skip


def edited(value: Any, drawn: list[Any]) -> Any:
    """Return a JSON value after these edits at random places."""
    for where, how, new in drawn:
        places = list(_places(value))
        if not places:
            return new
        holder, key = places[int(where * len(places))]
        old = holder[key]
        if how == "remove":
            del holder[key]
        elif how == "add" and isinstance(old, dict):
            old[str(new)[:20]] = new
        elif how == "add" and isinstance(old, list):
            old.append(new)
        elif how == "large" and isinstance(old, int | float):
            holder[key] = old * -(10**6) + 1
        elif how == "deep":
            for _ in range(200 + int(where * 1000)):
                new = [new]
            holder[key] = new
        else:
            holder[key] = new
    return value


def _places(value: Any, depth: int = 8) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        if depth and (not isinstance(inner, list) or len(inner) < 50):
            yield from _places(inner, depth - 1)


def correct_png(content: bytes) -> bytes:
    """Correct the checksums of a PNG file's chunks, as far as they can be parsed."""
    out, at = bytearray(content[:8]), 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        body = content[at + 4 : at + 8 + length]
        out += content[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big")
        at += 12 + length
    return bytes(out + content[at:])


def correct_7z(content: bytes) -> bytes:
    """Correct the checksums and the length in a 7z file whose member list is not compressed."""
    if len(content) < 32:
        return content
    members = content[32 + int.from_bytes(content[12:20], "little") :]
    start = content[12:20] + len(members).to_bytes(8, "little") + zlib.crc32(members).to_bytes(4, "little")
    return content[:8] + zlib.crc32(start).to_bytes(4, "little") + start + content[32:]


def correct_tar(content: bytes) -> bytes:
    """Correct the checksum of every tar block that looks like a header."""
    out = bytearray(content)
    for at in range(0, len(out) - 511, 512):
        if out[at + 257 : at + 262] == b"ustar":
            block = bytes(out[at : at + 148]) + b" " * 8 + bytes(out[at + 156 : at + 512])
            out[at + 148 : at + 156] = f"{sum(block):06o}\0 ".encode()
    return bytes(out)
