"""Read two columns of a CSV file, ids and values: labels, sample submissions and submissions.

Ids and values stay exactly as they are in the file, with their spaces. Files are UTF-8, UTF-16 or GBK, as spreadsheets
save them; column names match regardless of case and spacing.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import re
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import IO, Any

from cnnlab.io.encodings import text_encoding
from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.kinds import HEAD, kind_of

_MOST_ROWS = 5_000_000
# Limits in characters on a line, on a row that spans lines, and on a file. They bound the memory: "a,a,a,..." takes
# thirty times its size as a list. 300,000 rows are four million characters.
_LONGEST_LINE, _LONGEST_ROW, _LARGEST = 1 << 20, 1 << 22, 1 << 28
_NOT_UTF8 = re.compile("[\0\ud800-\udfff]")  # surrogates stand for bytes that are not UTF-8
# Characters that a submission's line cannot have: control characters, line ends, surrogates.
FORBIDDEN = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True)
class Table:
    """Two columns of a CSV file.

    ids, values: N strings each, in the file's order. id_first: whether the id column comes first in the file. columns:
    the names of both columns, as in the file but without spaces around them.
    """

    id_first: bool
    ids: list[str]
    values: list[str]
    columns: tuple[str, str] = ("id", "label")


def read_table(
    file: IO[bytes], name: str, id_column: str = "id", value_column: str = "label", *, repeats: bool = False,
    blanks: bool = True,
) -> Table:  # fmt: skip
    """Read two columns of a CSV file with a header, and close the file.

    Fields may be quoted, and are separated by commas, semicolons or tabs; any line ends are valid. Other columns and
    blank rows are ignored. Ids must not be empty, nor repeat unless `repeats`; values may be empty unless `blanks` is
    False. name: the file's name in errors. Raise CnnlabError that names the file, usually the line, and the remedy.
    """
    return table_of(table_rows(file, name), name, id_column, value_column, repeats=repeats, blanks=blanks)


def table_of(
    rows: Iterator[tuple[int, list[str]]], name: str, id_column: str = "id", value_column: str = "label", *,
    repeats: bool = False, blanks: bool = True,
) -> Table:  # fmt: skip
    """Return two columns of the rows of `table_rows`, the header first. See `read_table`."""
    _, header = next(rows)
    place, other = column_index(name, header, id_column), column_index(name, header, value_column)
    lines: dict[str, int] = {}  # id -> its line
    ids: list[str] = []
    values: list[str] = []
    for start, row in rows:
        if not row[place].strip():
            fault = f"the {id_column!r} is empty; fill it in or remove the line"
        elif not blanks and not row[other].strip():
            fault = f"the {value_column!r} is empty; fill it in or remove the line"
        elif bad := [cell for cell in (row[place], row[other]) if FORBIDDEN.search(cell)]:
            fault = f"{quoted(bad[0])} has a control character or a line end; remove it"
        elif lines.setdefault(row[place], start) != start and not repeats:
            fault = f"{quoted(row[place])} is also on line {lines[row[place]]}; remove one of them"
        else:
            ids.append(row[place])
            values.append(row[other])
            continue
        raise CnnlabError(f"{name}, line {start}: {fault}")
    return Table(place <= other, ids, values, (header[place].strip(), header[other].strip()))


def table_rows(file: IO[bytes], name: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, fields) of each row that is not blank, the header first, and close the file.

    Raise CnnlabError if there is no header, or if a row has more or fewer fields than the header.
    """
    width, line = 0, 1
    with open_text(file, name) as text:
        reader = table_reader(text, name)
        number = 0
        try:
            for row in reader:
                start, line = line, reader.line_num + 1
                if not any(map(str.strip, row)):  # a blank line, or Excel's blank last rows, `,`
                    continue
                width = width or len(row)
                if len(row) != width:
                    fault = f"{len(row)} fields, but the header has {width}; correct that line"
                elif number > _MOST_ROWS:
                    fault = f"over {_MOST_ROWS:,} rows; name the right file"
                else:
                    number += 1
                    yield start, row
                    continue
                raise CnnlabError(f"{name}, line {start}: {fault}")
        except csv.Error as error:
            raise CnnlabError(f"{name}, line {line}: {reason(error)}; correct the quotes from there on") from error
    if not width:
        raise CnnlabError(f"{name} is empty; it should start with a header that names its columns")


def read_header(file: IO[bytes], name: str) -> list[str]:
    """Read the first row that is not blank, and close the file. Return [] for an empty file. Raise CnnlabError."""
    with open_text(file, name) as text:
        rows = table_reader(text, name)
        try:
            return next((row for row in rows if any(map(str.strip, row))), [])
        except csv.Error as error:
            raise CnnlabError(f"{name}, line {rows.line_num}: {reason(error)}; correct the quotes there") from error


def open_text(file: IO[bytes], name: str) -> io.TextIOWrapper:
    """Read a text file, whose encoding is detected from its bytes, and close it.

    Bytes that fit no encoding become surrogates. Raise CnnlabError if it is not text (see `kinds`) or too large.
    """
    with file:
        content = file.read(_LARGEST + 1)
    if kind := kind_of(content[:HEAD], content[-HEAD:]):
        raise CnnlabError(f"{name} {kind.in_place_of_table()}")
    if len(content) > _LARGEST:
        raise CnnlabError(f"{name} is over {_LARGEST:,} bytes; name the right file")
    if len(content) % 2 and content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        content = content.removesuffix(b"\n")  # added by a program that treated UTF-16 as ASCII
    return io.TextIOWrapper(io.BytesIO(content), text_encoding(content), errors="surrogateescape", newline="")


def table_reader(text: io.TextIOWrapper, name: str) -> Any:
    """Return a CSV reader. The delimiter is the comma, semicolon or tab, whichever the header has most of.

    Excel writes semicolons where the comma is the decimal point, and tabs in UTF-16.
    """
    head = next((line for line in iter(lambda: text.readline(_LONGEST_LINE), "") if line.strip()), "")
    text.seek(0)
    unquoted = re.sub('"[^"]*"', "", head)
    return csv.reader(_lines(text, name), delimiter=max(",;\t", key=unquoted.count), strict=True)


def _lines(text: io.TextIOWrapper, name: str) -> Iterator[str]:
    """Yield the lines. Raise CnnlabError for a line that is not UTF-8, and beyond the limits on memory."""
    total = row = 0  # characters
    for number in count(1):
        line = text.readline(_LONGEST_LINE)
        total += len(line)
        row = row + len(line) if line.count('"') % 2 == (row == 0) else 0  # of a row that has not ended
        if len(line) == _LONGEST_LINE:
            fault = f"over {_LONGEST_LINE:,} characters"
        elif row > _LONGEST_ROW:
            fault = f"a row of over {_LONGEST_ROW:,} characters, or a quote that is not closed"
        elif total > _LARGEST:
            fault = f"over {_LARGEST:,} characters in all"
        elif _NOT_UTF8.search(line):
            fault = "not UTF-8 text"
        elif line:
            yield line
            continue
        else:
            return
        raise CnnlabError(f"{name}, line {number}: {fault}; save the table as CSV in UTF-8")


def column_index(name: str, header: list[str], column: str) -> int:
    """Return a column's index. `column` may differ in case and spaces. Raise CnnlabError unless exactly one fits."""
    columns = [h.strip() for h in header]
    wanted = column.strip()
    if wanted not in columns:
        columns = list(map(plain_header, columns))
        wanted = plain_header(wanted)
    if columns.count(wanted) == 1:
        return columns.index(wanted)
    if wanted in columns:
        raise CnnlabError(f"{name}: its header has {columns.count(wanted)} columns {column!r}; rename all but one")
    hint = "; separate columns by commas" if len(header) == 1 and set("|;\t") & set(header[0]) else ""
    raise CnnlabError(f"{name}: no column {column!r}; {near(column, [h.strip() for h in header[:1000]])}{hint}")


def plain_header(text: str) -> str:
    """Return a column's name without differences in case, width and spaces: `Student ID`, `student id`, `ｉｄ`."""
    return " ".join(unicodedata.normalize("NFKC", text).replace("_", " ").split()).casefold()


def quoted(text: str) -> str:
    """Return text from a file for an error message: quoted, shortened, with control characters escaped."""
    return repr(text if len(text) <= 60 else text[:60] + "...")


def near(name: str, names: list[str]) -> str:
    """Return a hint for an unknown name: the most similar names, or else the first ones."""
    similar = difflib.get_close_matches(name[:200], names, cutoff=0.5)
    return f"did you mean {' or '.join(map(quoted, similar))}?" if similar else f"known: {first(names, 20)}"


def first(texts: Collection[str], most: int = 3) -> str:
    """Return the first few strings, quoted and separated by commas."""
    return ", ".join(map(quoted, islice(texts, most))) + (", ..." if len(texts) > most else "")
