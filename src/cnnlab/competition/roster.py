"""The students of a class, and whose a hand-in is.

A roster is a list of names, or a table as Canvas, Moodle, Blackboard and others export it. These systems write the
student's name or number into the names of the hand-ins; a hand-in belongs to a student only if no other one fits.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from cnnlab.io.csv import first, open_text, plain_header
from cnnlab.io.encodings import readable_name
from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.text import escape

MOST_STUDENTS = 10_000
_LARGEST = 32 << 20  # bytes

# Columns of exported rosters, as `plain_header` gives them, separated by bars.
_NAMES, _FIRST, _LAST, _IDS = (
    frozenset(text.split("|"))
    for text in (
        "student|students|student name|name|names|full name|fullname|display name|sortable name|learner|participant|"
        "姓名|学生|学生姓名|真实姓名|名称|vollständiger name|nom complet|nombre completo",
        "first name|firstname|first|given name|given names|preferred name|名|名字|vorname|prénom|nombre",
        "last name|lastname|last|surname|family name|姓|姓氏|nachname|nom|nom de famille|apellidos|apellido(s)",
        "id|ids|student id|studentid|student number|student no|student no.|sid|sis id|sis user id|sis login id|login|"
        "login id|user|user id|userid|user name|username|id number|idnumber|identifier|integration id|net id|netid|"
        "email|e-mail|mail|email address|e-mail address|学号|学生编号|学生学号|学籍号|编号|id号码|账号|用户名|"
        "登录名|工号|邮箱|电子邮件|电子邮件地址|电子邮箱|id-nummer|matrikelnummer|anmeldename|e-mail-adresse|"
        "numéro d'identification|adresse de courriel|número de id|dirección de correo",
    )
)
_NOBODY = ("points possible", "student, test", "test student", "manual posting")  # rows of Canvas
# Words in the names of hand-ins that are nobody's name.
_NOISE = re.compile(
    r"(my|the|final|new|copy|late|test|submissions?|submit|predictions?|preds?|results?|outputs?|answers?|labels?|kaggle|cifar"
    r"|csv|hw|homework|assignments?|assignsubmission|file|onlinetext|attempt|ex|exercise|project|lab|task|week|part|version|v"
    r"|作业|大作业|实验|提交|报告|结果|预测|答案|最终版?|终稿|副本|新建)?\d*"
)
_CHINESE = "\u3400-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_SCRIPTS = f"[{_CHINESE}·]+|[^{_CHINESE}·]+"
_TASK = re.compile(r"(的|第[一二三四五六七八九十\d]+次)*(作业|大作业|实验|提交|报告|结果|预测).*")
_CANVAS = re.compile(r"([^\d_]+)(?:_late)?_(\d+)_\d+(?:_.*)?", re.I)
_MOODLE = re.compile(r"(.+)_(\d+)_assignsubmission_(?:file|onlinetext)(?:_.*)?", re.I)
_BLACKBOARD = re.compile(r".+_([^_]+)_attempt_\d{4}(?:-\d\d){2,5}(?:_.*)?", re.I)


@dataclass(frozen=True)
class Person:
    """A student: the name as it is printed, and the names and numbers that may be in the names of hand-ins."""

    name: str
    names: frozenset[str]
    ids: frozenset[str]


@dataclass(frozen=True)
class Roster:
    """people: the students; passed: rows that are none, such as Canvas's row of the points possible."""

    people: list[Person]
    passed: list[str]

    def owners(self, hand_in: str) -> list[Person]:
        """Return the students whom the name of a hand-in, without its ending, fits: one if it is clear whose it is."""
        whole = key(hand_in)
        if exact := [person for person in self.people if key(person.name) == whole]:
            return exact
        names, ids = _parts(hand_in)
        by_id = [person for person in self.people if person.ids & ids]
        by_name = [person for person in self.people if person.names & names]
        both = [person for person in by_id if person in by_name]
        if both:
            return both
        return by_id + by_name if by_id and by_name else by_id or by_name


def read_roster(path: Path) -> Roster:
    """Read a text file with a name per line, or a table with a header. Raise CnnlabError."""
    try:
        if path.stat().st_size > _LARGEST:
            raise CnnlabError(f"the roster {path} has over {_LARGEST:,} bytes; name the right file")
        with open_text(path.open("rb"), f"the roster {path}") as text:
            content = text.read()
    except OSError as error:
        raise CnnlabError(f"cannot read the roster {path}: {reason(error)}; name a folder or a text file") from error
    if re.search("[\0\ud800-\udfff]", content):
        raise CnnlabError(
            f"the roster {path} is not UTF-8 text; save it as UTF-8 with a name per line, or as CSV UTF-8"
        )
    content = re.sub(r"\A\s*sep=.\s*?\n", "", content, flags=re.I)  # a mark of Excel's
    lines = [line for line in content.splitlines() if line.strip()]
    roster = (_table(path, content, lines[0]) if lines else None) or of_names(lines)
    roster = Roster(list({key(person.name): person for person in _named_apart(roster.people)}.values()), roster.passed)
    if not 0 < len(roster.people) <= MOST_STUDENTS:
        raise CnnlabError(f"the roster {path} has {len(roster.people):,} students; give it a name per line")
    return roster


def of_names(names: Iterable[str]) -> Roster:
    """Return the roster of students who are known by name only."""
    return Roster([_from_line(name) for name in names], [])


def key(name: str) -> str:
    """Return a student's name without differences of case, surrounding spaces and the encoding of accents."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name.strip()).casefold())


def _table(path: Path, content: str, head: str) -> Roster | None:
    """Return the students of a table whose header names a column of names or numbers; None if there is no header."""
    separator = max("\t;,", key=head.count)
    try:
        reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
        rows = [row for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        if separator not in head:
            return None
        raise CnnlabError(f"the roster {path}: {reason(error)}; correct the quotes") from error
    header = list(map(plain_header, rows[0]))
    columns = {
        what: [i for i, name in enumerate(header) if name in known]
        for what, known in (("name", _NAMES), ("first", _FIRST), ("last", _LAST), ("id", _IDS))
    }
    if not any(columns.values()):
        # A table of unknown columns read as names would be a class of nobody.
        if len(header) > 1 and path.suffix.lower() == ".csv" and not any(map(_is_number, rows[0])):
            raise CnnlabError(
                f"the roster {path} has no column of names; call one Name or 姓名 (it has {first(rows[0], 8)})"
            )
        return None
    people, passed = [], []
    for row in rows[1:]:
        cells = [cell.strip() for cell in row] + [""] * (len(header) - len(row))
        full = next((cells[i] for i in columns["name"] if cells[i]), "")
        parts = [next((cells[i] for i in columns[what] if cells[i]), "") for what in ("first", "last")]
        chinese = all(re.search(f"[{_CHINESE}]", part) for part in parts)
        name = full or ("".join(parts[::-1]) if chinese else " ".join(filter(None, parts)))
        ids = [cells[i] for i in columns["id"] if cells[i]]
        if plain_header(name) in ("points possible", "student, test", "test student", "manual posting") or not (
            name or ids
        ):
            if any(cells):
                passed.append(f"the roster's row {escape(name or next(filter(None, cells)))!r}: not a student")
            continue
        people.append(_person(name or ids[0], [name], ids))
    return Roster(people, passed)


def _from_line(line: str) -> Person:
    """Return the student of a line such as `张三`, `3210101234 name`, `Ann Lee <ann@uni.edu>`."""
    line = line.strip()
    words = [w for word in re.split(r"[\s,;<>()（），；]+", line) for w in re.findall(_SCRIPTS, word)]
    ids = [word for word in words if _is_number(word)]
    return _person(line, [line, " ".join(word for word in words if word not in ids) if ids else ""], ids)


def _person(name: str, names: Iterable[str], ids: Iterable[str]) -> Person:
    logins = [i.partition("@")[0] for i in ids if "@" in i]
    # Two or three characters are in the name of any file, such as homework 12.
    usable = {_plain(i) for i in [*ids, *logins]}
    return Person(name, frozenset(filter(None, _orders(names))), frozenset(i for i in usable if len(i) > 3))


def _named_apart(people: list[Person]) -> Iterator[Person]:
    """Give students of one name a name with their number."""
    counts: dict[str, int] = {}
    for person in people:
        counts[key(person.name)] = counts.get(key(person.name), 0) + 1
    for person in people:
        if counts[key(person.name)] > 1 and person.ids:
            number = min(person.ids, key=lambda i: (not i.isdigit(), i))
            yield Person(f"{person.name} ({number})", person.names, person.ids)
        else:
            yield person


def _orders(names: Iterable[str]) -> Iterator[str]:
    """Yield each name in one piece, in every rotation of its words: Lee, Ann -> leeann, annlee; and without accents."""
    for name in names:
        words = list(filter(None, map(_plain, re.split(r"[\s,，、]+", name))))
        for i in range(len(words)):
            turned = "".join(words[i:] + words[:i])
            yield turned
            yield _without_accents(turned)


def _parts(hand_in: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return what may be a name, and what may be a number or a login, in the name of a hand-in."""
    text = readable_name(hand_in)
    if match := _BLACKBOARD.fullmatch(text):
        return frozenset(), frozenset({_plain(match[1])})
    if match := _MOODLE.fullmatch(text):
        return frozenset(_orders([match[1]])), frozenset({f"participant{match[2]}"})
    if (match := _CANVAS.fullmatch(text)) and not _NOISE.fullmatch(match[1].casefold()):
        return frozenset(_orders([match[1]])), frozenset({match[2]})
    segments = []
    for segment in re.split(r"[_()（）\[\]【】+,，;&#]+|\s-\s", text):
        segments += [_TASK.sub("", part) for part in re.findall(_SCRIPTS, segment)]
    words = [word for segment in segments for word in re.split(r"[\W_]+", segment)]
    ids = frozenset(filter(None, map(_plain, [*words, *segments])))
    kept = ["".join(w for w in re.split(r"[\W_]+", s) if not _NOISE.fullmatch(w.casefold())) for s in segments]
    runs: set[str] = set()
    for parts in (kept, segments):
        pieces = list(filter(None, map(_plain, parts)))
        runs |= {run for i in range(len(pieces)) for run in accumulate(pieces[i : i + 6])}
    return frozenset(runs | set(map(_without_accents, runs))), ids


def _is_number(word: str) -> bool:
    """Return whether a word is a student's number, such as 3210101234 or u1234567, or an e-mail address."""
    return "@" in word or (sum(c.isdigit() for c in word) >= 5 and re.fullmatch(r"[A-Za-z0-9.-]+", word) is not None)


def _plain(text: str) -> str:
    """Return letters and digits only, in one case and width."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum() or unicodedata.combining(c))


def _without_accents(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
