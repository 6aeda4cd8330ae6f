"""One image file -> (C, H, W) uint8, the same way for training and for prediction."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# These live where no torch is imported: the processes that decode need nothing else.
from cnnlab.data.decode import ENDINGS, FITS, BadImage, bombs_refused, decode, probe
from cnnlab.io.errors import CnnlabError

__all__ = ["ENDINGS", "FITS", "BadImage", "bombs_refused", "decode", "image_files", "probe"]


def image_files(folder: Path, *, outside: bool = True) -> Iterator[Path]:
    """Every file under `folder` whose name ends like an image's, hidden ones left out, in no particular order.

    outside: follow links that lead out of `folder`. Raises: CnnlabError for one, if they should not be followed.
    """
    seen: set[str] = set()
    home = os.path.realpath(folder)

    def check(path: str | Path) -> None:
        if not Path(os.path.realpath(path)).is_relative_to(home):
            raise CnnlabError(f"{str(path)!r} is a link that leads out of {folder}; put the images themselves there")

    for parent, folders, names in os.walk(folder, followlinks=True):
        here = os.path.realpath(parent)
        if here in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(here)
        if not outside:
            check(parent)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in ENDINGS:  # noqa: PTH122 - hot
                path = Path(parent, name)
                if path.is_file():  # not a pipe, which would never end
                    if not outside and path.is_symlink():
                        check(path)
                    yield path
