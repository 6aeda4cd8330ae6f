"""A competition's CSV files: read labels, write and score a submission.

Ids and labels stay exactly as they are: a label `=cmd()` is written as these six characters, since Kaggle's program
reads them. A spreadsheet would take it for a formula; import such a file as text there.
"""

from __future__ import annotations

import csv
import io
import math
import re
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from cnnlab.io.csv import (
    FORBIDDEN,
    Table,
    column_index,
    first,
    near,
    plain_header,
    quoted,
    read_table,
    table_of,
    table_rows,
)
from cnnlab.io.errors import CnnlabError, expand, reason
from cnnlab.io.files import write_atomic

_ROUNDING = 0.02  # tolerance for the sum of a row's probabilities
_MOST_CLASSES = 2000  # the confusion matrix has its square


@dataclass(frozen=True)
class Written:
    """A written submission. backup: new path of an earlier file; changed: False if an identical file was there."""

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
    int64, number of images of each true class whose submitted label is not a class; they count as wrong; no_class: how
    often each such label was given; unscored: number of submitted ids without a true label; log_loss: the mean in nats
    if a probability for each class was submitted, None for labels.
    """

    path: Path
    classes: list[str]
    confusion: np.ndarray[Any, np.dtype[np.int64]]
    other: np.ndarray[Any, np.dtype[np.int64]]
    no_class: dict[str, int]
    unscored: int
    log_loss: float | None = None

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
        names = "accuracy", "correct", "count", "classes", "class_accuracy", "no_class", "unscored", "log_loss"
        arrays = {"path": str(self.path), "confusion": self.confusion.tolist(), "other": self.other.tolist()}
        return {name: getattr(self, name) for name in names} | arrays

    def __str__(self) -> str:
        bad = f"; {self.other.sum()} labels are not among the classes: {first(self.no_class)}" if self.no_class else ""
        rest = f"; {self.unscored} ids have no label and were not scored" if self.unscored else ""
        loss = "" if self.log_loss is None else f", log loss {self.log_loss:.4f}"
        return f"accuracy {self.accuracy:.4f} ({self.correct} of {self.count} images){loss}{bad}{rest}"


@dataclass(frozen=True)
class Truth:
    """True labels: `ids` and `labels`, N texts each; classes: the K different labels, sorted; path: for errors."""

    path: str
    ids: list[str]
    labels: list[str]
    classes: list[str]


def read_pairs(path: str | Path, id_column: str = "id", value_column: str = "label") -> tuple[list[str], list[str]]:
    """Read two columns of a CSV file: ids and values, N texts each, in the file's order. See `read_table`.

    Ids are unique and not empty; values may be empty. Raise CnnlabError naming the file, the line, and the remedy.
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
    -2, ... Raise CnnlabError for missing, extra and unknown ids or labels, and if the file cannot be written.
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
    rows = (wanted.columns, *((i, answers[i]) for i in order))
    return _write(path, [row if id_first else row[::-1] for row in rows])


def write_probabilities(
    path: str | Path, ids: Sequence[str], probabilities: np.ndarray[Any, Any], *, sample: str | Path | None,
    classes: Sequence[str], id_column: str = "id", label_column: str = "label",
) -> Written:  # fmt: skip
    """Write `ids` (N) with their `probabilities` (N, K), one column per class, as a submission, atomically.

    sample: as for `write_submission`; if it has a column for each class, it sets the order of columns, too. Raise the
    errors of `write_submission`.
    """
    columns, order = [id_column, *classes], list(ids)
    if sample is not None:
        with _reading(sample) as file:
            rows = table_rows(file, str(sample))
            _, header = next(rows)
            place = column_index(str(sample), header, id_column)
            order = [row[place] for _, row in rows]
        if has_class_columns(header, classes, label_column):
            where = dict(zip(_class_columns(str(sample), header, classes), classes, strict=True))
            if other := [h for i, h in enumerate(header) if i != place and i not in where]:
                raise CnnlabError(
                    f"{sample} has columns of other classes: {first(other)}; name the sample of this competition"
                )
            columns = [header[place].strip(), *(where[i] for i in range(len(header)) if i != place)]
            if place:
                raise CnnlabError(f"{sample}: the column {id_column!r} must be the first one")
        else:
            columns[0] = header[place].strip()
    _same_ids(ids, order, sample)
    if columns[0] in classes:
        raise CnnlabError(f"the column of ids and a class are both called {columns[0]!r}; rename the class")
    row_of, number = {i: n for n, i in enumerate(ids)}, [list(classes).index(c) for c in columns[1:]]
    body = ([i, *(f"{p:.7g}" for p in probabilities[row_of[i], number])] for i in order)
    return _write(expand(path), [columns, *body])


def has_class_columns(header: Sequence[str], classes: Collection[str], label_column: str = "label") -> bool:
    """Return whether a header has a column for at least one class, and no column of labels."""
    columns = set(map(plain_header, header))
    return plain_header(label_column) not in columns and any(plain_header(c) in columns for c in classes)


def _class_columns(name: str, header: list[str], classes: Sequence[str]) -> list[int]:
    """Return the index of each class's column. Raise CnnlabError if a class has none."""
    columns = set(map(plain_header, header))
    if missing := [c for c in classes if plain_header(c) not in columns]:
        raise CnnlabError(
            f"{name} has no column for {len(missing)} of the {len(classes)} classes ({first(missing)}); write one "
            "column of probabilities for each class"
        )
    return [column_index(name, header, c) for c in classes]


def _write(path: Path, rows: Iterable[Sequence[str]]) -> Written:
    """Write the rows of a submission, the header first. An existing file with other content is renamed."""
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\n")
    total = -1
    for row in rows:
        write.writerow(map(_plain, row))
        total += 1
    content = text.getvalue().encode()
    try:
        old = path.read_bytes() if path.exists() else None
        if old == content:
            return Written(path, total, changed=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        backup = None if old is None else _back_up(path, old)
        write_atomic(path, content)
    except OSError as error:
        raise CnnlabError(f"cannot write {path}: {reason(error)}; name another file, or free some space") from error
    return Written(path, total, backup)


def score(path: str | Path, labels_path: str | Path, *, id_column: str = "id", label_column: str = "label") -> Score:
    """Score the submission `path` against the true labels in `labels_path`, which have the same two columns.

    The labels may cover only some of the images (Kaggle scores 10,000 of 300,000); the other ids are counted, not
    scored. Raise CnnlabError if a labelled image is missing from the submission, or if a file cannot be read.
    """
    with _reading(path) as file:
        truth = read_truth(labels_path, id_column, label_column)
        return measure(file, truth, str(expand(path)), id_column, label_column)


def read_truth(path: str | Path, id_column: str = "id", label_column: str = "label") -> Truth:
    """Read true labels from a CSV file. Raise CnnlabError for empty labels, and for no class or too many."""
    table = _read(path, id_column, label_column)
    numeric = all(map(str.isdecimal, table.values))  # then 2 comes before 10
    classes = sorted(set(table.values), key=lambda c: (len(c) if numeric else 0, c))
    if "" in table.values or not 0 < len(classes) <= _MOST_CLASSES:
        what = f"{len(classes)} different labels in {label_column!r}, {table.values.count('')} rows without any"
        raise CnnlabError(f"{path}: {what}; name the file and the column that hold the true labels")
    return Truth(str(path), table.ids, table.values, classes)


def measure(
    file: IO[bytes], truth: Truth, name: str, id_column: str = "id", label_column: str = "label"
) -> Score:  # fmt: skip
    """Score a submission with labels, or with a probability for each class, and close the file. name: for errors.

    With probabilities, every column except the id is a class, and the most probable class is the label. Ties go to the
    first class in sorted order; classes without a true label come last.
    Raise CnnlabError if a labelled image is missing, if none of the labels is a class, or if the file cannot be read.
    """
    k, number = len(truth.classes), {c: i for i, c in enumerate(truth.classes)}
    rows = table_rows(file, name)
    _, header = next(rows)
    loss = None
    if has_class_columns(header, truth.classes, label_column):
        # The true labels of a few images may lack a class.
        place, known = column_index(name, header, id_column), _class_columns(name, header, truth.classes)
        taken = {place, *known}
        unknown = [i for i, h in enumerate(header) if h.strip() and i not in taken]
        if len(known + unknown) > _MOST_CLASSES:
            raise CnnlabError(f"{name} has {len(known + unknown)} columns of classes; hand in one for each class")
        names = [*truth.classes, *(header[i].strip() for i in unknown)]
        ids, p = _probabilities(rows, name, place, [*known, *unknown])
        where = _answers(ids, range(len(ids)), truth, name)
        p = p[[where[i] for i in truth.ids]]
        true = np.array([number[c] for c in truth.labels])
        eps = np.finfo(p.dtype).eps  # as in scikit-learn's log_loss: a certain error costs 36, not infinity
        loss = float(-np.log(np.clip(p[np.arange(len(p)), true], eps, 1 - eps)).mean())
        given = [names[j] for j in p.argmax(1)]
    else:
        table = table_of(chain([(1, header)], rows), name, id_column, label_column)
        ids, answers = table.ids, _answers(table.ids, table.values, truth, name)
        given = [answers[i] for i in truth.ids]
    confusion = np.zeros((k, k + 1), np.int64)
    for c, answer in zip(truth.labels, given, strict=True):
        confusion[number[c], number.get(answer, k)] += 1
    no_class = dict(Counter(answer for answer in given if answer not in number).most_common())
    if sum(no_class.values()) == len(truth.ids):
        given_label = next(iter(no_class))
        same = next((c for c in truth.classes if plain_header(c) == plain_header(given_label)), None)
        hint = f"write it exactly as {quoted(same)}" if same else near(given_label, truth.classes)
        raise CnnlabError(f"{name}: none of its labels is a class ({first(no_class)}); {hint}")
    unscored = len(ids) - len(truth.ids)
    return Score(Path(name), truth.classes, confusion[:, :k], confusion[:, k], no_class, unscored, loss)


T = TypeVar("T")


def _answers(ids: Sequence[str], values: Sequence[T], truth: Truth, name: str) -> dict[str, T]:
    """Return {id: value}. Raise CnnlabError if a labelled image is not among the ids."""
    answers = dict(zip(ids, values, strict=True))
    if missing := [i for i in truth.ids if i not in answers]:
        plain = {_plain_id(i): i for i in ids}
        if other := next((plain[_plain_id(i)] for i in missing if _plain_id(i) in plain), None):
            wanted = next(i for i in missing if _plain_id(i) == _plain_id(other))
            raise CnnlabError(
                f"{name} writes ids differently from {truth.path}: {quoted(other)} for {quoted(wanted)}; write them "
                "exactly like that, as Kaggle requires"
            )
        raise CnnlabError(
            f"{name} lacks {len(missing)} ids of {truth.path} ({first(missing)}); add a row for every image"
        )
    return answers


def _plain_id(text: str) -> str:
    """Return an id without its folder, extension, leading zeros and the `.0` of a number: `test/007.png` -> 7."""
    name = re.split(r"[/\\]", text.strip())[-1]
    name = re.sub(r"\.(0+|[A-Za-z]\w{1,4})$", "", name).casefold()
    return name.lstrip("0") or name


def _probabilities(
    rows: Iterator[tuple[int, list[str]]], name: str, place: int, columns: Sequence[int]
) -> tuple[list[str], np.ndarray[Any, np.dtype[np.float64]]]:
    """Return N ids and (N, K) probabilities, each row divided by its sum. Raise CnnlabError.

    rows: without the header; place: index of the id column; columns: indices of the K classes' columns. A decimal comma
    is accepted.
    """
    lines: dict[str, int] = {}
    values = array("d")
    for line, row in rows:
        try:
            p = [float(row[i].replace(",", ".")) for i in columns]
        except ValueError:
            p = [math.nan]
        total = sum(p)
        if lines.setdefault(row[place], line) != line:
            fault = f"{quoted(row[place])} is also on line {lines[row[place]]}; remove one of them"
        elif not all(0 <= value <= 1 for value in p):
            fault = f"the columns of the classes must hold probabilities between 0 and 1, not {first(row, 4)}"
        elif abs(total - 1) > _ROUNDING:
            fault = f"the probabilities add up to {total:.4g}; they must add up to 1"
        else:
            values.extend(value / total for value in p)
            continue
        raise CnnlabError(f"{name}, line {line}: {fault}")
    return list(lines), np.array(values).reshape(-1, len(columns))


@contextmanager
def _reading(path: str | Path) -> Iterator[IO[bytes]]:
    try:
        with expand(path).open("rb") as file:
            yield file
    except OSError as error:
        raise CnnlabError(f"cannot read {path}: {reason(error)}; name a CSV file") from error


def _read(path: str | Path, id_column: str, value_column: str) -> Table:
    with _reading(path) as file:
        return read_table(file, str(path), id_column, value_column)


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
    if not field.strip() or FORBIDDEN.search(field):
        raise CnnlabError(f"{quoted(field)} cannot be in a submission; ids and labels are one line of text, not empty")
    return field
