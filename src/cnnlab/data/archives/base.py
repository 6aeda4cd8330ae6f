"""The base class of archives: the list of members and the limits on what they unpack to.

An archive may come from anyone. The list of members is checked before anything is read, and the unpacked sizes while
reading. Paths that lead outside, links, devices, duplicate names, encryption and zip bombs are refused with a one-line
error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass

from cnnlab.io.decode import ENDINGS
from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.walk import is_system

MEMBER_LIMIT = 64 << 20  # bytes of one image file
TOTAL_LIMIT, TOTAL_RATIO = 1 << 30, 100  # bytes of all members: images hardly compress, so 100 times is a bomb
FILE_COUNT_LIMIT = 2_000_000  # files in an archive, images or not


@dataclass(frozen=True)
class Member:
    """A file in an archive: its path and its declared size in bytes."""

    name: str
    size: int


class Archive:
    """The images of one archive or folder.

    label: the archive's name in error messages; members: the images, in the order in which `read` returns them;
    ignored: number of other files.
    """

    def __init__(self, label: str, packed: int) -> None:
        self.label = label
        self.members: list[Member] = []
        self.ignored = 0
        self._limit = max(TOTAL_LIMIT, TOTAL_RATIO * packed)
        self._names: set[str] = set()
        self._total = self._files = 0

    def read(self, indices: Container[int] | None = None) -> Iterator[tuple[int, bytes]]:
        """Yield (index in `members`, content) of the members in `indices`, in order. Default: all of them.

        Each call starts from the beginning. Raise CnnlabError if the archive is damaged or unpacks to more than it
        declares.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close the file."""

    def member_label(self, index: int) -> str:
        """Return the name of a member for error messages, such as `train.7z: train/17.png`."""
        return f"{self.label}: {self.members[index].name}"

    def _add(self, name: str, size: int) -> bool:
        """Check a file's name and declared size; add it to `members` and return True if it is an image."""
        parts = name.split("/")
        if not name or name[0] == "/" or "\\" in name or "\0" in name or ".." in parts or re.match("[A-Za-z]:", name):
            raise CnnlabError(
                f"{self.label} contains {name!a}, a path that leads outside the archive; unpack it with a tool you "
                "trust and give the folder"
            )
        self._total += size
        if self._total > self._limit:
            raise CnnlabError(
                f"{self.label} would unpack to more than {self._limit:,} bytes; if you trust it, unpack it and give "
                "the folder"
            )
        self._files += 1
        if self._files > FILE_COUNT_LIMIT:
            raise CnnlabError(f"{self.label} contains over {FILE_COUNT_LIMIT:,} files; unpack it and give the folder")
        hidden = any(part != "." and is_system(part) for part in parts)
        if hidden or os.path.splitext(parts[-1])[1].lower() not in ENDINGS:  # noqa: PTH122 - called for every file
            self.ignored += 1
            return False
        if size > MEMBER_LIMIT:
            raise CnnlabError(
                f"{self.label}: {name} has {size:,} bytes; the limit for an image is {MEMBER_LIMIT:,}; remove it"
            )
        if name in self._names:
            raise CnnlabError(f"{self.label}: {name} occurs twice; pack the archive again with one of them")
        self._names.add(name)
        self.members.append(Member(name, size))
        return True

    def _not_a_file(self, name: str, kind: str) -> CnnlabError:
        return CnnlabError(f"{self.label} contains {name!a}, which is {kind}, not a file; pack the images themselves")

    def _damaged(self, error: BaseException | str) -> CnnlabError:
        return damaged(self.label, error)


def damaged(label: str, error: BaseException | str) -> CnnlabError:
    """Return the error for a damaged archive."""
    why = error if isinstance(error, str) else reason(error)
    return CnnlabError(f"{label} is damaged or incomplete: {why}; download it again, or unpack it and give the folder")


def encrypted(label: str) -> CnnlabError:
    """Return the error for an archive with a password."""
    return CnnlabError(f"{label} is encrypted; unpack it and give the folder")


def unsupported(what: str, label: str) -> CnnlabError:
    """Return the error for a member, or an archive, with an unsupported compression method."""
    return CnnlabError(f"{what} uses an unsupported compression method; unpack {label} and give the folder")
