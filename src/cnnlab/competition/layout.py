"""The files of a competition: training and test images, labels, a sample submission; in a folder or in one zip."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from cnnlab.data.archives import ARCHIVES, Archive, archive_ending, open_archive
from cnnlab.data.archives.zip import ZIP_ERRORS, check_compression, is_folder, open_zip
from cnnlab.io.decode import ENDINGS
from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.kinds import HEAD, Kind, file_kind, kind_of

_CSV_LIMIT = 256 << 20  # bytes; 300,000 rows take four million


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The names of a competition's files and columns. Default: those of Kaggle's CIFAR-10.

    train, test: the name of a folder or an archive, with or without its extension; labels, sample: CSV files;
    image_size: side in pixels; 0 keeps the images' size, which must be square and the same for all; fit: see
    `Decoding`; background: black or white, behind transparent pixels, or auto for white behind dark drawings.
    """

    train: str = "train"
    test: str = "test"
    labels: str = "trainLabels.csv"
    sample: str = "sampleSubmission.csv"
    id_column: str = "id"
    label_column: str = "label"
    image_size: int = 0
    fit: str = "pad"
    background: str = "auto"


class Place:
    """A folder with a competition's files, or the zip that holds them all. A context manager."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path = path
        self._zip: zipfile.ZipFile | None = None
        self._inside = ""  # path in the zip
        self._files: dict[str, zipfile.ZipInfo] = {}  # the files of the zip in that folder
        if path.is_dir():
            self._names = sorted(entry.name for entry in path.iterdir())
        elif not path.exists():
            raise CnnlabError(f"{path} does not exist; give the folder with the competition's files, or its zip")
        elif archive_ending(path.name) != ".zip":
            kind = file_kind(path)
            raise CnnlabError(
                f"{path} {kind.in_place_of_archive()}" if kind
                else f"{path} is neither a folder nor a zip; give the folder that holds it"
            )  # fmt: skip
        else:
            self._zip = open_zip(path, str(path))
            files = [(PurePosixPath(info.filename), info) for info in self._zip.infolist() if not is_folder(info)]
            homes = [file.parent for file, _ in files if file.name.casefold() == layout.labels.casefold()]
            home = min(homes, key=lambda p: len(p.parts), default=PurePosixPath())
            self._inside = "" if home == PurePosixPath() else f"{home}/"
            depth = len(home.parts)
            here = [(f, info) for f, info in files if f.is_relative_to(home) and len(f.parts) > depth]
            self._names = sorted({f.parts[depth] for f, _ in here})
            self._files = {f.name: info for f, info in here if f.parent == home}

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        if self._zip:
            self._zip.close()

    def find(self, name: str) -> str | None:
        """Return the archive or folder that `name` stands for, or None. An archive takes precedence over a folder."""
        for candidate in [name] * bool(archive_ending(name)) + [name + ending for ending in ARCHIVES] + [name]:
            # A folder in the zip may be named like an archive.
            there = self._actual(candidate)
            if there in self._names and (not self._zip or self.has(there) == bool(archive_ending(there))):
                return there
        return None

    def _actual(self, name: str) -> str:
        """Return the actual name if only the case differs: `Train` for `train`."""
        other = [n for n in self._names if n.casefold() == name.casefold()]
        return other[0] if name not in self._names and len(other) == 1 else name

    def missing(self, name: str, what: str) -> CnnlabError:
        """Return the error for a file that does not exist."""
        stem = name.casefold().split(".")[0]
        for other in self._names:  # train.rar, train.tar.gz, trainLabels.xlsx
            if other.casefold().split(".")[0] == stem and "." in other and (kind := self._kind(other)):
                why = kind.in_place_of_table() if name.lower().endswith(".csv") else kind.in_place_of_archive()
                return CnnlabError(f"{self.path} has no {name} ({what}): {other} {why}")
        there = ", ".join(self._names[:12]) or "nothing"
        inside = [n for n in self._names if not self._zip and (self.path / n / name).exists()]
        if len(inside) == 1:
            return CnnlabError(f"{self.path} has no {name} ({what}), but its folder {inside[0]} does; give that folder")
        zips = [n for n in self._names if n.endswith(".zip")]
        hint = f"; if {zips[0]} is the competition's zip, give {self.path / zips[0]} itself" if zips else ""
        return CnnlabError(f"{self.path} has no {name} ({what}); it has {there}{hint}")

    def _kind(self, name: str) -> Kind | None:
        if self._zip is None:
            return file_kind(self.path / name)
        if name not in self._files:  # a folder
            return None
        with contextlib.suppress(OSError, CnnlabError, *ZIP_ERRORS), self._open(name) as file:
            return kind_of(file.read(HEAD))
        return None

    def has(self, name: str) -> bool:
        """Return whether there is a file of that name, in any letter case."""
        name = self._actual(name)
        return name in self._files if self._zip else (self.path / name).is_file()

    def table(self, name: str) -> bytes:
        """Return the bytes of a CSV file. Raise CnnlabError if it cannot be read or is too large."""
        try:
            with self._open(name) as file:
                content = file.read(_CSV_LIMIT + 1)
        except (OSError, *ZIP_ERRORS) as error:
            raise CnnlabError(f"cannot read {self.path / name}: {reason(error)}; save or download it again") from error
        if len(content) > _CSV_LIMIT:
            raise CnnlabError(f"{self.path / name} is larger than {_CSV_LIMIT:,} bytes; is it a table of labels?")
        return content

    @contextmanager
    def images(self, name: str, scratch: Path) -> Iterator[Archive]:
        """Open the archive or folder `name`. An archive inside the zip is first copied into the folder `scratch`."""
        copy = scratch / f"nested{archive_ending(name)}"
        if self._zip and not archive_ending(name):
            archive = open_archive(self.path, prefix=f"{self._inside}{name}/")
        elif self._zip:
            self._unpack(name, copy)
            archive = open_archive(copy, f"{self.path.name}: {name}")
        else:
            archive = open_archive(self.path / name)
        try:
            with closing(archive):
                yield archive
        finally:
            copy.unlink(missing_ok=True)

    def _unpack(self, name: str, copy: Path) -> None:
        info = self._files[name]
        if info.file_size > 2 * self.path.stat().st_size:
            raise CnnlabError(
                f"{self.path.name}: {name} unpacks to {info.file_size:,} bytes, more than twice the zip's own size; "
                "unpack it, and give the folder"
            )
        try:
            with self._open(name) as source, copy.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        except ZIP_ERRORS as error:
            raise CnnlabError(f"{self.path.name}: {name} is damaged: {reason(error)}; download it again") from error

    def _open(self, name: str) -> IO[bytes]:
        name = self._actual(name)
        if self._zip is None:
            return (self.path / name).open("rb")
        check_compression(self._files[name], f"{self.path.name}: {name}", str(self.path))
        return self._zip.open(self._files[name])

    def digest(self, names: Iterable[str], digest: Any) -> None:
        """Update `digest` with the content of files, and with names, sizes and times of the images in folders.

        The competition's zip is hashed as a whole, whatever the `names`.
        """
        for name in [self.path.name] if self._zip else names:
            path = self.path if self._zip else self.path / self._actual(name)
            digest.update(f"{name}\0".encode("utf-8", "backslashreplace"))
            if path.is_dir():
                with closing(open_archive(path)) as folder:
                    for member in folder.members:
                        time = (path / member.name).stat().st_mtime_ns
                        digest.update(f"{member.name}\0{member.size}\0{time}\0".encode("utf-8", "backslashreplace"))
            else:
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, hashlib.blake2b).digest())


def plain_id(name: str) -> str:
    """Return an image's id: its file name without folder and extension. A table may write ids with both."""
    base = re.split(r"[/\\]", name)[-1]
    stem, dot, ending = base.rpartition(".")
    return stem if stem and dot + ending.lower() in ENDINGS else base


def member_ids(archive: Archive) -> dict[str, int]:
    """Return {id: index in `archive.members`}. Raise CnnlabError if two images have the same id."""
    ids: dict[str, int] = {}
    for i, member in enumerate(archive.members):
        if not member.name.isascii() and member.name != member.name.encode("utf-8", "replace").decode():
            raise CnnlabError(f"{archive.label}: the name {member.name!a} is not UTF-8; rename it")
        other = ids.setdefault(plain_id(member.name), i)
        if other != i:
            raise CnnlabError(
                f"{archive.member_label(other)} and {member.name} have the same id, {plain_id(member.name)}; rename one"
            )
    return ids


def match(text: str, ids: dict[str, int]) -> int | None:
    """Return the index of the image that `text` refers to, or None. `17`, `17.png` and `train/17.png` are the same."""
    found = (ids.get(name) for name in (text, plain_id(text), plain_id(text.strip())))
    return next((index for index in found if index is not None), None)


def match_all(texts: Iterable[str], ids: dict[str, int]) -> tuple[dict[int, str], list[str], list[tuple[str, str]]]:
    """Match the ids of a table, `texts`, with images.

    Return {index of the image: its id in the table}, the ids without an image, and pairs (first id, other id) that
    refer to the same image.
    """
    rows: dict[int, str] = {}
    lost, again = [], []
    for text in texts:
        index = match(text, ids)
        if index is None:
            lost.append(text)
        elif (first := rows.setdefault(index, text)) != text:
            again.append((first, text))
    return rows, lost, again


def natural(text: str) -> list[tuple[int, int, str]]:
    """Return a sort key that puts img9 before img10."""
    key = []
    for part in re.split("([0-9]+)", text):
        digits = part.lstrip("0") if part[:1].isdigit() else ""
        key.append((0, len(digits), digits) if part[:1].isdigit() else (1, 0, part))
    return key
