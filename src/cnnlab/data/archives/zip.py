"""The images in a zip archive, read with the standard library."""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Container, Iterator
from pathlib import Path

from cnnlab.data.archives.base import MEMBER_LIMIT, Archive, damaged, encrypted, unsupported
from cnnlab.io.encodings import name_encoding
from cnnlab.io.errors import CnnlabError
from cnnlab.io.kinds import ZIP, file_kind

_LIST_LIMIT = 96 << 20  # bytes of the list of members, which zipfile reads as a whole
# What zipfile raises for a damaged zip, besides OSError.
ZIP_ERRORS = (EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, ValueError)


class ZipArchive(Archive):
    """The images of a zip archive whose path starts with `prefix`."""

    def __init__(self, path: Path, label: str, prefix: str = "") -> None:
        super().__init__(label, path.stat().st_size)
        self._infos: list[zipfile.ZipInfo] = []
        self._zip = open_zip(path, label)
        try:
            self._list(prefix)
        except BaseException:
            self._zip.close()
            raise

    def _list(self, prefix: str) -> None:
        for info in self._zip.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if is_folder(info) or kind == stat.S_IFDIR:
                continue
            if kind not in (0, stat.S_IFREG):
                raise self._not_a_file(info.filename, "a link" if kind == stat.S_IFLNK else "a device")
            name = info.filename if _unmarked(info) else info.orig_filename  # the latter still has its zero bytes
            if name.startswith(prefix) and self._add(name, info.file_size):
                self._infos.append(info)
                check_compression(info, self.member_label(-1), self.label)

    def read(self, indices: Container[int] | None = None) -> Iterator[tuple[int, bytes]]:
        """See Archive.read."""
        for i, info in enumerate(self._infos):
            if indices is None or i in indices:
                try:
                    with self._zip.open(info) as file:
                        content = file.read(MEMBER_LIMIT + 1)
                except (OSError, *ZIP_ERRORS) as error:
                    raise self._damaged(error) from error
                if len(content) != info.file_size:
                    raise self._damaged(f"{info.filename} is cut off")
                yield i, content

    def close(self) -> None:
        """See Archive.close."""
        self._zip.close()


def open_zip(path: Path, label: str) -> zipfile.ZipFile:
    """Open a zip and read its list of members, with the names as their author wrote them.

    Raise CnnlabError if it is damaged or not a zip; OSError if it is unreadable.
    """
    if (kind := file_kind(path)) and kind.what != ZIP:
        raise CnnlabError(f"{label} {kind.in_place_of_archive()}")
    if not path.stat().st_size:
        raise damaged(label, "it is empty")
    try:
        with path.open("rb") as file:
            end = zipfile._EndRecData(file)  # type: ignore[attr-defined] # what ZipFile itself reads first
        if end and end[5] > _LIST_LIMIT:  # the size in bytes: the number of entries beside it can be wrong
            raise CnnlabError(
                f"{label}: its list of members has {end[5]:,} bytes, over the limit; if you trust it, unpack it and "
                "give the folder"
            )
        zipped = zipfile.ZipFile(path)
    except ZIP_ERRORS as error:
        raise damaged(label, error) from error

    _correct_names(zipped)
    return zipped


def _correct_names(zipped: zipfile.ZipFile) -> None:
    """Decode names that do not declare their encoding: macOS writes UTF-8, Windows in China GBK, DOS code page 437."""
    infos = [info for info in zipped.infolist() if _unmarked(info)]
    raw = [info.orig_filename.encode("cp437") for info in infos]
    codec = name_encoding(raw) or "cp437"
    for info, name in zip(infos, raw, strict=True):
        info.filename = name.decode(codec)


def _unmarked(info: zipfile.ZipInfo) -> bool:
    return not info.flag_bits & 0x800 and not info.orig_filename.isascii()


def is_folder(info: zipfile.ZipInfo) -> bool:
    """Return whether a member is a folder. ZipInfo.is_dir fails on an empty name before Python 3.12."""
    return info.filename.endswith("/")


def check_compression(info: zipfile.ZipInfo, what: str, label: str) -> None:
    """Raise CnnlabError if member `what` is encrypted, or uses a method that zipfile unpacks without a memory bound."""
    if info.flag_bits & 1:
        raise encrypted(label)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise unsupported(what, label)
