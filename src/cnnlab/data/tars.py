"""A tar read from front to back, as a stream, in bounded memory: names and sizes of plain files, and their bytes.

Written here, since the standard library's reader believes what a header says: one that describes another header is
followed by a call of itself, its size is taken from the file, what a global one says is kept for good, and a sparse
file's map may go on for ever, so that some kilobytes of gzip ask for gigabytes of memory. What images are packed with
needs none of that: the formats of 1988 (ustar), GNU's long names, and the paths and sizes of POSIX's extended headers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

_BLOCK = 512
_CHUNK = 1 << 18
_LONGEST_NAME, _LONGEST_HEADER = 1 << 16, 1 << 20  # bytes of GNU's long name, of an extended header
_MOST_HEADERS = 8  # before one file
_KINDS = {b"\0": "", b"0": "", b"7": "", b"1": "a link", b"2": "a link", b"S": "a sparse file"}


class Torn(Exception):
    """What should be a tar is none, or not a whole one."""


@dataclass(frozen=True)
class Entry:
    """What one header says. kind: what it is, if it is no plain file; overhead: bytes of its headers."""

    name: str
    size: int
    kind: str
    overhead: int


class TarStream:
    """The entries of a tar; `read` gives the bytes of the one that came last.

    jumps: may what nobody reads be jumped over? Raises: Torn, and whatever the stream does.
    """

    def __init__(self, stream: IO[bytes], *, jumps: bool = False) -> None:
        self._stream, self._jumps = stream, jumps
        self._left = self._padding = 0  # of the last entry's data, what has not been read; and what follows that

    def __iter__(self) -> Iterator[Entry]:
        name, size, overhead, headers = "", -1, 0, 0
        while True:
            self._pass_over()
            block = self._exactly(_BLOCK)
            if block.count(0) == _BLOCK:
                return
            overhead += _BLOCK
            kind, length = _checked(block), _number(block[124:136])
            if kind in b"LKxXg":
                headers += 1
                if headers > _MOST_HEADERS:
                    raise Torn("headers of headers")
                content = self._header(length, _LONGEST_NAME if kind in b"LK" else _LONGEST_HEADER)
                overhead += len(content)
                if kind == b"L":
                    name = _text(content)
                elif kind in b"xX":
                    path, own_size = _extended(content)
                    name, size = path or name, own_size if own_size >= 0 else size
                continue
            name, size = name or _name(block), size if size >= 0 else length
            self._left, self._padding = size, -size % _BLOCK
            if kind == b"5" or (kind == b"\0" and name.endswith("/")):
                what = "a folder"
            else:
                what = _KINDS.get(kind, "a device")
            yield Entry(name, size, what, overhead)
            name, size, overhead, headers = "", -1, 0, 0

    def read(self, most: int) -> bytes:
        """The last entry's bytes, at most so many."""
        content = self._exactly(min(most, self._left))
        self._left -= len(content)
        return content

    def _header(self, length: int, most: int) -> bytes:
        if length > most:
            raise Torn(f"a header of {length:,} bytes")
        return self._exactly(length + -length % _BLOCK)[:length]

    def _pass_over(self) -> None:
        left = self._left + self._padding
        if self._jumps and left > _CHUNK:  # the last byte is read, so that a file that ends early is told
            self._stream.seek(left - 1, 1)
            left = 1
        while left:
            left -= len(self._exactly(min(left, _CHUNK)))
        self._left = self._padding = 0

    def _exactly(self, count: int) -> bytes:
        content = self._stream.read(count)
        if len(content) < count:
            raise Torn("it ends early")
        return content


def _checked(block: bytes) -> bytes:
    """The kind of entry, a letter, of a header whose checksum is right."""
    plain = block[:148] + b" " * 8 + block[156:]
    given = _number(block[148:156])
    if given not in (sum(plain), sum(b - 256 if b > 127 else b for b in plain)):  # some count signed bytes
        raise Torn("no tar header where one should be")
    return block[156:157]


def _number(field: bytes) -> int:
    """A size: octal digits, or, where it is too large for them, bytes."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    if digits.strip(b"01234567"):
        raise Torn("a number in a header is none")
    return int(digits or b"0", 8)


def _name(block: bytes) -> str:
    name, prefix = _text(block[:100]), _text(block[345:500])
    return f"{prefix}/{name}" if prefix and block[257:263] == b"ustar\0" else name


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _extended(content: bytes) -> tuple[str, int]:
    """Path and size that a POSIX header gives the file after it; "" and -1 where it does not.

    A record: its own length in digits, a space, KEY=VALUE, a line end.
    """
    path, size, at = "", -1, 0
    while at < len(content) and content[at]:
        digits = content[at : at + 8].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        record = content[at : at + length]
        if length < len(digits) + 4 or not record.endswith(b"\n"):
            raise Torn("an extended header is damaged")
        key, _, value = record[len(digits) + 1 : -1].partition(b"=")
        if key.startswith(b"GNU.sparse"):
            raise Torn("a sparse file; pack the images themselves")
        if key == b"path":
            path = _text(value)
        elif key == b"size":
            if not value.isdigit() or len(value) > 20:
                raise Torn("an extended header is damaged")
            size = int(value)
        at += length
    return path, size
