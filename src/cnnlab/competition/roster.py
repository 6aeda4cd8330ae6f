"""The students of a class, and which of them a hand-in belongs to.

A roster is a list of names, or a table as Canvas, Moodle, Blackboard and others export it. These systems write the
student's name or number into the names of the hand-ins. A hand-in belongs to a student only if no other one matches.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from cnnlab.io.csv import first, open_text, plain_header
from cnnlab.io.encodings import readable_name
from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.text import escape

MOST_STUDENTS = 10_000
_LARGEST = 32 << 20  # bytes

# Column names of exported rosters, as `plain_header` returns them, separated by bars.
_NAMES, _FIRST, _LAST, _IDS = (
    frozenset(text.replace(" ", "").split("|"))
    for text in (
        "student|students|student name|name|names|full name|fullname|display name|sortable name|learner|participant|"
        "roster name|姓名|学生|学生姓名|真实姓名|名称|vollständiger name|nom complet|nombre completo",
        "first name|firstname|first|given name|given names|preferred name|名|名字|vorname|prénom|nombre",
        "last name|lastname|last|surname|family name|姓|姓氏|nachname|nom|nom de famille|apellidos|apellido(s)",
        "id|ids|student id|studentid|student number|student no|student no.|sid|sis id|sis user id|sis login id|login|"
        "login id|user|user id|userid|user name|username|id number|idnumber|identifier|integration id|net id|netid|"
        "github username|github login|github id|github|gitlab username|roster identifier|uid|upi|cwid|campus id|"
        "banner id|roll no|roll no.|roll number|registration number|matriculation number|matric no.|candidate number|"
        "email|e-mail|mail|email address|e-mail address|学号|学生编号|学生学号|学籍号|编号|id号码|账号|用户名|"
        "登录名|工号|邮箱|电子邮件|电子邮件地址|电子邮箱|id-nummer|matrikelnummer|anmeldename|e-mail-adresse|"
        "numéro d'identification|adresse de courriel|número de id|dirección de correo",
    )
)
_NOBODY = ("points possible", "student, test", "test student", "manual posting")  # rows that Canvas adds
# Lines that a teacher or a spreadsheet adds: sums, headings, comments, dividers between groups.
_NO_NAME = re.compile(
    r"((grand |sub)?totals?|sum|(overall|class|course|group|column)? ?(average|mean|median)|avg\.?|minimum|maximum"
    r"|(standard deviation|std\.?( ?dev\.?)?|stdev)|summe|gesamt|durchschnitt|mittelwert|moyenne|promedio"
    r"|合计|总计|总数|总和|小计|(班级|全班|总)?(平均|平均分|平均值|均值)|中位数|最高分|最低分|标准差)"
    r"[\s:：=]*[\d.,%/]*\s*(students?|名?人|名学生)?"
    r"|[共总计]*\s*\d+\s*(students?|名?人|名学生)|(#(?!\d)|//).*|.*[:：]|[\W_]*"
)
# Words in the names of hand-ins that are not part of a student's name.
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
_NUMBERED = re.compile(r"\d{1,3}[.)、,，;\s]+(?=\S)")  # the number before a line of a numbered list
_SHORT = 3  # a number of at most this many characters identifies nobody: it may be that of homework 12
_MOST_HEAD, _MOST_COLUMNS = 10, 1000  # rows in which the header is looked for; columns that are examined
_BLACKBOARD = re.compile(r".+_([^_]+)_attempt_\d{4}(?:-\d\d){2,5}(?:_.*)?", re.I)


@dataclass(frozen=True)
class Person:
    """A student: the name to print, and the names and numbers by which hand-ins are recognised."""

    name: str
    names: frozenset[str]
    ids: frozenset[str]


@dataclass(frozen=True)
class Roster:
    """The students of a class. passed: notes on rows that are not students, repeated rows and shared names."""

    people: list[Person]
    passed: list[str]

    def owners(self, hand_in: str) -> list[Person]:
        """Return the students who match a hand-in's name without its extension; just one if it is clear whose it is."""
        if exact := self._by_key.get(key(hand_in)):
            return [self.people[i] for i in exact]
        return next(filter(None, (self._fitting(names, ids) for names, ids in _readings(hand_in))), [])

    def _fitting(self, names: Iterable[str], ids: Iterable[str]) -> list[Person]:
        """Return the students who match a number and a name; if there are none, those who match either."""
        by_id = {i for word in ids for i in self._by_id.get(word, ())}
        found = {name: self._by_name[name] for name in names if name in self._by_name}
        by_name = {i for fitting in found.values() for i in fitting}
        chosen = sorted(by_id & by_name) or [*sorted(by_id), *sorted(by_name)]
        if len(chosen) > 1 and not by_id:  # Li Wei is not meant where Li Wei Ming matches
            longest = [name for name in found if not any(name != other and name in other for other in found)]
            chosen = sorted({i for name in longest for i in found[name]})
        return [self.people[i] for i in chosen]

    @cached_property
    def _by_key(self) -> dict[str, list[int]]:
        return _index([key(person.name)] for person in self.people)

    @cached_property
    def _by_name(self) -> dict[str, list[int]]:
        return _index(person.names for person in self.people)

    @cached_property
    def _by_id(self) -> dict[str, list[int]]:
        return _index(person.ids for person in self.people)


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
    content = re.sub(r"\A\s*sep=.\s*?\n", "", content, flags=re.I)  # a line for Excel
    lines = [line for line in content.splitlines() if re.sub(r'[\s,;"]', "", line)]
    roster = (_table(path, content, lines) if lines else None) or _of_lines(lines)
    people = {key(person.name): person for person in _named_apart(roster.people)}
    roster = Roster(list(people.values()), roster.passed + _namesakes(roster.people))
    if not 0 < len(roster.people) <= MOST_STUDENTS:
        raise CnnlabError(
            f"the roster {path} has {len(roster.people):,} students, not 1 to {MOST_STUDENTS:,}; name the right file"
        )
    return roster


def of_names(names: Iterable[str]) -> Roster:
    """Return the roster of students who are known by name only."""
    return Roster([_from_line(name) for name in names], [])


def _of_lines(lines: list[str]) -> Roster:
    """Return the roster of a list of names, numbered or not. A repeated line is one student."""
    counts = Counter(map(key, lines))
    notes = [
        f"the roster repeats the line {escape(line)!r} {n} times; counted as one student"
        for line, n in counts.items()
        if n > 1
    ]
    different: dict[str, str] = {}
    for line in lines:
        different.setdefault(key(line), line.strip())
    notes += [_not_a_student(line) for line in different.values() if _is_no_name(line)]
    names = [_without_number(line) for line in different.values() if not _is_no_name(line)]
    return Roster(list(map(_from_line, names)), notes)


def _index(words: Iterable[Iterable[str]]) -> dict[str, list[int]]:
    """Return {word: indices of the collections that contain it}."""
    places: dict[str, list[int]] = {}
    for i, some in enumerate(words):
        for word in some:
            places.setdefault(word, []).append(i)
    return places


def key(name: str) -> str:
    """Return a name for comparison, normalized in case, surrounding spaces and the encoding of accents."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name.strip()).casefold())


def _table(path: Path, content: str, lines: list[str]) -> Roster | None:
    """Return the students of a table whose header names a column of names or numbers; None if there is no header.

    The header is the first row, or follows a title.
    """
    separators = [(line, max("\t;,", key=line.count)) for line in lines[:_MOST_HEAD]]
    known_columns = (
        (line, separator)
        for line, separator in separators
        if any(_columns(line.replace('"', "").split(separator)).values())
    )
    head, separator = next(known_columns, separators[0])
    try:
        reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
        rows = [row for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        if separator not in head:
            return None
        raise CnnlabError(f"the roster {path}: {reason(error)}; correct the quotes") from error
    if not rows:
        return None
    place = next((i for i in range(min(len(rows), _MOST_HEAD)) if _is_header(rows, i)), None)
    if place is None:
        # Reading a table of unknown columns as a list of names would invent students.
        if _has_unknown_columns(path, rows, separator):
            raise CnnlabError(
                f"the roster {path} has no column of names; name one of its columns Name or 姓名 "
                f"(it has {first(rows[0], 8)})"
            )
        return None
    columns = _columns(rows[place])
    people: list[Person] = []
    passed = [_not_a_student(next(filter(str.strip, row)).strip()) for row in rows[:place]]
    for row in rows[place + 1 :]:
        cells = [cell.strip() for cell in row] + [""] * (len(rows[place]) - len(row))
        full = next((cells[i] for i in columns["name"] if cells[i]), "")
        parts = [next((cells[i] for i in columns[what] if cells[i]), "") for what in ("first", "last")]
        chinese = all(re.search(f"[{_CHINESE}]", part) for part in parts)
        name = full or ("".join(parts[::-1]) if chinese else " ".join(filter(None, parts)))
        ids = [re.sub(r"^(\d+)\.0$", r"\1", cells[i]) for i in columns["id"] if cells[i]]
        if plain_header(name) in _NOBODY or all(map(_is_no_name, filter(None, [name, *ids]))):
            passed.append(_not_a_student(name or next(filter(None, cells))))
            continue
        people.append(_person(name or ids[0], [name], ids))
    return Roster(people, passed)


def _columns(header: list[str]) -> dict[str, list[int]]:
    """Return the indices of the columns of names and numbers, including `学 号`, `学号/工号` and `ID (SIS)`."""
    parts = []
    for cell in header[:_MOST_COLUMNS]:
        name = re.sub(r"\s", "", plain_header(cell))
        names = {name, *re.split(r"[/(]", name)}
        parts.append(names | {"name"} if names & _FIRST and names & _LAST else names)
    return {
        what: [i for i, names in enumerate(parts) if names & known]
        for what, known in (("name", _NAMES), ("first", _FIRST), ("last", _LAST), ("id", _IDS))
    }


def _is_header(rows: list[list[str]], place: int) -> bool:
    """Return whether a row is the header: it names a known column, in a cell that no other row has there.

    The first row need not be unique. A role such as Student is no header, since many rows have it.
    """
    where = {i for found in _columns(rows[place]).values() for i in found}
    if place == 0:
        return bool(where)
    others = rows[:place] + rows[place + 1 :]
    return any(not any(i < len(row) and row[i].strip() == rows[place][i].strip() for row in others) for i in where)


def _has_unknown_columns(path: Path, rows: list[list[str]], separator: str) -> bool:
    """Return whether rows without a known column are a table with a header rather than a list of names."""
    if len(rows[0]) < 2 or any(map(_is_data, rows[0])):
        return False
    if path.suffix.lower() in (".csv", ".tsv", ".xls", ".xlsx") or len(rows[0]) > 2 or separator == ";":
        return True  # other files may hold lines such as `Lee, Ann`
    return len(rows) > 1 and all(any(map(_is_data, row)) for row in rows[1:])


def _is_data(cell: str) -> bool:
    """Return whether a cell is a number or an e-mail address, which no header contains."""
    return _is_number(cell.strip()) or re.fullmatch(r"\d+[.)、]?", cell.strip()) is not None


def _is_no_name(text: str) -> bool:
    """Return whether a line of a roster is a sum, a heading or a comment: `TOTAL`, `Overall average: 71`, `# 2026`."""
    return _NO_NAME.fullmatch(plain_header(text)) is not None


def _not_a_student(text: str) -> str:
    return f"the roster's row {escape(text)!r}: not a student"


def _from_line(line: str) -> Person:
    """Parse a line such as `张三`, `1. 张三`, `3210101234,张三,计科1班` or `Ann Lee <ann@uni.edu>`."""
    line = line.strip()
    whole_numbers = re.sub(r"\b(\d{5,})\.0\b", r"\1", line)  # pandas writes 3210101234.0
    words = [w for word in re.split(r"[\s,;<>()（），；]+", whole_numbers) for w in re.findall(_SCRIPTS, word)]
    ids = [word for word in words if _is_number(word)]
    names = [line, _without_number(line)]
    if ids:
        names.append(" ".join(word for word in words if word not in ids))
    names += [word for word in words if re.fullmatch(f"[{_CHINESE}·]{{2,}}", word)][:1]
    return _person(line, names, ids)


def _without_number(line: str) -> str:
    """Return a line of a numbered list without its number."""
    match = _NUMBERED.match(line)
    return line[match.end() :] if match else line


def _person(name: str, names: Iterable[str], ids: Iterable[str]) -> Person:
    logins = [i.partition("@")[0] for i in ids if "@" in i]
    plain_ids = frozenset(filter(None, map(_plain, [*ids, *logins])))
    return Person(name, frozenset(filter(None, _orders(names))), plain_ids)


def _named_apart(people: list[Person]) -> Iterator[Person]:
    """Yield the students, with a number added to names that several share: their own, or #1, #2, ... without one."""
    counts, seen = Counter(key(person.name) for person in people), Counter[str]()
    for person in people:
        name = key(person.name)
        seen[name] += not person.ids
        if counts[name] > 1:
            numbers = sorted(person.ids, key=lambda i: (not i.isdigit(), len(i) <= _SHORT, i))
            yield replace(person, name=f"{person.name} ({[*numbers, f'#{seen[name]}'][0]})")
        else:
            yield person


def _namesakes(people: list[Person]) -> list[str]:
    """Return a note on each name that several students share, unless each of them has a number."""
    counts = Counter(key(person.name) for person in people)
    without = {key(person.name): person.name for person in people if not person.ids}
    return [
        f"the roster has {counts[k]} students {escape(name)!r}; give each a number"
        for k, name in without.items()
        if counts[k] > 1
    ]


def _orders(names: Iterable[str]) -> Iterator[str]:
    """Yield each name joined, in every rotation of its words (Lee, Ann -> leeann, annlee), with and without accents."""
    for name in names:
        words = list(filter(None, map(_plain, re.split(r"[\s,，、]+", name))))
        for i in range(len(words)):
            turned = "".join(words[i:] + words[:i])
            yield turned
            yield _without_accents(turned)


def _readings(hand_in: str) -> Iterator[tuple[Iterable[str], Iterable[str]]]:
    """Yield (possible names, possible numbers or logins) in the name of a hand-in, the likeliest reading first."""
    text = readable_name(hand_in)
    if match := _BLACKBOARD.fullmatch(text):
        yield (), {_plain(match[1])}
        return
    if match := _MOODLE.fullmatch(text):
        yield _orders([match[1]]), {f"participant{match[2]}"}
    elif (match := _CANVAS.fullmatch(text)) and not _NOISE.fullmatch(match[1].casefold()):
        # Other systems write such names, too; there a short number is that of the homework.
        yield _orders([match[1]]), {match[2]} if len(match[2]) > _SHORT else ()
    yield _anywhere(text)


def _anywhere(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the possible names, and the possible numbers or logins, in any part of a text."""
    segments = []
    for segment in re.split(r"[_()（）\[\]【】+,，;&#]+|\s-\s", text):
        segments += [_TASK.sub("", part) for part in re.findall(_SCRIPTS, segment)]
    words = [word for segment in segments for word in re.split(r"[\W_]+", segment)]
    logins = [segment[match.end() :] for segment in segments for match in re.finditer(r"[-.]", segment)]  # hw1-ann-lee
    ids = {word for word in map(_plain, [*words, *segments, *logins]) if len(word) > _SHORT} | {_plain(text)}
    kept = ["".join(w for w in re.split(r"[\W_]+", s) if not _NOISE.fullmatch(w.casefold())) for s in segments]
    runs: set[str] = set()
    for parts in (kept, segments):
        pieces = list(filter(None, map(_plain, parts)))
        runs |= {run for i in range(len(pieces)) for run in accumulate(pieces[i : i + 6])}
    return frozenset(runs | set(map(_without_accents, runs))), frozenset(ids)


def _is_number(word: str) -> bool:
    """Return whether a word is a student's number, such as 3210101234 or u1234567, or an e-mail address."""
    return "@" in word or (sum(c.isdigit() for c in word) >= 5 and re.fullmatch(r"[A-Za-z0-9.-]+", word) is not None)


def _plain(text: str) -> str:
    """Return only the letters and digits of a text, normalized in case and width."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum() or unicodedata.combining(c))


def _without_accents(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
