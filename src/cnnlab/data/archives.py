"""The images in an archive or a folder, one after the other, in bounded memory; what is wanted on the disk, `unpack`.

An archive may come from anyone. Its list of members is judged before anything is read, and what they really unpack
to while it is read: names that lead out of it, links, devices, two members of one name, encryption and bombs are
refused, each in one line.
"""

from __future__ import annotations

import gzip
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Container, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from cnnlab.data.images import ENDINGS, image_files
from cnnlab.data.tars import Entry, TarStream, Torn
from cnnlab.io.errors import CnnlabError, reason

ARCHIVES = (".7z", ".zip", ".tar", ".tar.gz", ".tgz")
MEMBER_LIMIT = 64 << 20  # bytes of one image file
FILE_LIMIT = 1 << 30  # bytes of one file of any kind
# Bytes of all members: image files hardly shrink in an archive, so a hundredfold is a bomb.
TOTAL_LEAST, TOTAL_RATIO = 1 << 30, 100
# Files in an archive, images or not; of a zip's list of them, which Python reads as a whole, the bytes.
MOST_MEMBERS, _LIST_LIMIT = 2_000_000, 96 << 20
_BLOCK = 1 << 18
# What zipfile raises for a damaged zip, beside OSError.
ZIP_ERRORS = (EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, ValueError)


@dataclass(frozen=True)
class Member:
    """A file in an archive: its path there and its size in bytes, as the archive declares it."""

    name: str
    size: int


class Archive:
    """The images of one archive or folder, or `every` file.

    members: the images, in the order in which `read` gives them; passed_over: how many other files there are;
    label: what errors call the archive.
    """

    def __init__(self, label: str, packed: int, every: bool = False) -> None:
        self.label = label
        self._every, self._most = every, FILE_LIMIT if every else MEMBER_LIMIT
        self.members: list[Member] = []
        self.passed_over = 0
        self._limit = max(TOTAL_LEAST, TOTAL_RATIO * packed)
        self._names: set[str] = set()
        self._total = self._files = 0

    def read(self, wanted: Container[int] | None = None) -> Iterator[tuple[int, bytes]]:
        """(index in `members`, the file's bytes) of all members or those `wanted`, in order; from the start each time.

        Raises: CnnlabError for a damaged archive, and for one that unpacks to more than it says.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the file."""

    def called(self, index: int) -> str:
        """A member as errors name it: `train.7z: train/17.png`."""
        return f"{self.label}: {shown(self.members[index].name)}"

    def _admit(self, name: str, size: int) -> bool:
        """Judge a file's name and declared size; is it one of those that are wanted?"""
        parts = name.split("/")
        if not name or name[0] == "/" or "\\" in name or "\0" in name or ".." in parts or re.match("[A-Za-z]:", name):
            raise CnnlabError(
                f"{self.label} holds {name!a}, a path that leads out of the archive or is Windows' own; nothing of it "
                "was read: unpack it with a tool that you trust and give the folder"
            )
        self._count(size)
        self._files += 1
        if self._files > MOST_MEMBERS:
            raise CnnlabError(f"{self.label} holds over {MOST_MEMBERS:,} files; unpack it and give the folder")
        call = f"{self.label}: {shown(name)}"
        hidden = any(part == "__MACOSX" or (part[:1] == "." and part != ".") for part in parts)
        if not self._every and (hidden or os.path.splitext(parts[-1])[1].lower() not in ENDINGS):  # noqa: PTH122 - hot
            self.passed_over += 1
            return False
        if size > self._most:
            what = "is not unpacked" if self._every else "is no image here"
            raise CnnlabError(f"{call} is {size:,} bytes; more than {self._most:,} {what}")
        if name in self._names:
            raise CnnlabError(f"{call} is there twice; which one is meant? Pack it again with one of them")
        self._names.add(name)
        self.members.append(Member(name, size))
        return True

    def _count(self, size: int) -> None:
        self._total += size
        if self._total > self._limit:
            raise CnnlabError(
                f"{self.label} would unpack to more than {self._limit:,} bytes, a hundred times its size; nothing that "
                "holds images does"
            )

    def _refuse(self, name: str, what: str) -> CnnlabError:
        return CnnlabError(f"{self.label} holds {name!a}, which is {what}, not a file; pack the images themselves")

    def _damaged(self, error: BaseException | str) -> CnnlabError:
        return damaged(self.label, error)


class _Folder(Archive):
    def __init__(self, path: Path, label: str) -> None:
        super().__init__(label, 0)
        self._path = path
        for file in sorted(image_files(path, outside=False)):
            self.members.append(Member(file.relative_to(path).as_posix(), file.stat().st_size))

    def read(self, wanted: Container[int] | None = None) -> Iterator[tuple[int, bytes]]:
        for i, member in enumerate(self.members):
            if wanted is None or i in wanted:
                with (self._path / member.name).open("rb") as file:
                    content = file.read(MEMBER_LIMIT + 1)
                if len(content) > MEMBER_LIMIT:
                    raise CnnlabError(f"{self.called(i)} is larger than the {MEMBER_LIMIT:,} bytes of any image here")
                yield i, content

    def called(self, index: int) -> str:
        return shown(str(self._path / self.members[index].name))


class _Zip(Archive):
    def __init__(self, path: Path, label: str, inside: str = "", every: bool = False) -> None:
        super().__init__(label, path.stat().st_size, every)
        self._infos: list[zipfile.ZipInfo] = []
        self._zip = open_zip(path, label)
        try:
            self._list(inside)
        except BaseException:
            self._zip.close()
            raise

    def _list(self, inside: str) -> None:
        for info in self._zip.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if is_folder(info) or kind == stat.S_IFDIR:
                continue
            if kind not in (0, stat.S_IFREG):
                raise self._refuse(info.filename, "a link" if kind == stat.S_IFLNK else "a device")
            if info.orig_filename.startswith(inside) and self._admit(info.orig_filename, info.file_size):
                self._infos.append(info)
                check_packing(info, self.called(-1), self.label)

    def read(self, wanted: Container[int] | None = None) -> Iterator[tuple[int, bytes]]:
        for i, info in enumerate(self._infos):
            if wanted is None or i in wanted:
                try:
                    with self._zip.open(info) as file:
                        content = file.read(self._most + 1)
                except (OSError, *ZIP_ERRORS) as error:
                    raise self._damaged(error) from error
                if len(content) != info.file_size:
                    raise self._damaged(f"{shown(info.filename)} ends early")
                yield i, content

    def close(self) -> None:
        self._zip.close()


class _Tar(Archive):
    def __init__(self, path: Path, label: str, every: bool = False) -> None:
        super().__init__(label, path.stat().st_size, every)
        self._path = path
        self._places: list[int] = []  # of each member, its place among all files
        for place, (entry, _) in enumerate(self._entries()):
            self._count(entry.overhead)
            if entry.kind and entry.kind != "a folder":
                raise self._refuse(entry.name, entry.kind)
            if not entry.kind and self._admit(entry.name, entry.size):
                self._places.append(place)

    def read(self, wanted: Container[int] | None = None) -> Iterator[tuple[int, bytes]]:
        index = 0
        for place, (_, tar) in enumerate(self._entries()):
            if index == len(self._places):
                return
            if place != self._places[index]:
                continue
            if wanted is None or index in wanted:
                try:
                    content = tar.read(self._most)
                except _TAR_ERRORS as error:
                    raise self._damaged(error) from error
                yield index, content
            index += 1

    def _entries(self) -> Iterator[tuple[Entry, TarStream]]:
        """Every entry, and where to read it; in the end what is behind them, to where gzip's checksum is."""
        try:
            packed = self._path.name.lower().endswith("gz")
            with _open(self._path, packed) as stream:
                tar = TarStream(stream, jumps=not packed)
                for entry in tar:
                    yield entry, tar
                rest = 0
                while piece := stream.read(_BLOCK):
                    rest += len(piece)
                    if rest > self._limit:
                        raise Torn("there is no end behind the last file")
        except _TAR_ERRORS as error:
            raise self._damaged(error) from error


def _open(path: Path, packed: bool) -> IO[bytes]:
    """The bytes of a file; if it is `packed` by gzip, of what is in it."""
    return cast(IO[bytes], gzip.open(path)) if packed else path.open("rb")


_TAR_ERRORS = (OSError, EOFError, zlib.error, OverflowError, Torn)


def open_archive(path: Path, label: str = "", inside: str = "") -> Archive:
    """The images of an archive (one of ARCHIVES) or of a folder and its sub-folders. Close it with `closing`.

    label: what errors should call it, unsaid its name; inside: of a zip, only what has a path that begins so.
    Raises: CnnlabError for one that is missing, damaged, encrypted or hostile, and where py7zr is missing.
    """
    label = label or path.name
    try:
        if path.is_dir():
            return _Folder(path, str(path))
        kind = archive_ending(path.name)
        if kind == ".7z":
            from cnnlab.data.sevenzip import SevenZip  # builds on this module

            return SevenZip(path, label)
        if kind == ".zip":
            return _Zip(path, label, inside)
        if kind:
            return _Tar(path, label)
    except OSError as error:
        raise CnnlabError(f"cannot read {path}: {reason(error)}") from error
    raise CnnlabError(f"{path} is no archive that can be read; known: {', '.join(ARCHIVES)}, or a folder")


def unpack(path: Path, folder: Path) -> None:
    """Write every file of a zip or a tar into `folder`, each below it; what was there before is replaced.

    Raises: CnnlabError for an archive that is damaged, encrypted or hostile, of which nothing or a part is written;
    OSError where the disk refuses.
    """
    kind = archive_ending(path.name)
    with closing((_Zip if kind == ".zip" else _Tar)(path, path.name, every=True)) as archive:
        for index, content in archive.read():
            target = folder / archive.members[index].name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def open_zip(path: Path, label: str) -> zipfile.ZipFile:
    """A zip and its list of members. Raises: CnnlabError where it is damaged; OSError where it cannot be read."""
    try:
        with path.open("rb") as file:
            end = zipfile._EndRecData(file)  # type: ignore[attr-defined] # what ZipFile itself begins with
        if end and end[5] > _LIST_LIMIT:  # in bytes: how many files it says there are need not be true
            raise CnnlabError(
                f"{label}: its list of members is {end[5]:,} bytes, too many; if you trust it, unpack it and give the "
                "folder"
            )
        return zipfile.ZipFile(path)
    except ZIP_ERRORS as error:
        raise damaged(label, error) from error


def is_folder(info: zipfile.ZipInfo) -> bool:
    """Is a zip's member a folder? Its own `is_dir` fails on an empty name, before Python 3.12."""
    return info.filename.endswith("/")


def check_packing(info: zipfile.ZipInfo, what: str, label: str) -> None:
    """Raises: CnnlabError for a zip's member `what` that is encrypted, or that Python would unpack without a bound."""
    if info.flag_bits & 1:
        raise encrypted(label)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise unread(what, label)


def damaged(label: str, error: BaseException | str) -> CnnlabError:
    """An error for an archive that is not whole."""
    why = error if isinstance(error, str) else reason(error)
    return CnnlabError(f"{label} is damaged or incomplete: {why}; download it again, or unpack it and give the folder")


def encrypted(label: str) -> CnnlabError:
    """An error for an archive with a password."""
    return CnnlabError(f"{label} is encrypted; unpack it and give the folder")


def unread(what: str, label: str) -> CnnlabError:
    """An error for a member, or an archive, that is packed by a method which is not read here."""
    return CnnlabError(f"{what} is packed in a way that is not read here; unpack {label} and give the folder")


def shown(name: str) -> str:
    """A name from an archive as it may stand in a line: without line breaks or a terminal's commands."""
    return name if name.isprintable() else ascii(name)


def archive_ending(name: str) -> str:
    """That of ARCHIVES with which `name` ends, or nothing."""
    return next((ending for ending in ARCHIVES if name.lower().endswith(ending)), "")
