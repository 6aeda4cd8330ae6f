"""Walk a folder of images: each file with its kind."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from cnnlab.io.decode import ENDINGS
from cnnlab.io.errors import CnnlabError, reason

IMAGE = "image"
LINK = "dangling link"
RUN = "run"
CLOUD = ".icloud"  # .photo.jpg.icloud stands for a photo that was not downloaded
# Folders that systems and programs create: thumbnails of a NAS, recycle bins, what a Mac's zip adds. In lower case.
_SYSTEM_FOLDERS = frozenset(
    ("@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "recycler", "system volume information",
     "__macosx", "lost+found", "network trash folder", "temporary items", "@recently-snapshot", "@tmp",
     "@__thumb", "@synoresource", "@sharebin", "~snapshot", "thumbnails", "_thumbs", "_thumbnails",
     "ipod photo cache", "lost.dir", "_vti_cnf", "_vti_pvt",
     "_gsdata_", "dfsrprivate", "__pycache__", "desktop folder db", "thevolumesettingsfolder",
     "lightning_logs", "wandb", "mlruns")
)  # fmt: skip
# FOUND.000 of chkdsk; the catalogues and libraries of photo programs, which keep previews.
_SYSTEM_PATTERN = re.compile(
    r"found\.\d{3}|\.?trash-\d+|.+\.(lrdata|photoslibrary|photolibrary|aplibrary|cocatalog|fcpbundle)"
)
# Names that may also be classes, as in a data set of waste. Inside a class folder, their images would be duplicates.
DOUBTFUL_FOLDERS = frozenset(("trash", "recycled", "recycle bin", "thumbs", "papierkorb", "corbeille", "回收站"))
_SYSTEM_FILES = frozenset(("thumbs.db", "desktop.ini", "ehthumbs.db"))


# Files by which our commands' folders are recognized. The second kind may also lie beside a user's many images.
_RUN_FILES = frozenset(("run.json", "competition.json", "reproduction.json"))
_TABLES = frozenset(("seeds.json", "folds.json", "bench.json", "grades.csv", "lr-find.json"))


def _is_run(names: list[str]) -> bool:
    """Return whether a folder with these files was written by a command of ours."""
    if not _RUN_FILES.isdisjoint(names):
        return True
    return not _TABLES.isdisjoint(names) and sum(kind_of_name(name) == IMAGE for name in names) <= 2  # its pictures


def kind_of_name(name: str) -> str:
    """Return `IMAGE`, or the extension of a file's name in lower case; an empty string if it has no usual one.

    Names from the web and from devices end in anything: `a.jpg?x=1`, `b.jpg_large`, `1.2.840.113619.3`.
    """
    ending = os.path.splitext(name)[1].lower()  # noqa: PTH122 - called often
    if ending in ENDINGS:
        return IMAGE
    return ending if re.fullmatch(r"\.(?=\w*[a-z])\w{1,9}", ending) else ""


def is_system(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, or made by the operating system."""
    lower = name.lower()
    return (
        name.startswith(".")
        or lower in _SYSTEM_FOLDERS
        or lower in _SYSTEM_FILES
        or _SYSTEM_PATTERN.fullmatch(lower) is not None
    )


def walk(folder: Path, *, follow_outside: bool = True) -> Iterator[tuple[str, Path]]:
    """Yield (kind, path) of each file under `folder`, except hidden ones and the system's, in no particular order.

    kind: `IMAGE`; `LINK` for a dangling symlink; `RUN` for a folder that a command of ours wrote, which is not entered;
    `CLOUD` for a file that was not downloaded; for any other file, its extension in lower case, such as `.heic`, or an
    empty string. Pipes and devices are left out. Symlinks to a parent or to a folder already seen are not followed.

    follow_outside: follow symlinks that lead outside `folder`; if False, such a symlink raises CnnlabError.
    """
    visited: set[str] = set()
    root = os.path.realpath(folder)

    def check(path: str | Path) -> None:
        if not follow_outside and not Path(os.path.realpath(path)).is_relative_to(root):
            raise CnnlabError(f"{str(path)!r} is a link that leads outside {folder}; put the images themselves there")

    def stop(error: OSError) -> None:
        raise CnnlabError(f"cannot read {error.filename}: {reason(error)}; correct its permissions, or move it")

    for parent, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited or (real != root and Path(root).is_relative_to(real)):
            folders.clear()  # a link to a folder seen before, or to one that holds this one
            continue
        visited.add(real)
        check(parent)
        if _is_run(names):
            folders.clear()
            yield RUN, Path(parent)
            continue
        folders[:] = [name for name in folders if not is_system(name) and name.casefold() not in DOUBTFUL_FOLDERS]
        for name in names:
            if name.endswith(CLOUD):
                yield CLOUD, Path(parent, name)
                continue
            if is_system(name):
                continue
            path = Path(parent, name)
            if path.is_file():  # not a pipe, which would block
                kind = kind_of_name(name)
                if kind == IMAGE and path.is_symlink():
                    check(path)
                yield kind, path
            elif path.is_symlink() and not path.exists():
                yield LINK, path


def image_files(folder: Path, *, follow_outside: bool = True) -> Iterator[Path]:
    """Yield the images that `walk` finds."""
    return (path for kind, path in walk(folder, follow_outside=follow_outside) if kind == IMAGE)
