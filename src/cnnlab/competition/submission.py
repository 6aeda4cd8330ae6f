"""A competition's CSV files: read labels, write and score a submission.

Ids and labels stay exactly as they are: a label `=cmd()` is written as these six characters, since Kaggle's program
reads them. A spreadsheet would take it for a formula; import such a file as text there.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from cnnlab.io.csv import UNFIT, Table, first, near, quoted, read_table
from cnnlab.io.errors import CnnlabError, expand, reason
from cnnlab.io.files import write_atomic

_MOST_CLASSES = 2000  # the confusion matrix has the square of it


@dataclass(frozen=True)
class Written:
    """A written submission. backup: new name of an earlier file; changed: False if an identical file was there."""

    path: Path
    rows: int
    backup: Path | None = None
    changed: bool = True

    def __str__(self) -> str:
        note = f"; the earlier one is now {self.backup}" if self.backup else "" if self.changed else ", unchanged"
        return f"{self.path}: {self.rows} rows{note}"


@dataclass(frozen=True, eq=False)
class Score:
    """A submission scored against the true labels.

    classes: the K labels, sorted; confusion: (K, K) int64, row = true class, column = predicted class; other: (K,)
    int64, images of each true class whose submitted label is no class, which count as wrong; no_class: how often each
    such label was given; unscored: number of the submission's ids without a true label.
    """

    path: Path
    classes: list[str]
    confusion: np.ndarray[Any, np.dtype[np.int64]]
    other: np.ndarray[Any, np.dtype[np.int64]]
    no_class: dict[str, int]
    unscored: int

    @property
    def count(self) -> int:
        """Number of scored images."""
        return int(self.confusion.sum() + self.other.sum())

    @property
    def correct(self) -> int:
        """Number of correct labels."""
        return int(self.confusion.trace())

    @property
    def accuracy(self) -> float:
        """Fraction of the scored images with the correct label."""
        return self.correct / self.count

    @property
    def class_accuracy(self) -> list[float]:
        """Fraction of each class's images with the correct label. (Every class has an image.)"""
        return [float(s) for s in self.confusion.diagonal() / (self.confusion.sum(1) + self.other)]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        names = "accuracy", "correct", "count", "classes", "class_accuracy", "no_class", "unscored"
        arrays = {"path": str(self.path), "confusion": self.confusion.tolist(), "other": self.other.tolist()}
        return {name: getattr(self, name) for name in names} | arrays

    def __str__(self) -> str:
        bad = f"; {self.other.sum()} labels are not among the classes: {first(self.no_class)}" if self.no_class else ""
        rest = f"; {self.unscored} ids have no label and were not scored" if self.unscored else ""
        return f"accuracy {self.accuracy:.4f} ({self.correct} of {self.count} images){bad}{rest}"


@dataclass(frozen=True)
class Truth:
    """True labels: `ids` and `labels`, N texts each; classes: the K different ones, sorted; path: for errors."""

    path: str
    ids: list[str]
    labels: list[str]
    classes: list[str]


def read_pairs(path: str | Path, id_column: str = "id", value_column: str = "label") -> tuple[list[str], list[str]]:
    """Read two columns of a CSV file: ids and values, N texts each, in the file's order. See `read_table`.

    Ids are unique and not empty; values may be empty. Raises: CnnlabError naming the file, the line, and the remedy.
    """
    table = _read(path, id_column, value_column)
    return table.ids, table.values


def write_submission(
    path: str | Path, ids: Sequence[str], labels: Sequence[str], *, sample: str | Path | None,
    classes: Collection[str], id_column: str = "id", label_column: str = "label",
) -> Written:  # fmt: skip
    """Write `ids` (N) with their `labels` (N) as a submission, atomically.

    sample: the competition's sample submission, which has the same ids and sets the order of rows and columns; None:
    the order given. classes: the possible labels. An existing file with other content is renamed to submission-1.csv,
    -2, ... Raises: CnnlabError for missing, extra and unknown ids or labels, and if the file cannot be written.
    """
    if len(ids) != len(labels):
        raise ValueError(f"expected a label per id, got {len(ids)} ids and {len(labels)} labels")
    path = expand(path)
    wanted = Table(True, list(ids), [], (id_column, label_column))
    if sample is not None:
        wanted = _read(sample, id_column, label_column)
    id_first, order = wanted.id_first, wanted.ids
    _same_ids(ids, order, sample)
    _known_labels(labels, classes)
    answers = dict(zip(ids, labels, strict=True))
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\n")
    for row in (wanted.columns, *((i, answers[i]) for i in order)):
        write.writerow([_plain(field) for field in (row if id_first else row[::-1])])
    content = text.getvalue().encode()
    try:
        old = path.read_bytes() if path.exists() else None
        if old == content:
            return Written(path, len(order), changed=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        backup = None if old is None else _back_up(path, old)
        write_atomic(path, content)
    except OSError as error:
        raise CnnlabError(f"cannot write {path}: {reason(error)}; name another file, or free some space") from error
    return Written(path, len(order), backup)


def score(path: str | Path, labels_path: str | Path, *, id_column: str = "id", label_column: str = "label") -> Score:
    """Score the submission `path` against the true labels in `labels_path`, which have the same two columns.

    The labels may be of fewer images (Kaggle scores 10,000 of 300,000): other ids are counted, not scored. Raises:
    CnnlabError if a labelled image has no answer, or if a file cannot be read.
    """
    given = _read(path, id_column, label_column)
    return measure(given, read_truth(labels_path, id_column, label_column), expand(path))


def read_truth(path: str | Path, id_column: str = "id", label_column: str = "label") -> Truth:
    """Read the true labels of a CSV file. Raises: CnnlabError for empty labels, and for no class or too many."""
    table = _read(path, id_column, label_column)
    numeric = all(map(str.isdecimal, table.values))  # then 2 comes before 10
    classes = sorted(set(table.values), key=lambda c: (len(c) if numeric else 0, c))
    if "" in table.values or not 0 < len(classes) <= _MOST_CLASSES:
        what = f"{len(classes)} different labels in {label_column!r}, {table.values.count('')} rows without any"
        raise CnnlabError(f"{path}: {what}; name the file and the column that hold the true labels")
    return Truth(str(path), table.ids, table.values, classes)


def measure(given: Table, truth: Truth, path: str | Path) -> Score:
    """Score the rows of a submission, whose name is `path`. Raises: CnnlabError if a labelled image has no answer."""
    answers = dict(zip(given.ids, given.values, strict=True))
    if missing := [i for i in truth.ids if i not in answers]:
        raise CnnlabError(f"{path} lacks {len(missing)} ids of {truth.path} ({first(missing)}); answer every image")
    k, number = len(truth.classes), {c: i for i, c in enumerate(truth.classes)}
    confusion = np.zeros((k, k + 1), np.int64)
    for i, c in zip(truth.ids, truth.labels, strict=True):
        confusion[number[c], number.get(answers[i], k)] += 1
    no_class = dict(Counter(answers[i] for i in truth.ids if answers[i] not in number).most_common())
    if sum(no_class.values()) == len(truth.ids):
        hint = near(next(iter(no_class)), truth.classes)
        raise CnnlabError(f"{path}: none of its labels is a class ({first(no_class)}); {hint}")
    unscored = len(given.ids) - len(truth.ids)
    return Score(Path(path), truth.classes, confusion[:, :k], confusion[:, k], no_class, unscored)


def _read(path: str | Path, id_column: str, value_column: str) -> Table:
    try:
        with expand(path).open("rb") as file:
            return read_table(file, str(path), id_column, value_column)
    except OSError as error:
        raise CnnlabError(f"cannot read {path}: {reason(error)}; name a CSV file") from error


def _same_ids(ids: Sequence[str], wanted: Sequence[str], sample: str | Path | None) -> None:
    have, need = Counter(ids), set(wanted)
    faults = {
        f"ids of {sample} are missing": [i for i in wanted if i not in have],
        f"ids are not in {sample}": [i for i in have if i not in need],
        "ids occur more than once": [i for i, n in have.items() if n > 1],
    }
    texts = [f"{len(found)} {what} ({first(found)})" for what, found in faults.items() if found]
    if texts or not ids:
        raise CnnlabError(f"the predictions: {'; '.join(texts) or 'no ids'}; each image must have exactly one row")


def _known_labels(labels: Sequence[str], classes: Collection[str]) -> None:
    known = set(classes)
    bad = Counter(label for label in labels if label not in known)
    if bad:
        hint = near(next(iter(bad)), sorted(known))
        raise CnnlabError(f"the predictions: {bad.total()} labels are not among the classes ({first(bad)}); {hint}")


def _back_up(path: Path, content: bytes) -> Path:
    names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(1))
    backup = next(name for name in names if not name.exists())
    backup.touch(exist_ok=False)  # fails if another process has taken the name
    try:
        write_atomic(backup, content)
    except BaseException:
        backup.unlink()
        raise
    return backup


def _plain(field: str) -> str:
    if not field.strip() or UNFIT.search(field):
        raise CnnlabError(f"{quoted(field)} cannot be in a submission; ids and labels are one line of text, not empty")
    return field
