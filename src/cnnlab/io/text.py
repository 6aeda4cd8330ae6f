"""Text from elsewhere (names of files, labels, what a damaged file holds) made fit for a terminal, a page, a table."""

from __future__ import annotations

import re
import sys
import unicodedata

# A spreadsheet takes a cell that begins so for a formula, and where it separates cells by semicolons, a part of one.
_FORMULA = re.compile(r"(^|;)(?=[\s'\"]*[=+\-@＝＋－＠])")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def escape(text: str) -> str:
    """`text` as it may stand in a line: line ends, a terminal's commands, invisible and reversing signs are escaped.

    They are written as JSON writes them, so that a text that is JSON stays it.
    """
    return text if text.isprintable() else "".join(c if _fit(c) else _escape(c) for c in text)


def escape_lines(text: str) -> str:
    """`shown` line by line: for a text of our own with line ends of our own."""
    return text if text.isprintable() else "\n".join(map(escape, text.split("\n")))


def echo(text: object, *, error: bool = False, flush: bool = False) -> None:
    """Print a `page`; error: on standard error."""
    print(escape_lines(str(text)), file=sys.stderr if error else sys.stdout, flush=flush)


def truncate(text: str, most: int = 200) -> str:
    """`text`, or its beginning where it is longer than a person wants to read in a line."""
    return text if len(text) <= most else f"{text[:most]}..."


def cell(text: str) -> str:
    """`text`, `shown`, as it may stand in a table that a person opens: what a spreadsheet took for a formula is quoted.

    By an apostrophe in front, which spreadsheets take for "this is text". A number stays as it is.
    """
    text = escape(text)
    return text if _NUMBER.fullmatch(text) else _FORMULA.sub(r"\1'", text)


def markdown(text: str) -> str:
    """`text` as it may stand in a cell of a Markdown table: neither a new cell nor HTML, a link or a picture."""
    return re.sub(r"[&<>|`\[\]]", lambda found: f"&#{ord(found[0])};", escape(text))


def _fit(c: str) -> bool:
    return c.isprintable() or unicodedata.category(c) == "Zs"  # the spaces of other scripts


def _escape(c: str) -> str:
    number = ord(c)
    if number > 0xFFFF:
        number -= 0x10000
        return f"\\u{0xD800 + (number >> 10):04x}\\u{0xDC00 + (number & 0x3FF):04x}"
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(c, f"\\u{number:04x}")
