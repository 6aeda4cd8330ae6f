"""CSV files of a competition: reading labels, writing and checking a submission, scoring one.

Ids and labels are data and stay as they are: a label `=cmd()` is written as those six characters, since the reader is
Kaggle's program. A spreadsheet would take it for a formula; open such a file there as text.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from cnnlab.errors import CnnlabError, reason
from cnnlab.files import write_atomic

_MOST_ROWS = 5_000_000
_LONGEST_LINE = 1 << 20  # characters; a file without line ends must not fill the memory
_MOST_CLASSES = 2000  # the confusion matrix has the square of it
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # surrogates stand for bytes that are not UTF-8


@dataclass(frozen=True)
class Written:
    """What `write_submission` did. kept: the name that the earlier file has now; changed: False if it was identical."""

    path: Path
    rows: int
    kept: Path | None = None
    changed: bool = True

    def __str__(self) -> str:
        note = f"; the earlier one is now {self.kept}" if self.kept else "" if self.changed else ", as it was"
        return f"{self.path}: {self.rows} rows{note}"


@dataclass(frozen=True)
class Check:
    """A valid submission. labels: how often each was given."""

    path: Path
    rows: int
    labels: dict[str, int]

    def __str__(self) -> str:
        return f"{self.path} is valid: {self.rows} rows, {len(self.labels)} labels"


@dataclass(frozen=True, eq=False)
class Score:
    """A submission measured against labels.

    classes: the K labels of the labels file, sorted; confusion: (K, K) int64, row = true class, column = predicted
    class; other: (K,) int64, images of each true class whose submitted label is no class: they count as wrong, and
    `no_class` tells how often each such label was given; unscored: ids of the submission that the labels lack.
    """

    path: Path
    classes: list[str]
    confusion: np.ndarray[Any, np.dtype[np.int64]]
    other: np.ndarray[Any, np.dtype[np.int64]]
    no_class: dict[str, int]
    unscored: int

    @property
    def count(self) -> int:
        """Images scored."""
        return int(self.confusion.sum() + self.other.sum())

    @property
    def correct(self) -> int:
        """Images whose label is right."""
        return int(self.confusion.trace())

    @property
    def accuracy(self) -> float:
        """Share of the scored images whose label is right."""
        return self.correct / self.count

    @property
    def class_accuracy(self) -> list[float]:
        """Of each class, the share of its images whose label is right. (Every class has an image.)"""
        return [float(s) for s in self.confusion.diagonal() / (self.confusion.sum(1) + self.other)]

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        names = "accuracy", "correct", "count", "classes", "class_accuracy", "no_class", "unscored"
        arrays = {"path": str(self.path), "confusion": self.confusion.tolist(), "other": self.other.tolist()}
        return {name: getattr(self, name) for name in names} | arrays

    def __str__(self) -> str:
        bad = f"; {self.other.sum()} labels are no class: {_first(self.no_class)}" if self.no_class else ""
        rest = f"; {self.unscored} ids have no label and were not scored" if self.unscored else ""
        return f"accuracy {self.accuracy:.4f} ({self.correct} of {self.count} images){bad}{rest}"


def read_pairs(path: Path, id_column: str = "id", value_column: str = "label") -> tuple[list[str], list[str]]:
    """Two columns of a CSV file with a header: (ids, values), each of N texts, in the file's order.

    UTF-8 with or without a byte order mark, any line ends, quoted fields; other columns and blank lines are passed
    over. Ids are unique and not empty; values may be empty. Neither is stripped.
    Raises: CnnlabError naming the file, mostly the line, and the remedy.
    """
    return _read(path, id_column, value_column)[1:]


def write_submission(
    path: Path, ids: Sequence[str], labels: Sequence[str], *, sample: Path | None, classes: Collection[str],
    id_column: str = "id", label_column: str = "label", overwrite: bool = False,
) -> Written:  # fmt: skip
    """Write `ids` (N) with their `labels` (N) as a submission, atomically.

    sample: the competition's sample submission: its ids must be ours, and its order of rows and of the two columns is
    kept; None: in the order given. classes: the labels there are. A file that is there already, with other content,
    is kept as submission-1.csv, -2, ...; with `overwrite` it is replaced.
    Raises: CnnlabError for ids or labels that do not belong, and where the file cannot be written.
    """
    if len(ids) != len(labels):
        raise ValueError(f"want a label for each id, not {len(ids)} ids and {len(labels)} labels")
    id_first, order = True, list(ids)
    if sample is not None:
        id_first, order, _ = _read(sample, id_column, label_column)
    _same_ids(ids, order, "the predictions", sample)
    _known_labels(labels, classes, "the predictions")
    answers = dict(zip(ids, labels, strict=True))
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\n")
    for row in ((id_column, label_column), *((i, answers[i]) for i in order)):
        write.writerow([_plain(field) for field in (row if id_first else row[::-1])])
    content = text.getvalue().encode()
    try:
        old = path.read_bytes() if path.exists() else None
        if old == content:
            return Written(path, len(order), changed=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = None if old is None or overwrite else _keep(path, old)
        write_atomic(path, content)
    except OSError as error:
        raise CnnlabError(f"cannot write {path}: {reason(error)}; free some space or name another file") from error
    return Written(path, len(order), kept)


def check_submission(
    path: Path, sample: Path, classes: Collection[str] | None = None, *, id_column: str = "id",
    label_column: str = "label",
) -> Check:  # fmt: skip
    """Is `path` a submission that Kaggle would take: each id of `sample` exactly once, labels among `classes`?

    classes: None lets any label pass that is not empty. Raises: CnnlabError that says what is wrong.
    """
    ids, labels = read_pairs(path, id_column, label_column)
    _same_ids(ids, read_pairs(sample, id_column, label_column)[0], str(path), sample)
    _known_labels(labels, classes, str(path))
    return Check(path, len(ids), dict(sorted(Counter(labels).items())))


def score(path: Path, labels_path: Path, *, id_column: str = "id", label_column: str = "label") -> Score:
    """Measure the submission `path` against the true labels in `labels_path`; both have the two columns.

    The labels may be fewer than the answers (Kaggle scores 10,000 of 300,000): other ids are counted, not scored.
    Raises: CnnlabError where an image of the labels has no answer, and where a file cannot be read.
    """
    ids, given = read_pairs(path, id_column, label_column)
    true_ids, true = read_pairs(labels_path, id_column, label_column)
    numeric = all(map(str.isdecimal, true))  # then 2 comes before 10
    classes = sorted(set(true), key=lambda c: (len(c) if numeric else 0, c))
    if "" in true or not 0 < len(classes) <= _MOST_CLASSES:
        what = f"{len(classes)} different labels in {label_column!r}, {true.count('')} rows without any"
        raise CnnlabError(f"{labels_path}: {what}; name the file and the column that hold the true labels")
    answers = dict(zip(ids, given, strict=True))
    if missing := [i for i in true_ids if i not in answers]:
        raise CnnlabError(f"{path} lacks {len(missing)} ids of {labels_path} ({_first(missing)}); answer every image")
    k, number = len(classes), {c: i for i, c in enumerate(classes)}
    confusion = np.zeros((k, k + 1), np.int64)
    for i, c in zip(true_ids, true, strict=True):
        confusion[number[c], number.get(answers[i], k)] += 1
    no_class = dict(Counter(answers[i] for i in true_ids if answers[i] not in number).most_common())
    return Score(path, classes, confusion[:, :k], confusion[:, k], no_class, len(ids) - len(true_ids))


def _read(path: Path, id_column: str, value_column: str) -> tuple[bool, list[str], list[str]]:
    """Does the column of the ids come first; the ids; the values."""
    try:
        # What is not UTF-8 becomes surrogates, which _lines finds: so the error can name the line.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            return _parse(path, csv.reader(_lines(path, file), strict=True), id_column.strip(), value_column.strip())
    except OSError as error:
        raise CnnlabError(f"cannot read {path}: {reason(error)}; name a CSV file that is there") from error


def _parse(path: Path, reader: Any, id_column: str, value_column: str) -> tuple[bool, list[str], list[str]]:
    width, place, other, line = 0, 0, 0, 1  # number of columns, where the id and the value are; where the row begins
    seen: dict[str, int] = {}  # id -> its line
    values: list[str] = []
    try:
        for row in reader:
            start, line = line, reader.line_num + 1
            if not row or (len(row) == 1 and not row[0].strip()):
                continue
            if not width:
                width, place, other = len(row), _column(path, row, id_column), _column(path, row, value_column)
                continue
            if len(row) != width:
                fault = f"{len(row)} fields, but the header has {width}; mend that line"
            elif not row[place].strip():
                fault = f"the {id_column!r} is empty; fill it in or remove the line"
            elif row[place] in seen:
                fault = f"{_show(row[place])} was on line {seen[row[place]]} already; remove one of the two"
            elif len(values) == _MOST_ROWS:
                fault = f"over {_MOST_ROWS:,} rows; name the right file"
            else:
                seen[row[place]] = start
                values.append(row[other])
                continue
            raise CnnlabError(f"{path}, line {start}: {fault}")
    except csv.Error as error:
        raise CnnlabError(f"{path}, line {line}: {reason(error)}; mend or close the quotes from there on") from error
    if not width:
        raise CnnlabError(f"{path} is empty; it should start with a header that names its columns")
    return place <= other, list(seen), values


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    """The lines of `file`, each known to be text and not endless."""
    for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), ""), 1):
        if len(line) == _LONGEST_LINE or _NO_TEXT.search(line):
            what = f"over {_LONGEST_LINE:,} characters" if len(line) == _LONGEST_LINE else "not UTF-8 text"
            raise CnnlabError(f"{path}, line {number}: {what}; save the table as CSV in UTF-8")
        yield line


def _column(path: Path, header: list[str], name: str) -> int:
    names = [h.strip() for h in header]
    if names.count(name) == 1:
        return names.index(name)
    if name in names:
        raise CnnlabError(f"{path}: its header has {names.count(name)} columns {name!r}; rename all but one")
    hint = "; separate columns by commas" if len(header) == 1 and {";", "\t"} & set(header[0]) else ""
    raise CnnlabError(f"{path}: no column {name!r}; {_near(name, names[:1000])}{hint}")


def _same_ids(ids: Sequence[str], wanted: Sequence[str], whose: str, sample: Path | None) -> None:
    have, need = Counter(ids), set(wanted)
    faults = {
        f"ids of {sample} are missing": [i for i in wanted if i not in have],
        f"ids are not in {sample}": [i for i in have if i not in need],
        "ids are there more than once": [i for i, n in have.items() if n > 1],
    }
    texts = [f"{len(found)} {what} ({_first(found)})" for what, found in faults.items() if found]
    if texts or not ids:
        raise CnnlabError(f"{whose}: {'; '.join(texts) or 'no ids'}; each image must have exactly one row")


def _known_labels(labels: Sequence[str], classes: Collection[str] | None, whose: str) -> None:
    known = None if classes is None else set(classes)
    bad = Counter(label for label in labels if (not label.strip() if known is None else label not in known))
    if bad:
        remedy = _near(next(iter(bad)), sorted(known)) if known else "give each image its label"
        raise CnnlabError(f"{whose}: {bad.total()} labels are no class ({_first(bad)}); {remedy}")


def _keep(path: Path, content: bytes) -> Path:
    names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(1))
    kept = next(name for name in names if not name.exists())  # the first free one
    kept.touch(exist_ok=False)  # claims the name: fails where another process was quicker
    try:
        write_atomic(kept, content)
    except BaseException:
        kept.unlink()
        raise
    return kept


def _plain(field: str) -> str:
    if not field.strip() or {"\r", "\n"} & set(field) or _NO_TEXT.search(field):
        raise CnnlabError(f"{_show(field)} cannot stand in a submission; ids and labels are a line of UTF-8, not empty")
    return field


def _show(text: str) -> str:
    # repr: a control character in somebody's file must not reach the terminal
    return repr(text if len(text) <= 60 else text[:60] + "...")


def _near(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, cutoff=0.5)
    return f"did you mean {' or '.join(map(_show, near))}?" if near else f"known: {_first(names, 20)}"


def _first(found: Collection[str], most: int = 3) -> str:
    return ", ".join(map(_show, islice(found, most))) + (", ..." if len(found) > most else "")
