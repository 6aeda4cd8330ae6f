"""The images in a 7z archive, unpacked by py7zr in bounded memory.

This reads py7zr's parsed header and drives its decompressor directly. Its public `extract(factory=...)` takes 29 s of
CPU time for Kaggle's train.7z (50,000 images) and holds 771 MiB; this loop takes 10 s and holds a few MiB.
"""

from __future__ import annotations

import io
import stat
import zlib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cnnlab.data.archives.base import FILE_COUNT_LIMIT, Archive, encrypted, unsupported
from cnnlab.io.errors import CnnlabError

_BLOCK, _READ_SIZE = 1 << 18, 1 << 16
_UNBOUNDED = {"DEFLATE", "DEFLATE64", "ZStandard"}  # py7zr unpacks these without a bound on memory
# The list of members takes about fifty bytes a file, and a hostile one makes py7zr allocate 600 bytes for each of them:
# so it must be short compared with the archive, or hold about two thousand members at most (80 MB).
_HEADER_LIMIT, _HEADER_SHARE = 1 << 17, 4
_COPY, _LZMA, _LZMA2, _AES = b"\0", b"\3\1\1", b"\x21", b"\6\xf1\7\1"


class SevenZipArchive(Archive):
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
            py7zr.archiveinfo.MAX_NUMFILES = FILE_COUNT_LIMIT  # a quarter of py7zr's own limit
            _check_header(path, label)
            self._seven = py7zr.SevenZipFile(path)
            locked = self._seven.needs_password()
        except CnnlabError:
            raise
        except py7zr.PasswordRequired as error:
            raise encrypted(label) from error
        except Exception as error:  # a damaged header makes it raise nearly anything
            raise self._damaged(error) from error
        self._blocks: list[_SolidBlock] = []
        try:
            if locked:
                raise encrypted(label)
            if self._seven.files and _UNBOUNDED.intersection(self._seven.archiveinfo().method_names):
                raise unsupported(label, label)
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
                raise self._not_a_file(file.filename, "a link" if link else "a device")
            size = file.uncompressed or 0
            if size < 0:  # the last size of a stream is what the others leave of it
                raise self._damaged(f"{file.filename} has a negative size")
            index = len(self.members) - 1 if self._add(file.filename, size) else -1
            folder = None if file.emptystream else file.folder
            if folder is None or not self._blocks or self._blocks[-1].folder is not folder:
                start = self._seven.afterheader + starts.get(id(folder), 0)
                self._blocks.append(_SolidBlock(folder, start, file.compressed or 0, []))
            self._blocks[-1].files.append((index, size, file.crc32))
        # py7zr's own list takes 0.6 KiB a file and is not needed any more.
        self._seven.files.files_list.clear()
        if self._blocks:
            self._seven.header.files_info.files.clear()
        for block in self._blocks:
            if block.folder:
                block.folder.files = None

    def read(self, indices: Container[int] | None = None) -> Iterator[tuple[int, bytes]]:
        """See Archive.read."""
        for block in self._blocks:
            pieces = self._unpack(block)
            piece, at = b"", 0
            for index, size, crc in block.files:
                wanted = index >= 0 and (indices is None or index in indices)
                parts, left = [], size
                while left:
                    if at == len(piece):
                        piece, at = next(pieces), 0
                    part = piece[at : at + left]
                    at, left = at + len(part), left - len(part)
                    if wanted:
                        parts.append(part)
                if wanted:
                    content = b"".join(parts)
                    if crc is not None and zlib.crc32(content) != crc:
                        raise self._damaged(f"{self.members[index].name} has a wrong checksum")
                    yield index, content

    def _unpack(self, block: _SolidBlock) -> Iterator[bytes]:
        """Yield the unpacked bytes of a solid block, piece by piece."""
        source, left = _OnDemand(self._seven.fp), sum(size for _, size, _ in block.files)
        try:
            if left:
                self._seven.fp.seek(block.start)
                decompressor = block.folder.get_decompressor(block.packed, reset=True)
            while left:
                want, source.given = min(left, _BLOCK), 0
                piece = bytes(decompressor.decompress(source, want))
                if not piece and source.hungry and not source.given:
                    raise EOFError("it is cut off")
                source.hungry = len(piece) < want
                left -= len(piece)
                yield piece
        except Exception as error:
            raise self._damaged(error) from error

    def close(self) -> None:
        """See Archive.close."""
        self._seven.close()


def _check_header(path: Path, label: str) -> None:
    """Check the declared size of the list of members, which py7zr unpacks and reads as a whole.

    Raise CnnlabError, or whatever py7zr raises for a damaged list.
    """
    from py7zr.archiveinfo import HeaderStreamsInfo

    packed = path.stat().st_size
    limit = max(_HEADER_LIMIT, packed // _HEADER_SHARE)
    with path.open("rb") as file:
        start = file.read(32)
        place, size = 32 + int.from_bytes(start[12:20], "little"), int.from_bytes(start[20:28], "little")
        if place + size > packed:
            return  # py7zr will report that it is incomplete
        content = b""
        if size <= limit:
            file.seek(place)
            content = file.read(size)
    if content[:1] == b"\x17":  # the list itself is packed
        folders = HeaderStreamsInfo.retrieve(io.BytesIO(content[1:])).unpackinfo.folders
        methods = {coder["method"] for folder in folders for coder in folder.coders}
        if _AES in methods:
            raise encrypted(label)
        if not methods <= {_COPY, _LZMA, _LZMA2}:
            raise unsupported(f"the list of members of {label}", label)
        size = sum(max(folder.unpacksizes) for folder in folders)
    if size > limit:
        raise CnnlabError(
            f"{label}: its list of members unpacks to {size:,} bytes, too much for an archive of {packed:,}; if you "
            "trust it, unpack it and give the folder"
        )


class _OnDemand:
    """A file that feeds py7zr's decompressor only when that needs input; otherwise it would hold the whole archive."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.hungry, self.given = True, 0

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes, or none if the decompressor still has input."""
        content = self._file.read(min(size, _READ_SIZE)) if self.hungry else b""
        self.given += len(content)
        return content


@dataclass(frozen=True)
class _SolidBlock:
    """Files packed as one stream: py7zr's folder, its start, its packed size, and (index, size, CRC) of each file."""

    folder: Any
    start: int
    packed: int
    files: list[tuple[int, int, int | None]]
