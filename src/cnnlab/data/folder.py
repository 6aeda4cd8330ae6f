"""`folder:PATH`: your own images, one sub-folder per class; `cnnlab.data.scan` finds them."""

from __future__ import annotations

import re
from pathlib import Path

from cnnlab.data.files import Listing, Part
from cnnlab.data.scan import scan
from cnnlab.io.errors import CnnlabError
from cnnlab.io.text import escape
from cnnlab.io.walk import DOUBTFUL_FOLDERS


def listing(path: Path, *, complete: bool = True) -> Listing:
    """Return the image files of a folder.

    complete: see `scan`. Raise CnnlabError for a folder without images or with a single class.
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
    if doubtful := [name for name in found.classes if name.casefold() in DOUBTFUL_FOLDERS]:
        warnings.append(f"{escape(doubtful[0])} is a class; if the system made this folder, remove it")
    if found.unlabelled:
        first_image = found.unlabelled[0]
        start = f"{len(found.unlabelled):,} images in {escape(str(first_image.parent))} have no class folder"
        warnings.append(
            f"{start}, but their names begin with the class ({escape(first_image.name)}); to measure on them, put each "
            "into a sub-folder of its class; cnnlab predict classifies them as they are"
            if _begin_with_a_class(found.unlabelled, found.classes)
            else f"{start}, so nothing can be measured on them; cnnlab predict classifies them"
        )
    parts = {split: Part(*found.listing(split)) for split in found.files}
    return Listing(path, str(path), found.classes, parts, dict(found.passed_over), warnings=tuple(warnings))


def _begin_with_a_class(images: list[Path], classes: list[str]) -> bool:
    """Return whether each file is named after a class, as A_test.jpg and cat.1.jpg are; 1.jpg may be just a number."""
    words = sorted((c for c in classes if re.search(r"[^\W\d_]", c)), key=len, reverse=True)
    begins = re.compile(rf"({'|'.join(map(re.escape, words))})(?![^\W\d_])", re.IGNORECASE)
    return bool(words) and all(begins.match(image.name) for image in images)
