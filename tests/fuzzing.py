"""Bytes that nobody meant, and what must hold whatever they are: see tests/test_fuzz.py.

While a trial runs, Python's own audit events tell what it does: a file that is opened for writing outside its folder, a
program that is started, a connection, a class that is looked up by a pickle are violations, whoever does it.
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

MOST_SECONDS = 10.0  # of the processor, for one input
MOST_MIB = 512  # of memory above what there was before

_WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.utime",
           "os.chown", "shutil.rmtree", "shutil.move", "tempfile.mkstemp", "tempfile.mkdtemp"}  # fmt: skip
_NEVER = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "pickle.find_class",
          "urllib.Request"}  # fmt: skip
_here: list[str] = []  # the folder of the trial that runs
_violations: list[str] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _here:
        return
    if event in _NEVER:
        _violations.append(f"{event} {arguments!r:.200}")
    elif event == "open":
        path, mode, flags = arguments
        writes = any(c in mode for c in "wax+") if isinstance(mode, str) else bool(flags and flags & _WRITE_FLAGS)
        if writes and isinstance(path, str | bytes | os.PathLike):
            _check(event, path)
    elif event in ("os.remove", "os.rmdir") and arguments[1] >= 0:  # as shutil.rmtree does: below an open folder
        below = Path(f"/proc/self/fd/{arguments[1]}")
        if below.exists():  # elsewhere than on Linux it is not known
            _check(event, below.resolve() / os.fsdecode(arguments[0]))
    elif event in _WRITES:
        for path in arguments:
            if isinstance(path, str | bytes | os.PathLike):
                _check(event, path)


_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def _check(event: str, path: Any) -> None:
    where = os.path.realpath(os.fsdecode(path))
    if where not in (os.devnull, _here[0]) and not where.startswith(_here[0] + os.sep):
        _violations.append(f"{event} {where}")


sys.dont_write_bytecode = True  # else importing something late would be a write
sys.addaudithook(_audit)


@dataclass
class Count:
    """What the trials of one parser came to."""

    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0
    mib: float = 0.0


class Trials:
    """Runs a parser on one input after the other, and looks that each ends as it should."""

    def __init__(self) -> None:
        self.counts: dict[str, Count] = {}

    @contextmanager
    def __call__(self, parser: str, folder: Path) -> Iterator[None]:
        """Success or one printable line of CnnlabError; no writes outside `folder`; bounded time and memory."""
        count = self.counts.setdefault(parser, Count())
        count.inputs += 1
        _violations.clear()
        before, began = _memory(reset=True), time.process_time()
        _here.append(os.path.realpath(folder))
        try:
            yield
        except CnnlabError as error:
            count.refused += 1
            text = str(error)
            assert text.isprintable() or re.fullmatch(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]*", text), text
            assert len(text) < 20_000, text[:300]
        finally:
            _here.clear()
        seconds, mib = time.process_time() - began, _memory() - before
        count.seconds, count.mib = max(count.seconds, seconds), max(count.mib, mib)
        assert not _violations, _violations
        assert seconds < MOST_SECONDS, f"{seconds:.1f} s"
        assert mib < MOST_MIB, f"{mib:.0f} MiB"

    def table(self) -> str:
        """For docs/security.md."""
        lines = ["| parser | inputs | refused | longest, seconds | most memory, MiB |", "|---|---:|---:|---:|---:|"]
        for name, c in self.counts.items():
            lines.append(f"| {name} | {c.inputs:,} | {c.refused:,} | {c.seconds:.3f} | {max(c.mib, 0):.0f} |")
        total = sum(c.inputs for c in self.counts.values())
        return "\n".join([*lines, f"| all | {total:,} | {sum(c.refused for c in self.counts.values()):,} | | |"]) + "\n"


def _memory(*, reset: bool = False) -> float:
    """MiB: of this process now, after `reset`; else the most since then."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        name = "VmRSS" if reset else "VmHWM"
        found = re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) / 1024 if found else 0.0
    except OSError:  # not Linux: only time is looked at
        return 0.0


# What one change of bytes is: where (a share of the length), how, and with what.
Change = tuple[float, str, bytes]
_INTERESTING = [b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0",
                b"\1\0\0\0", b"\0" * 8, b"\xff" * 8, b"-1", b"999999999999", b"../", b"\x1b[2J", b"\n", b"\r\n", b'"']  # fmt: skip
changes: st.SearchStrategy[list[Change]] = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["flip", "set", "insert", "delete", "copy", "cut", "repeat"]),
        st.one_of(st.sampled_from(_INTERESTING), st.binary(min_size=1, max_size=6)),
    ),
    min_size=1, max_size=5,
)  # fmt: skip


def changed(content: bytes, made: list[Change]) -> bytes:
    """`content` after these changes."""
    data = bytearray(content)
    for where, how, value in made:
        at = int(where * len(data))
        if how == "flip" and data:
            data[at] ^= 1 << (value[0] % 8)
        elif how == "set":
            data[at : at + len(value)] = value
        elif how == "insert":
            data[at:at] = value
        elif how == "delete":
            del data[at : at + value[0]]
        elif how == "copy":
            data[at:at] = data[at : at + 4 * value[0]]
        elif how == "cut":
            del data[at:]
        else:
            data[at:at] = value * (1 + value[-1] * 4)
    return bytes(data[: 1 << 20])


# Values that a file of JSON may hold where another is expected.
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
edits: st.SearchStrategy[list[tuple[float, str, Any]]] = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["set", "set", "set", "remove", "add", "number", "deep"]),
        plain,
    ),
    min_size=1,
    max_size=3,
)


def edited(value: Any, made: list[tuple[float, str, Any]]) -> Any:
    """A JSON value after these edits, each at some place in it."""
    for where, how, new in made:
        places = list(_places(value))
        if not places:
            return new
        holder, key = places[int(where * len(places))]
        if how == "remove":
            del holder[key]
        elif how == "add" and isinstance(holder[key], dict):
            holder[key][str(new)[:20]] = new
        elif how == "add" and isinstance(holder[key], list):
            holder[key].append(new)
        elif how == "number" and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            holder[key] = -holder[key] if isinstance(new, bool) else holder[key] * 10**6 + 1
        elif how == "deep":
            deep: Any = new
            for _ in range(200 + int(where * 1000)):
                deep = [deep]
            holder[key] = deep
        else:
            holder[key] = new
    return value


def _places(value: Any, depth: int = 8) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        if depth and (not isinstance(inner, list) or len(inner) < 50):
            yield from _places(inner, depth - 1)


def right_png(content: bytes) -> bytes:
    """A PNG file whose chunks have right checksums again, as far as it can be followed."""
    out, at = bytearray(content[:8]), 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        body = content[at + 4 : at + 8 + length]
        out += content[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big")
        at += 12 + length
    return bytes(out + content[at:])


def right_7z(content: bytes) -> bytes:
    """A 7z file with a plain list of members, whose checksums and length fit that list again."""
    if len(content) < 32:
        return content
    place = 32 + int.from_bytes(content[12:20], "little")
    members = content[place:]
    start = content[12:20] + len(members).to_bytes(8, "little") + zlib.crc32(members).to_bytes(4, "little")
    return content[:8] + zlib.crc32(start).to_bytes(4, "little") + start + content[32:]


def right_tar(content: bytes) -> bytes:
    """A tar whose every block that looks like a header has a right checksum."""
    out = bytearray(content)
    for at in range(0, len(out) - 511, 512):
        if out[at + 257 : at + 262] == b"ustar":
            block = bytes(out[at : at + 148]) + b" " * 8 + bytes(out[at + 156 : at + 512])
            out[at + 148 : at + 156] = f"{sum(block):06o}\0 ".encode()
    return bytes(out)
