"""A table of labels against the images that it labels: what is missing, too much, there twice, or spelt in two ways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnlab.competition.layout import match, member_ids
from cnnlab.data.archives import open_archive
from cnnlab.io.csv import first, read_table
from cnnlab.io.errors import CnnlabError, expand, reason

_FEW = 3
# What may be wrong, in the order of telling.
_SAME, _OTHER, _EMPTY, _LOST, _AGAIN, _SPARE, _UNKNOWN, _UNUSED, _SPELT = _FAULTS = (
    "ids are there again, with the same label",
    "ids are there again, with another label",
    "ids have no label",
    "ids have no image",
    "ids mean an image that has a row already",
    "images have no row",
    "labels are no class",
    "classes have no row",
    "labels differ from another by case or spaces alone",
)


@dataclass(frozen=True)
class LabelCheck:
    """A table of labels against images: lines that say what is wrong, and all that each is about.

    rows, images: how many there are; faults: what -> the ids or names.
    """

    table: Path
    rows: int
    images: int
    classes: dict[str, int]
    faults: dict[str, list[str]]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "table": str(self.table),
            "rows": self.rows,
            "images": self.images,
            "classes": self.classes,
            "faults": self.faults,
        }

    def __str__(self) -> str:
        lines = [f"{self.table}: {self.rows:,} rows, {len(self.classes)} classes; {self.images:,} images"]
        lines += [f"{len(names):,} {what}: {first(names, _FEW)}" for what, names in self.faults.items()]
        return "\n".join(lines if self.faults else [*lines, "each image has one label, each label an image"])


def check_labels(
    table: str | Path,
    images: str | Path,
    *,
    id_column: str = "id",
    label_column: str = "label",
    classes: Collection[str] = (),
) -> LabelCheck:
    """Compare a CSV of ids and labels with a folder or an archive of images, of which only the names are read.

    classes: those that there should be; unsaid, only labels that differ from another by case or spaces alone are
    suspicious. Raises: CnnlabError for a table or an archive that cannot be read.
    """
    path = expand(table)
    try:
        with path.open("rb") as file:
            found = read_table(file, str(path), id_column, label_column, repeats=True)
    except OSError as error:
        raise CnnlabError(f"cannot read {path}: {reason(error)}; name a CSV file that is there") from error
    with closing(open_archive(expand(images))) as archive:
        ids = member_ids(archive)
        names = [member.name for member in archive.members]
    labels: dict[str, str] = {}
    owner: dict[int, str] = {}  # of each image, the id that means it
    faults: dict[str, list[str]] = {what: [] for what in _FAULTS}
    for text, label in zip(found.ids, found.values, strict=True):
        if text in labels:
            faults[_SAME if labels[text] == label else _OTHER].append(text)
            continue
        labels[text] = label
        if not label.strip():
            faults[_EMPTY].append(text)
        index = match(text, ids)
        if index is None:
            faults[_LOST].append(text)
        elif owner.setdefault(index, text) != text:
            faults[_AGAIN].append(text)
    faults[_SPARE] = [name for i, name in enumerate(names) if i not in owner]
    counts = Counter(label for label in labels.values() if label.strip())
    faults[_UNKNOWN] = sorted(set(counts) - set(classes)) if classes else []
    faults[_UNUSED] = sorted(set(classes) - set(counts))
    alike_names: dict[str, list[str]] = {}
    for name in counts:
        alike_names.setdefault(" ".join(name.split()).casefold(), []).append(name)
    faults[_SPELT] = [name for group in alike_names.values() if len(group) > 1 for name in group]
    told = {what: list_ for what, list_ in faults.items() if list_}
    return LabelCheck(path, len(found.ids), len(names), dict(counts.most_common()), told)
