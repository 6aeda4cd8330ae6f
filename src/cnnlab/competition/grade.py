"""Score the submissions of a class against the true labels.

Every student gets a line, with a score or the reason why there is none. A bad file does not stop the others. Symlinks
are reported, not followed, and text from students never becomes a formula in grades.csv.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import stat
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cnnlab.competition.layout import natural
from cnnlab.competition.roster import MOST_STUDENTS, Roster, key, of_names, read_roster
from cnnlab.competition.submission import Score, Truth, measure, read_truth
from cnnlab.data.imageset import Report, no_report
from cnnlab.io import figures as plots
from cnnlab.io.csv import first
from cnnlab.io.encodings import readable_name
from cnnlab.io.errors import CnnlabError, expand, reason
from cnnlab.io.files import write_atomic
from cnnlab.io.kinds import file_kind
from cnnlab.io.text import cell, escape
from cnnlab.training.folders import named_folder

STATUS = ("scored", "refused", "missing")
TABLE, PICTURE = "grades.csv", "grades.png"
COLUMNS = ("student", "status", "accuracy", "log_loss", "correct", "images", "file", "note")

_LARGEST = 32 << 20  # bytes of a submission; one for 300,000 images takes 4 MB
_MOST_ENTRIES = MOST_STUDENTS  # files and folders: of the class, and of each student
_LITTER = ("__macosx", "thumbs.db", "desktop.ini")  # what macOS and Windows leave in archives, besides hidden files


@dataclass(frozen=True)
class Grade:
    """A student's line. status: scored, refused (the note says why) or missing.

    student, file and note are escaped; file is relative to the folder of submissions, "" if there is none.
    """

    student: str
    status: str
    file: str = ""
    score: Score | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values. Unknown ones are None, such as the log_loss of a submission without probabilities."""
        score = self.score
        return {
            "student": self.student,
            "status": self.status,
            "accuracy": score.accuracy if score else None,
            "log_loss": score.log_loss if score else None,
            "correct": score.correct if score else None,
            "images": score.count if score else None,
            "file": self.file,
            "note": self.note,
        }

    def with_note(self, text: str) -> Grade:
        """Return this line with one more note."""
        return replace(self, note=f"{self.note}; {text}" if self.note else text)


@dataclass(frozen=True)
class Grades:
    """The grades of a class, sorted by name.

    images: number of labels; skipped: notes on the teacher's files and on rows of the roster that are not students.
    """

    labels: str
    images: int
    rows: list[Grade]
    skipped: list[str]

    @property
    def accuracies(self) -> list[float]:
        """The accuracy of each scored submission."""
        return [row.score.accuracy for row in self.rows if row.score]

    def count(self, status: str) -> int:
        """Return the number of students with that status."""
        return sum(row.status == status for row in self.rows)

    def __str__(self) -> str:
        median = f", median accuracy {statistics.median(self.accuracies):.4f}" if self.accuracies else ""
        others = [f"{n} {status}" for status in STATUS[1:] if (n := self.count(status))]
        return "; ".join([f"{self.count('scored')} scored{median}", *others])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "labels": self.labels,
            "images": self.images,
            **{status: self.count(status) for status in STATUS},
            "mean": statistics.mean(self.accuracies) if self.accuracies else None,
            "median": statistics.median(self.accuracies) if self.accuracies else None,
            "students": [row.to_dict() for row in self.rows],
            "skipped": self.skipped,
        }

    def to_csv(self) -> str:
        """Return the table for a spreadsheet: with a byte order mark, which Excel needs for UTF-8, and no formulas."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(COLUMNS)
        for row in self.rows:
            values = row.to_dict()
            if row.score:
                values["accuracy"] = f"{row.score.accuracy:.6f}"
                values["log_loss"] = None if row.score.log_loss is None else f"{row.score.log_loss:.6f}"
            writer.writerow(["" if values[c] is None else cell(str(values[c])) for c in COLUMNS])
        return "\ufeff" + text.getvalue()

    def save(self, out: str | Path | None = None) -> Path:
        """Write grades.csv and grades.png into the folder `out` and return it. Default: a new folder in runs.

        Raise CnnlabError if the folder has such files already or cannot be written.
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
    """Raise CnnlabError if the folder `out` already holds grades, which a teacher may have edited."""
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
    """Score one submission, or those of a class, against the true labels in the CSV file `labels`.

    submissions: a CSV file, or a folder with a CSV file or a folder per student, named after the student. In a
    student's folder the only CSV file counts; of several, the one named submission.csv.
    roster: the students, each of whom gets a line: a folder with a file or a folder per student, a text file with a
    name per line, or a table as Canvas, Moodle and Blackboard export it (see `cnnlab.competition.roster`). A folder
    also supplies the submissions, unless `submissions` is a folder itself.
    out: the folder where grades will be saved; grades in it do not count as a submission.
    Raise CnnlabError for labels, a roster or a folder that cannot be read.
    """
    truth = read_truth(labels, id_column, label_column)
    truth = replace(truth, path=escape(expand(labels).name))  # students read the notes: no paths of the teacher's
    limit = max(_LARGEST, 8 * expand(labels).stat().st_size)
    own = [expand(labels), Path("runs"), *([] if out is None else [expand(out) / TABLE, expand(out) / PICTURE])]
    own_paths = [Path(os.path.realpath(path)) for path in own]
    students, listed, skipped = _find(submissions, roster, own_paths)
    rows: list[Grade] = []
    same_file: dict[bytes, list[int]] = {}  # hash of a scored file -> its rows
    for number, name in enumerate(sorted(students, key=natural)):
        report("grading", number, len(students))
        row, digest = _graded(students[name], truth, limit, id_column, label_column)
        if roster is not None and name not in listed:
            row = row.with_note(students[name].doubt or "not on the roster")
        rows.append(row)
        if digest:
            same_file.setdefault(digest, []).append(number)
    for group in same_file.values():
        for i in group if len(group) > 1 else ():
            others = [rows[j].student for j in group[:7] if j != i]  # five names, and one to know that there are more
            rows[i] = rows[i].with_note(f"same file as {first(others, 5)}")
    return Grades(str(labels), len(truth.ids), rows, skipped)


@dataclass
class _Student:
    """A student's hand-in. name: escaped; files: CSV files by escaped name; faults: why other files do not count.

    doubt: a note if the hand-in's name matches several students on the roster.
    """

    name: str
    files: dict[str, Path] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    doubt: str = ""


def _find(
    submissions: str | Path | None, roster: str | Path | None, own: list[Path]
) -> tuple[dict[str, _Student], set[str], list[str]]:
    """Return the students by key, the keys on the roster, and notes on skipped files and roster rows."""
    place = None if submissions is None else expand(submissions)
    names = None if roster is None else expand(roster)
    if place is None and (names is None or not names.is_dir()):
        raise CnnlabError("nothing to grade; name a submission, or a folder of them")
    skipped: list[str] = []
    people = Roster([], [])
    students: dict[str, _Student] = {}
    if names is not None and names.is_dir():
        students = _students(names, people, own, skipped)
        people = of_names(student.name for student in students.values())
    elif names is not None:
        people = read_roster(names)
        skipped += people.passed
    listed = {key(person.name): _Student(escape(person.name)) for person in people.people}
    if place is None:
        return students, set(students), list(dict.fromkeys(skipped))
    if place.is_dir():
        found = _students(place, people, own, skipped)
    elif place.is_file():
        if (kind := file_kind(place)) and kind.group == "archive":
            raise CnnlabError(f"{submissions} is {kind.what}; unpack it and name the folder of submissions")
        found = {}
        _owner(place.stem, people, found).files[escape(place.name)] = place.resolve()
        if names is not None and names.is_dir():
            found = students | found
    else:
        raise CnnlabError(f"{submissions} does not exist; name a submission, or a folder of them")
    return listed | found, set(listed), list(dict.fromkeys(skipped))


def _owner(hand_in: str, people: Roster, students: dict[str, _Student]) -> _Student:
    """Return the student whose name or number is in a hand-in's name, from `students` or else added to it."""
    hand_in = readable_name(hand_in)
    owners = people.owners(hand_in)
    if len(owners) == 1:
        name = owners[0].name
        return students.setdefault(key(name), _Student(escape(hand_in if key(hand_in) == key(name) else name)))
    student = students.setdefault(key(hand_in), _Student(escape(hand_in)))
    if owners:
        student.doubt = f"fits several on the roster: {first([person.name for person in owners])}; rename it"
    return student


def _graded(
    student: _Student, truth: Truth, limit: int, id_column: str, label_column: str
) -> tuple[Grade, bytes | None]:
    """Return the student's line, and the hash of the scored file; None if there is none."""
    if len(student.files) > 1:
        note = f"{len(student.files)} CSV files: {first(student.files)}; keep one"
        return Grade(student.name, "refused", note=note), None
    if not student.files:
        more = f"; and {len(student.faults) - 3} more" if len(student.faults) > 3 else ""
        note = "; ".join(student.faults[:3]) + more
        return Grade(student.name, "refused" if note else "missing", note=note or "nothing was handed in"), None
    ((name, path),) = student.files.items()
    try:
        content = _read(path, name, limit)
        score = measure(io.BytesIO(content), truth, name, id_column, label_column)
    except CnnlabError as error:
        return Grade(student.name, "refused", name, note=str(error)), None
    note = f"{score.other.sum()} labels are not among the classes: {first(score.no_class)}" if score.no_class else ""
    return Grade(student.name, "scored", name, score, note), hashlib.blake2b(content).digest()


def _read(path: Path, name: str, limit: int) -> bytes:
    """Return the file's bytes. Raise CnnlabError if it is not a regular file, is too large or cannot be read."""
    # Do not block on a named pipe, nor follow a file that has become a symlink in the meantime.
    flags = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_BINARY", "O_NONBLOCK", "O_NOFOLLOW"))
    try:
        with os.fdopen(os.open(path, flags), "rb") as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise CnnlabError(f"{name} is not a regular file; hand in a CSV file")
            content = opened.read(limit + 1)
    except OSError as error:
        raise CnnlabError(f"cannot read {name}: {reason(error)}; hand it in again") from error
    if len(content) > limit:
        raise CnnlabError(f"{name} is over {limit / 2**20:,.0f} MiB; hand in one line per image")
    return content


def _students(folder: Path, people: Roster, own: list[Path], skipped: list[str]) -> dict[str, _Student]:
    """Return the students of a folder by key. own: resolved paths of the teacher's files, which are skipped."""
    students: dict[str, _Student] = {}
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise CnnlabError(f"cannot read {folder}: {reason(error)}; name a folder of submissions") from error
    _check_count(len(names), folder)
    for name in _visible(names):
        path = folder / name
        real = Path(os.path.realpath(path))
        if any(file == real or (file.is_relative_to(real) and not path.is_symlink()) for file in own):
            skipped.append(f"{escape(name)}: the labels, or earlier grades")
            continue
        is_folder = path.is_dir() and not path.is_symlink()
        is_file = not is_folder and (not path.is_symlink() or _is_csv(name))
        student = _owner(Path(name).stem if is_file else name, people, students)
        if is_folder:
            _search(student, path, folder)
        else:
            _add(student, path, folder, student.files)
    return students


def _search(student: _Student, folder: Path, top: Path) -> None:
    """Add the files in a student's folder and its subfolders."""

    def stop(error: OSError) -> None:
        raise CnnlabError(f"cannot read the folder: {reason(error)}")

    files: dict[str, Path] = {}
    count = 0
    try:
        for parent, folders, names in os.walk(folder, onerror=stop):
            folders[:] = _visible(folders)
            count += len(folders) + len(names)
            _check_count(count, folder)
            links = [name for name in folders if Path(parent, name).is_symlink()]
            for name in _visible([*links, *names]):
                _add(student, Path(parent, name), top, files)
    except CnnlabError as error:
        student.faults.insert(0, str(error))
        return
    usual = {name: path for name, path in files.items() if path.name.casefold() == "submission.csv"}
    student.files |= usual if len(usual) == 1 else files


def _add(student: _Student, path: Path, top: Path, files: dict[str, Path]) -> None:
    """Add a file to `files`, or to the student's faults."""
    name = escape(str(path.relative_to(top)))
    if path.is_symlink():
        student.faults.append(f"{name} is a link, which is not followed; hand in the file itself")
    elif not _is_csv(path.name):
        kind = None
        with contextlib.suppress(OSError):
            kind = file_kind(path)
        student.faults.append(
            f"{name} {kind.in_place_of_table() if kind else 'is not a CSV file; save the table as CSV'}"
        )
    else:
        files[name] = path


def _visible(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if not name.startswith(".") and name.casefold() not in _LITTER)


def _check_count(count: int, folder: Path) -> None:
    if count > _MOST_ENTRIES:
        raise CnnlabError(f"{folder.name} holds over {_MOST_ENTRIES:,} files; give or name the right folder")


def _is_csv(name: str) -> bool:
    return name.casefold().endswith(".csv")
