"""Two columns of a CSV file, ids and values: the one reader of labels, sample submissions and submissions.

Ids and values are data and stay as they are in the file, with their spaces.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import IO

from cnnlab.io.errors import CnnlabError, reason

_MOST_ROWS = 5_000_000
_LONGEST_LINE = 1 << 20  # characters; a file without line ends must not fill the memory
_LONGEST_ROW = 1 << 22  # characters; nor must one row with line ends in its fields
_LARGEST = 1 << 28  # characters; 300,000 rows are four million
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # surrogates stand for bytes that are not UTF-8
# What no line of a submission can hold, and no terminal should get: control characters, line ends, what is no text.
UNFIT = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True)
class Table:
    """ids, values: N texts each, in the file's order; id_first: does the column of the ids come first."""

    id_first: bool
    ids: list[str]
    values: list[str]


def read_table(
    file: IO[bytes], name: str, id_column: str = "id", value_column: str = "label", *, repeats: bool = False,
    blanks: bool = True,
) -> Table:  # fmt: skip
    """Two columns of a CSV file with a header.

    UTF-8 with or without a byte order mark, any line ends, quoted fields; other columns and blank lines are passed
    over. Ids are not empty, and unique unless there may be `repeats`; values may be empty unless `blanks` is False.
    name: what errors call the file, which is closed. Raises: CnnlabError naming it, mostly the line, and the remedy.
    """
    with _text(file) as text:
        lines = _Lines(name, text)
        return _parse(name, lines, id_column.strip(), value_column.strip(), repeats, blanks)


def read_header(file: IO[bytes], name: str) -> list[str]:
    """The first row that is not blank, none of an empty file; as `read_table` in all else."""
    with _text(file) as text:
        try:
            return next((row for row in csv.reader(_Lines(name, text), strict=True) if row), [])
        except csv.Error as error:
            raise CnnlabError(f"{name}, line 1: {reason(error)}; save the table as CSV in UTF-8") from error


def _text(file: IO[bytes]) -> io.TextIOWrapper:
    # What is not UTF-8 becomes surrogates, which _Lines finds: so the error can name the line.
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _parse(name: str, lines: _Lines, id_column: str, value_column: str, repeats: bool, blanks: bool) -> Table:
    reader = csv.reader(lines, strict=True)
    width, place, other, line = 0, 0, 0, 1  # number of columns, where the id and the value are; where the row begins
    seen: dict[str, int] = {}  # id -> its line
    ids: list[str] = []
    values: list[str] = []
    try:
        for row in reader:
            start, line, lines.pending = line, reader.line_num + 1, 0
            if not row or (len(row) == 1 and not row[0].strip()):
                continue
            if not width:
                width, place, other = len(row), _column(name, row, id_column), _column(name, row, value_column)
                continue
            if len(row) != width:
                fault = f"{len(row)} fields, but the header has {width}; mend that line"
            elif not row[place].strip():
                fault = f"the {id_column!r} is empty; fill it in or remove the line"
            elif not blanks and not row[other].strip():
                fault = f"the {value_column!r} is empty; fill it in or remove the line"
            elif bad := [field for field in (row[place], row[other]) if UNFIT.search(field)]:
                fault = f"{quoted(bad[0])} holds a control character or a line end, as no submission can; remove it"
            elif seen.setdefault(row[place], start) != start and not repeats:
                fault = f"{quoted(row[place])} was on line {seen[row[place]]} already; remove one of the two"
            elif len(ids) == _MOST_ROWS:
                fault = f"over {_MOST_ROWS:,} rows; name the right file"
            else:
                ids.append(row[place])
                values.append(row[other])
                continue
            raise CnnlabError(f"{name}, line {start}: {fault}")
    except csv.Error as error:
        raise CnnlabError(f"{name}, line {line}: {reason(error)}; mend or close the quotes from there on") from error
    if not width:
        raise CnnlabError(f"{name} is empty; it should start with a header that names its columns")
    return Table(place <= other, ids, values)


class _Lines(Iterator[str]):
    """The lines of a file, each known to be text, and neither they nor a row of several nor all together endless.

    pending: characters since the last whole row; who reads rows sets it back.
    """

    def __init__(self, name: str, file: IO[str]) -> None:
        self._name, self._file = name, file
        self._number = self._total = self.pending = 0

    def __next__(self) -> str:
        line = self._file.readline(_LONGEST_LINE)
        if not line:
            raise StopIteration
        self._number += 1
        self._total += len(line)
        self.pending += len(line)
        if len(line) == _LONGEST_LINE:
            fault = f"over {_LONGEST_LINE:,} characters"
        elif self.pending > _LONGEST_ROW:
            fault = f"a row of over {_LONGEST_ROW:,} characters, or a quote that is not closed"
        elif self._total > _LARGEST:
            fault = f"over {_LARGEST:,} characters in all, more than any table of labels"
        elif _NO_TEXT.search(line):
            fault = "not UTF-8 text"
        else:
            return line
        raise CnnlabError(f"{self._name}, line {self._number}: {fault}; save the table as CSV in UTF-8")


def _column(name: str, header: list[str], column: str) -> int:
    columns = [h.strip() for h in header]
    if columns.count(column) == 1:
        return columns.index(column)
    if column in columns:
        raise CnnlabError(f"{name}: its header has {columns.count(column)} columns {column!r}; rename all but one")
    hint = "; separate columns by commas" if len(header) == 1 and {";", "\t"} & set(header[0]) else ""
    raise CnnlabError(f"{name}: no column {column!r}; {near(column, columns[:1000])}{hint}")


def quoted(text: str) -> str:
    """A text from somebody's file as it may stand in a line: short, without a terminal's commands."""
    return repr(text if len(text) <= 60 else text[:60] + "...")


def near(name: str, names: list[str]) -> str:
    """A hint for a `name` that is none of `names`: those near it, else the first ones."""
    found = difflib.get_close_matches(name[:200], names, cutoff=0.5)
    return f"did you mean {' or '.join(map(quoted, found))}?" if found else f"known: {first(names, 20)}"


def first(found: Collection[str], most: int = 3) -> str:
    """The first few of many texts, quoted."""
    return ", ".join(map(quoted, islice(found, most))) + (", ..." if len(found) > most else "")
