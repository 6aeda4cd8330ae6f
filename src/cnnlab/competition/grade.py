"""Grading: one submission, or those of a whole class, scored against the true labels.

Files come from people who are learning: every one gets a line, with its score or with the reason why it has none, and
no file stops the others. Nothing in it is run or followed: links are named, not opened, and what a student has written
stands in the table of grades as text, never as a spreadsheet's formula.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import stat
import statistics
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cnnlab.competition.submission import Score, Truth, measure, read_truth
from cnnlab.data.imageset import Report, no_report
from cnnlab.io import figures as plots
from cnnlab.io.csv import first, read_table
from cnnlab.io.errors import CnnlabError, expand, reason
from cnnlab.io.files import write_atomic
from cnnlab.io.text import cell, escape
from cnnlab.training.folders import named_folder

STATUS = ("scored", "refused", "missing")
TABLE, PICTURE = "grades.csv", "grades.png"
COLUMNS = ("student", "status", "accuracy", "correct", "images", "file", "note")
USUAL = "submission.csv"  # the file that counts where a student's folder has several

_LARGEST = 32 << 20  # bytes of a submission; one for 300,000 images takes 4 MB
_DEEPEST = 4  # folders inside a student's folder that are searched
_MOST_ENTRIES = 10_000  # files and folders in a class's folder, and in each student's
# What systems and archives leave behind. Hidden files are passed over, too.
_LITTER = {"__macosx", "thumbs.db", "desktop.ini"}
# What students hand in under the name of a CSV file, by its first bytes: the reason may as well say what it is.
_OTHERS = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"%PDF": "a PDF document",
}
_PACKED = (".zip", ".gz", ".tgz", ".7z", ".rar", ".tar", ".bz2", ".xz")


@dataclass(frozen=True)
class Grade:
    """A student's line. status: scored, refused (the note says why) or missing (nothing was handed in).

    student, file, note: text that is safe to show; file: relative to the folder of submissions, "" without one.
    """

    student: str
    status: str
    file: str = ""
    score: Score | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain values; without a score accuracy, correct and images are None."""
        score = self.score
        return {
            "student": self.student,
            "status": self.status,
            "accuracy": score.accuracy if score else None,
            "correct": score.correct if score else None,
            "images": score.count if score else None,
            "file": self.file,
            "note": self.note,
        }


@dataclass(frozen=True)
class Grades:
    """A class's grades, by name. images: how many the labels have; left_out: entries that are nobody's submission."""

    labels: str
    images: int
    rows: list[Grade]
    left_out: list[str]

    @property
    def accuracies(self) -> list[float]:
        """Of those that were scored."""
        return [row.score.accuracy for row in self.rows if row.score]

    def count(self, status: str) -> int:
        """Students with that status."""
        return sum(row.status == status for row in self.rows)

    def __str__(self) -> str:
        found = self.accuracies
        told = f", median accuracy {statistics.median(found):.4f}" if found else ""
        parts = [f"{self.count('scored')} scored{told}"]
        parts += [f"{n} {what}" for what in STATUS[1:] if (n := self.count(what))]
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        found = self.accuracies
        return {
            "labels": self.labels,
            "images": self.images,
            **{status: self.count(status) for status in STATUS},
            "mean": statistics.mean(found) if found else None,
            "median": statistics.median(found) if found else None,
            "students": [row.to_dict() for row in self.rows],
            "left_out": self.left_out,
        }

    def to_csv(self) -> str:
        """The table for a spreadsheet: a byte order mark, so that names in any script are read right; no formulas."""
        text = io.StringIO()
        write = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
        write.writerow(COLUMNS)
        for row in self.rows:
            values = row.to_dict()
            if row.score:
                values["accuracy"] = f"{row.score.accuracy:.6f}"
            write.writerow(["" if values[c] is None else cell(str(values[c])) for c in COLUMNS])
        return "\ufeff" + text.getvalue()

    def save(self, out: str | Path | None = None) -> Path:
        """Write grades.csv and grades.png into the folder `out`, unsaid a free one in runs; returns it.

        Raises: CnnlabError where it has such files already, or cannot be written.
        """
        check_out(out)
        picture = plots.png(plots.grades(self.accuracies, str(self)))
        folder = named_folder(Path("runs"), None, "grades") if out is None else expand(out)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / TABLE, self.to_csv())
            write_atomic(folder / PICTURE, picture)
        except OSError as error:
            raise CnnlabError(f"cannot write into {folder}: {reason(error)}; name another folder with --out") from error
        return folder


def check_out(out: str | Path | None) -> None:
    """Raises: CnnlabError where the folder `out` has grades already: they may have been worked on since."""
    if out is None:
        return
    for name in (TABLE, PICTURE):
        if (expand(out) / name).exists():
            raise CnnlabError(f"{expand(out) / name} exists; name another folder with --out")


def grade(
    submissions: str | Path | None,
    labels: str | Path,
    *,
    roster: str | Path | None = None,
    id_column: str = "id",
    label_column: str = "label",
    out: str | Path | None = None,
    report: Report = no_report,
) -> Grades:
    """Score a submission, or those of a class, against the true labels in the CSV file `labels`.

    submissions: a CSV file, or a folder with a CSV file or a folder for each student; the name of the file or folder
    is the student's. In a student's folder the only CSV file counts, of several the one named submission.csv.
    roster: who should be there: a folder with a file or a folder for each student, or a text file with a name a line;
    each of them gets a line. Where `submissions` is no folder (or None), a roster's folder is where the submissions
    are. out: where the grades will go, so that those of an earlier time are not taken for a submission.
    Raises: CnnlabError for what is the teacher's: labels, roster, or a folder that cannot be read.
    """
    truth = read_truth(labels, id_column, label_column)
    truth = replace(truth, path=escape(expand(labels).name))  # the notes go to students, and the rest is the teacher's
    most = max(_LARGEST, 8 * expand(labels).stat().st_size)
    ours = [expand(labels).absolute(), Path("runs").absolute()]
    ours += [] if out is None else [expand(out).absolute() / name for name in (TABLE, PICTURE)]
    found, names, left_out = _find(submissions, roster, ours)
    absent = {key: _Student(name) for key, name in (names or {}).items() if key not in found}
    everyone = sorted({**found, **absent}.items(), key=lambda item: _by_number(item[0]))
    rows: list[Grade] = []
    contents: dict[bytes, list[int]] = {}  # hash of a file that was scored -> its rows
    for number, (key, student) in enumerate(everyone):
        report("grading", number, len(everyone))
        row, content = _graded(student, truth, most, id_column, label_column)
        if names is not None and key not in names:
            row = _noted(row, "not on the roster")
        if content:
            contents.setdefault(content, []).append(number)
        rows.append(row)
    for same in contents.values():
        for i in same if len(same) > 1 else ():
            others = [rows[j].student for j in same[:7] if j != i]
            rows[i] = _noted(rows[i], f"the very same file as {first(others, 5)}")
    return Grades(str(labels), len(truth.ids), rows, left_out)


def _find(
    submissions: str | Path | None, roster: str | Path | None, ours: Sequence[Path]
) -> tuple[dict[str, _Student], dict[str, str] | None, list[str]]:
    """By key, who has handed in what, and who is on the roster (None without one); what was left out."""
    place = None if submissions is None else expand(submissions).absolute()
    listed = None if roster is None else expand(roster).absolute()
    if place is None and (listed is None or not listed.is_dir()):
        raise CnnlabError("nothing to grade; name a submission, or a folder of them")
    left_out: list[str] = []
    found: dict[str, _Student] = {}
    names: dict[str, str] | None = None
    if listed is not None and listed.is_dir():
        found = _students(listed, ours, left_out)
        names = {key: student.name for key, student in found.items()}
    elif listed is not None:
        names = {_key(name): escape(name) for name in _names(listed, str(roster))}
    if place is not None and place.is_dir():
        found = _students(place, ours, left_out)
    elif place is not None and place.is_file():
        found[_key(place.stem)] = _Student(escape(place.stem), [_File(place, escape(place.name), named=True)])
    elif place is not None:
        raise CnnlabError(f"{submissions} is no file and no folder; name a submission, or a folder of them")
    return found, names, list(dict.fromkeys(left_out))


@dataclass(frozen=True)
class _File:
    """A file that may be a submission. name: as shown; named: by the teacher, who may name a link."""

    path: Path
    name: str
    named: bool = False


@dataclass
class _Student:
    """What was handed in under a name: CSV files to score, and, where there are none, what there is instead."""

    name: str
    files: list[_File] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def _graded(
    student: _Student, truth: Truth, most: int, id_column: str, label_column: str
) -> tuple[Grade, bytes | None]:
    """The student's line, and the hash of the file that was scored."""
    if len(student.files) > 1:
        names = first([file.name for file in student.files])
        return Grade(student.name, "refused", note=f"{len(student.files)} CSV files: {names}; keep one"), None
    if not student.files:
        if student.faults:
            more = f"; and {len(student.faults) - 3} more" if len(student.faults) > 3 else ""
            return Grade(student.name, "refused", note="; ".join(student.faults[:3]) + more), None
        return Grade(student.name, "missing", note="nothing was handed in"), None
    (file,) = student.files
    try:
        content = _read(file, most)
        score = measure(read_table(io.BytesIO(content), file.name, id_column, label_column), truth, file.name)
    except CnnlabError as error:
        return Grade(student.name, "refused", file.name, note=escape(str(error))), None
    bad = f"{score.other.sum()} labels are no class: {first(score.no_class)}" if score.no_class else ""
    return Grade(student.name, "scored", file.name, score, bad), hashlib.blake2b(content).digest()


def _noted(row: Grade, text: str) -> Grade:
    return Grade(row.student, row.status, row.file, row.score, f"{row.note}; {text}" if row.note else text)


def _read(file: _File, most: int) -> bytes:
    """The file's bytes. Raises: CnnlabError for what is no plain file, is too large or cannot be read."""
    # Not to wait for a pipe's other end, and not to follow what has become a link since the folder was read.
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    flags |= 0 if file.named else getattr(os, "O_NOFOLLOW", 0)
    try:
        with os.fdopen(os.open(file.path, flags), "rb") as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise CnnlabError(f"{file.name} is no plain file; hand in a CSV file")
            content = opened.read(most + 1)
    except OSError as error:
        raise CnnlabError(f"cannot read {file.name}: {reason(error)}; hand it in again") from error
    if len(content) > most:
        raise CnnlabError(f"{file.name} is over {most / 2**20:,.0f} MiB; hand in a line for each image, no more")
    for beginning, kind in _OTHERS.items():
        if content.startswith(beginning):
            raise CnnlabError(f"{file.name} is {kind}, whatever its name; hand in the table as CSV")
    return content


def _students(folder: Path, ours: Sequence[Path], left_out: list[str]) -> dict[str, _Student]:
    """By key, what each entry of a class's folder holds. ours: files of the teacher's that may lie in it."""
    mine = {name for path in ours for name in _inside(folder, path)}
    found: dict[str, _Student] = {}
    try:
        for entry in _entries(folder, folder.name):
            if entry.name in mine:
                left_out.append(f"{escape(entry.name)}: the labels, or grades of before")
                continue
            is_folder = entry.is_dir(follow_symlinks=False)
            plain = is_folder or (entry.is_symlink() and not _is_csv(entry.name))
            name = entry.name if plain else Path(entry.name).stem
            student = found.setdefault(_key(name), _Student(escape(name)))
            if is_folder:
                _hand_in(student, Path(entry.path), folder)
            else:
                _put(student, entry, folder, student.files)
    except OSError as error:
        raise CnnlabError(f"cannot read {folder}: {reason(error)}; name a folder of submissions") from error
    return found


def _hand_in(student: _Student, folder: Path, top: Path) -> None:
    """Look through a student's folder, and those in it."""
    files: list[_File] = []
    waiting, seen = [(folder, 0)], 0
    try:
        while waiting:
            place, depth = waiting.pop()
            for entry in _entries(place, folder.name):
                seen += 1
                if seen > _MOST_ENTRIES:
                    raise CnnlabError(_too_many(folder.name))
                if entry.is_dir(follow_symlinks=False):
                    if depth == _DEEPEST:
                        name = escape(str(Path(entry.path).relative_to(top)))
                        student.faults.append(f"{name} lies too deep to be looked into; hand in the file itself")
                    else:
                        waiting.append((Path(entry.path), depth + 1))
                else:
                    _put(student, entry, top, files)
    except OSError as error:
        student.faults.insert(0, f"cannot read the folder: {reason(error)}")
        return
    except CnnlabError as error:
        student.faults.insert(0, str(error))  # before what was found on the way
        return
    usual = [file for file in files if file.path.name.casefold() == USUAL]
    student.files += usual if len(usual) == 1 else files


def _put(student: _Student, entry: os.DirEntry[str], top: Path, files: list[_File]) -> None:
    """A file to where it belongs: among those to score, or among the faults."""
    name = escape(str(Path(entry.path).relative_to(top)))
    if entry.is_symlink():
        student.faults.append(f"{name} is a link, which is not followed; hand in the file itself")
    elif not _is_csv(entry.name):
        way = "unpack it" if entry.name.casefold().endswith(_PACKED) else "save the table as CSV"
        student.faults.append(f"{name} is no CSV file; {way}")
    else:
        files.append(_File(Path(entry.path), name))


def _entries(folder: Path, name: str) -> Iterator[os.DirEntry[str]]:
    """What a folder holds, by name; hidden files aside. Raises: OSError, and CnnlabError where that is too much."""
    found: list[os.DirEntry[str]] = []
    with os.scandir(folder) as entries:
        for count, entry in enumerate(entries):
            if count == _MOST_ENTRIES:
                raise CnnlabError(_too_many(name))
            if not entry.name.startswith(".") and entry.name.casefold() not in _LITTER:
                found.append(entry)
    yield from sorted(found, key=lambda entry: entry.name)


def _too_many(name: str) -> str:
    return f"{escape(name)} holds over {_MOST_ENTRIES:,} files; give or name the right folder"


def _names(path: Path, told: str) -> list[str]:
    """The names in a roster's text file, a line each."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise CnnlabError(f"cannot read the roster {told}: {reason(error)}; name a folder or a text file") from error
    except ValueError as error:
        raise CnnlabError(f"the roster {told} is not UTF-8 text; save it so, with a name a line") from error
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if len(content) > _LARGEST or not 0 < len(names) <= _MOST_ENTRIES:
        raise CnnlabError(f"the roster {told} has {len(names):,} lines; give it a name a line")
    return names


def _key(name: str) -> str:
    """What two spellings of a student's name have in common: accents as one sign or two, capitals, spaces around."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name.strip()).casefold())


def _by_number(name: str) -> list[str | int]:
    """For sorting: student 2 before student 10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d{1,18})", name))]


def _is_csv(name: str) -> bool:
    return name.casefold().endswith(".csv")


def _inside(folder: Path, path: Path) -> set[str]:
    """The entries of `folder` that are or hold `path`, the file itself or a link to it; none where it is elsewhere."""
    found = set()
    for way in (path.resolve(), path.parent.resolve() / path.name):
        if way.is_relative_to(top := folder.resolve()) and way != top:
            found.add(way.relative_to(top).parts[0])
    return found
