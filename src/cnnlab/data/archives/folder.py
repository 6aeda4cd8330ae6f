"""A folder of images, read like an archive."""

from __future__ import annotations

from collections.abc import Container, Iterator
from pathlib import Path

from cnnlab.data.archives.base import MEMBER_LIMIT, Archive, Member
from cnnlab.io.errors import CnnlabError
from cnnlab.io.walk import image_files


class FolderArchive(Archive):
    """The images in a folder and its sub-folders. Links that lead outside are refused."""

    def __init__(self, path: Path, label: str) -> None:
        super().__init__(label, 0)
        self._path = path
        for file in sorted(image_files(path, follow_outside=False)):
            self.members.append(Member(file.relative_to(path).as_posix(), file.stat().st_size))

    def read(self, indices: Container[int] | None = None) -> Iterator[tuple[int, bytes]]:
        """See Archive.read."""
        for i, member in enumerate(self.members):
            if indices is None or i in indices:
                with (self._path / member.name).open("rb") as file:
                    content = file.read(MEMBER_LIMIT + 1)
                if len(content) > MEMBER_LIMIT:
                    raise CnnlabError(
                        f"{self.member_label(i)} is larger than {MEMBER_LIMIT:,} bytes, the limit for an image"
                    )
                yield i, content

    def member_label(self, index: int) -> str:
        """See Archive.member_label."""
        return str(self._path / self.members[index].name)
