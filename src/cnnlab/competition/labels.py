"""Check a table of labels against its images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnlab.competition.layout import match_all, member_ids
from cnnlab.data.archives import open_archive
from cnnlab.io.csv import first, read_table
from cnnlab.io.errors import CnnlabError, expand, reason


@dataclass(frozen=True)
class LabelCheck:
    """The result of the check.

    rows, images: their numbers; classes: label -> number of its ids; faults: description -> ids or names.
    """

    table: str
    rows: int
    images: int
    classes: dict[str, int]
    faults: dict[str, list[str]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dict(vars(self))

    def __str__(self) -> str:
        lines = [f"{self.table}: {self.rows:,} rows, {len(self.classes)} classes; {self.images:,} images"]
        lines += [f"{len(names):,} {what}: {first(names)}" for what, names in self.faults.items()]
        return "\n".join(lines if self.faults else [*lines, "every image has one label, every label an image"])


def check_labels(
    table: str | Path,
    images: str | Path,
    *,
    id_column: str = "id",
    label_column: str = "label",
    classes: Collection[str] = (),
) -> LabelCheck:
    """Compare a CSV of ids and labels with the file names in a folder or an archive of images.

    classes: the expected labels. Without them, a label is only suspicious if it differs from another by nothing but
    case or spaces. Raise CnnlabError for a table or an archive that cannot be read.
    """
    path = expand(table)
    try:
        with path.open("rb") as file:
            rows = read_table(file, str(path), id_column, label_column, repeats=True)
    except OSError as error:
        raise CnnlabError(f"cannot read {path}: {reason(error)}; name a CSV file") from error
    with closing(open_archive(expand(images))) as archive:
        ids = member_ids(archive)
        names = [member.name for member in archive.members]
    labels: dict[str, str] = {}
    repeated = []
    for text, label in zip(rows.ids, rows.values, strict=True):
        if text in labels:
            repeated.append((text, label))
        labels.setdefault(text, label)
    matched, lost, again = match_all(labels, ids)
    counts = Counter(label for label in labels.values() if label.strip())
    spellings: dict[str, list[str]] = {}
    for name in counts:
        spellings.setdefault(" ".join(name.split()).casefold(), []).append(name)
    faults = {
        "ids are repeated with the same label": [text for text, label in repeated if labels[text] == label],
        "ids are repeated with another label": [text for text, label in repeated if labels[text] != label],
        "ids have no label": [text for text, label in labels.items() if not label.strip()],
        "ids have no image": lost,
        "ids refer to an image that already has a row": [text for _, text in again],
        "images have no row": [name for i, name in enumerate(names) if i not in matched],
        "labels are not among the classes": sorted(set(counts) - set(classes)) if classes else [],
        "classes have no row": sorted(set(classes) - set(counts)),
        "labels differ from another by case or spaces only": [
            name for group in spellings.values() if len(group) > 1 for name in group
        ],
    }
    faults = {what: found for what, found in faults.items() if found}
    return LabelCheck(str(path), len(rows.ids), len(names), dict(counts.most_common()), faults)
