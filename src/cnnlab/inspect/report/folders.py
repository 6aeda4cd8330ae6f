"""Paths as a report shows them: a report is shared, and its readers need not know the folders of this machine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cnnlab.data import absolute
from cnnlab.training.runs import Run

# Entries left as they are: names of classes and images, and numbers, which do not contain the machine's folders.
_KEPT = {"classes", "rows", "history", "inside", "confusion", "counts"}


def paths_of(run: Run, data: Any = None) -> list[Path]:
    """Return the paths that a report about `run` may contain. data: the images given instead of the run's."""
    sources = [absolute(source) for source in (run.recipe.data, data) if isinstance(source, str)]
    texts: list[Any] = [source.partition(":")[2] for source in sources]
    texts += [run.builder.rpartition(":")[0], (run.info.get("from") or {}).get("run"), run.info["data"].get("data_dir")]
    paths = [path for path in map(Path, filter(None, texts)) if path.is_absolute()] + [run.path.absolute()]
    return [*paths, *(path.resolve() for path in paths)]


def shortened(paths: Iterable[Path]) -> dict[str, str]:
    """Return a short name for each path: its last part, or as many parts as distinguish it from the others."""
    parts = {str(path): path.parts[1:] for path in paths if len(path.parts) > 1}
    longest = max(map(len, parts.values()), default=0)
    names: dict[str, str] = {}
    for text, own in parts.items():
        others = {other for other in parts.values() if other != own}
        n = next((n for n in range(1, longest) if all(other[-n:] != own[-n:] for other in others)), longest)
        names[text] = "/".join(own[-n:])
    return {str(Path.home()): "~", **names} if len(Path.home().parts) > 1 else names


def without_folders(value: Any, names: dict[str, str]) -> Any:
    """Return a payload, or a part of it, with each path in its texts replaced by its name in `names`."""
    if isinstance(value, str):
        # The longest first: a run may lie in the folder of the images.
        for path in sorted(names, key=len, reverse=True):
            value = names[path].join(re.split(rf"(?<![\w.-]){re.escape(path)}(?!\w|[.-]\w)", value))
        return value
    if isinstance(value, dict):
        return {key: item if key in _KEPT else without_folders(item, names) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [without_folders(item, names) for item in value]
    return value
