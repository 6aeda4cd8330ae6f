"""Read the images of a zip or 7z archive, or of a folder, one after the other and in bounded memory."""

from __future__ import annotations

from pathlib import Path

from cnnlab.data.archives.base import Archive, Member, damaged
from cnnlab.data.archives.folder import FolderArchive
from cnnlab.data.archives.sevenzip import SevenZipArchive
from cnnlab.data.archives.zip import ZipArchive
from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.kinds import SEVEN_ZIP, ZIP, file_kind

__all__ = ["ARCHIVES", "Archive", "Member", "archive_ending", "open_archive"]

ARCHIVES = (".7z", ".zip")


def open_archive(path: Path, label: str = "", prefix: str = "") -> Archive:
    """Open an archive (one of ARCHIVES, whatever its name) or a folder with its sub-folders. Close it with `closing`.

    label: the archive's name in error messages. Default: its file name. prefix: read only the members of a zip whose
    path starts with it. Raise CnnlabError if the archive is missing, damaged, encrypted or unsafe, or if py7zr is not
    installed.
    """
    label = label or path.name
    try:
        if not path.exists():
            raise CnnlabError(f"{path} does not exist; give a {' or '.join(ARCHIVES)} file, or a folder")
        if path.is_dir():
            return FolderArchive(path, str(path))
        kind = file_kind(path)
        ending = {SEVEN_ZIP: ".7z", ZIP: ".zip"}.get(kind.what, "") if kind else archive_ending(path.name)
        if path.is_file() and not path.stat().st_size:
            raise damaged(label, "it is empty")
        if kind and not ending:
            raise CnnlabError(f"{label} {kind.in_place_of_archive()}")
        if ending == ".7z":
            return SevenZipArchive(path, label)
        if ending == ".zip":
            return ZipArchive(path, label, prefix)
    except OSError as error:
        raise CnnlabError(f"cannot read {path}: {reason(error)}") from error
    raise CnnlabError(f"{path} is not a supported archive; give a {' or '.join(ARCHIVES)} file, or a folder")


def archive_ending(name: str) -> str:
    """Return the extension in ARCHIVES that `name` has, or ""."""
    return next((ending for ending in ARCHIVES if name.lower().endswith(ending)), "")
