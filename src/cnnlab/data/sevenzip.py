"""The images in a 7z archive, unpacked by py7zr in bounded memory."""

from __future__ import annotations

import io
import stat
import zlib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cnnlab.data.archives import MOST_MEMBERS, Archive, encrypted, shown, unread
from cnnlab.io.errors import CnnlabError

_BLOCK, _SIP = 1 << 18, 1 << 16
# What py7zr unpacks without a bound on memory.
_UNBOUNDED = {"DEFLATE", "DEFLATE64", "ZStandard"}
# The list of members takes some fifty bytes for each, and of a hostile one py7zr may make 600 bytes of memory for each
# of these: so it must be short beside the archive, unless it is that of some two thousand members (80 MB at most).
_HEADER_LEAST, _HEADER_SHARE = 1 << 17, 4
_COPY, _LZMA, _LZMA2, _AES = b"\0", b"\3\1\1", b"\x21", b"\6\xf1\7\1"


class SevenZip(Archive):
    """The images of a 7z archive."""

    def __init__(self, path: Path, label: str) -> None:
        super().__init__(label, path.stat().st_size)
        try:
            import py7zr
        except ImportError as error:
            raise CnnlabError(
                f"{label} needs the package py7zr: pip install 'cnnlab[kaggle]', or unpack it and give the folder"
            ) from error
        try:
            py7zr.archiveinfo.MAX_NUMFILES = MOST_MEMBERS  # it allows four times as many
            _check_header(path, label)
            self._seven = py7zr.SevenZipFile(path)
            locked = self._seven.needs_password()
        except CnnlabError:
            raise
        except py7zr.PasswordRequired as error:
            raise encrypted(label) from error
        except Exception as error:  # a damaged header makes it raise nearly anything
            raise self._damaged(error) from error
        self._plan: list[_Solid] = []
        try:
            if locked:
                raise encrypted(label)
            if self._seven.files and _UNBOUNDED.intersection(self._seven.archiveinfo().method_names):
                raise unread(label, label)
            self._list()
        except BaseException as error:
            self._seven.close()
            if isinstance(error, CnnlabError) or not isinstance(error, Exception):
                raise
            raise self._damaged(error) from error  # parts of a header may be missing

    def _list(self) -> None:
        starts: dict[int, int] = {}
        if streams := getattr(self._seven.header, "main_streams", None):
            starts = {id(f): streams.packinfo.packpositions[i] for i, f in enumerate(streams.unpackinfo.folders)}
        for file in self._seven.files:
            if file.is_directory:
                continue
            kind, link = file.st_fmt or stat.S_IFREG, file.is_symlink or file.is_junction
            if link or kind != stat.S_IFREG:
                raise self._refuse(file.filename, "a link" if link else "a device")
            size = file.uncompressed or 0
            if size < 0:  # the last of a stream is what the others' sizes leave of it
                raise self._damaged(f"{shown(file.filename)} has a negative size")
            index = len(self.members) - 1 if self._admit(file.filename, size) else -1
            folder = None if file.emptystream else file.folder
            if folder is None or not self._plan or self._plan[-1].folder is not folder:
                start = self._seven.afterheader + starts.get(id(folder), 0)
                self._plan.append(_Solid(folder, start, file.compressed or 0, []))
            self._plan[-1].files.append((index, size, file.crc32))
        # py7zr's own list is of no more use, and holds 0.6 KiB for each file.
        self._seven.files.files_list.clear()
        if self._plan:
            self._seven.header.files_info.files.clear()
        for solid in self._plan:
            if solid.folder:
                solid.folder.files = None

    def read(self, wanted: Container[int] | None = None) -> Iterator[tuple[int, bytes]]:
        """As Archive says."""
        # py7zr's own loop costs half as much again as the unpacking: hence this one, around its decompressor.
        for solid in self._plan:
            blocks = self._blocks(solid)
            block, at = b"", 0
            for index, size, crc in solid.files:
                keep = index >= 0 and (wanted is None or index in wanted)
                pieces, left = [], size
                while left:
                    if at == len(block):
                        block, at = next(blocks), 0
                    piece = block[at : at + left]
                    at, left = at + len(piece), left - len(piece)
                    if keep:
                        pieces.append(piece)
                if keep:
                    content = b"".join(pieces)
                    if crc is not None and zlib.crc32(content) != crc:
                        raise self._damaged(f"{shown(self.members[index].name)} has a wrong checksum")
                    yield index, content

    def _blocks(self, solid: _Solid) -> Iterator[bytes]:
        """What a solid block unpacks to, piece by piece."""
        source, left = _Sips(self._seven.fp), sum(size for _, size, _ in solid.files)
        try:
            if left:
                self._seven.fp.seek(solid.start)
                decompressor = solid.folder.get_decompressor(solid.packed, reset=True)
            while left:
                want, source.given = min(left, _BLOCK), 0
                block = bytes(decompressor.decompress(source, want))
                if not block and source.thirsty and not source.given:
                    raise EOFError("it ends early")
                source.thirsty = len(block) < want
                left -= len(block)
                yield block
        except Exception as error:
            raise self._damaged(error) from error

    def close(self) -> None:
        """As Archive says."""
        self._seven.close()


def _check_header(path: Path, label: str) -> None:
    """Judge the declared size of the list of members, which py7zr unpacks and reads as a whole before we see any.

    Raises: CnnlabError; and whatever py7zr raises for a damaged one.
    """
    from py7zr.archiveinfo import HeaderStreamsInfo

    packed = path.stat().st_size
    limit = max(_HEADER_LEAST, packed // _HEADER_SHARE)
    with path.open("rb") as file:
        start = file.read(32)
        place, size = 32 + int.from_bytes(start[12:20], "little"), int.from_bytes(start[20:28], "little")
        if place + size > packed:
            return  # py7zr says that it is incomplete
        content = b""
        if size <= limit:
            file.seek(place)
            content = file.read(size)
    if content[:1] == b"\x17":  # the list is packed itself
        folders = HeaderStreamsInfo.retrieve(io.BytesIO(content[1:])).unpackinfo.folders
        methods = {coder["method"] for folder in folders for coder in folder.coders}
        if _AES in methods:
            raise encrypted(label)
        if not methods <= {_COPY, _LZMA, _LZMA2}:
            raise unread(f"the list of members of {label}", label)
        size = sum(max(folder.unpacksizes) for folder in folders)
    if size > limit:
        raise CnnlabError(
            f"{label}: its list of members unpacks to {size:,} bytes, too much for an archive of {packed:,}; if you "
            "trust it, unpack it and give the folder"
        )


class _Sips:
    """Gives py7zr's decompressor more only when it has used up what it got; else it would hold all in the end."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.thirsty, self.given = True, 0

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none where there is no need."""
        content = self._file.read(min(size, _SIP)) if self.thirsty else b""
        self.given += len(content)
        return content


@dataclass(frozen=True)
class _Solid:
    """Files packed as one stream: py7zr's folder, where it starts, its size, and (index, size, CRC) of each."""

    folder: Any
    start: int
    packed: int
    files: list[tuple[int, int, int | None]]
