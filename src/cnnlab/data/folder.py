"""`folder:PATH`: your own images, one sub-folder per class; `cnnlab.data.scan` finds them."""

from __future__ import annotations

from pathlib import Path

from cnnlab.data.files import Listing, Part
from cnnlab.data.scan import scan
from cnnlab.io.errors import CnnlabError
from cnnlab.io.text import escape


def listing(path: Path, *, complete: bool = True) -> Listing:
    """Return the image files of a folder.

    complete: see `scan`. Raises: CnnlabError for a folder without images or with a single class.
    """
    try:
        found = scan(path)
    except CnnlabError:
        if complete:
            raise
        found = scan(path, complete=False)
    warnings = []
    if found.repeated:
        inside, first = ", ".join(map(escape, found.repeated[:3])), escape(str(path / found.classes[0]))
        warnings.append(
            f"every class folder holds the sub-folders {inside}; if these are the classes, merge them into folders of "
            f"their own, or give one part, as folder:{first}"
        )
    if found.unlabelled:
        warnings.append(
            f"{len(found.unlabelled):,} images in {escape(str(found.unlabelled[0].parent))} have no class folder, so "
            "nothing can be measured on them; cnnlab predict classifies them"
        )
    parts = {split: Part(*found.listing(split)) for split in found.files}
    return Listing(path, str(path), found.classes, parts, dict(found.passed_over), warnings=tuple(warnings))
