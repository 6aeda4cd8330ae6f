"""Escape text from elsewhere (file names, labels, content of damaged files) for terminals, tables and pages."""

from __future__ import annotations

import re
import sys
import unicodedata

# A spreadsheet treats a cell that starts like this as a formula. Semicolons may separate cells, too.
_FORMULA = re.compile(r"(^|;)(?=[\s'\"]*[=+\-@＝＋－＠])")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def escape(text: str) -> str:
    """Return `text` as one harmless line: escape line ends, terminal commands, invisible and reversing characters.

    Escapes are JSON's, so that JSON stays JSON.
    """
    return text if text.isprintable() else "".join(c if _is_harmless(c) else _escape(c) for c in text)


def escape_lines(text: str) -> str:
    """Escape each line of a text whose line ends are our own."""
    return text if text.isprintable() else "\n".join(map(escape, text.split("\n")))


def echo(text: object, *, error: bool = False, flush: bool = False) -> None:
    """Print a text, escaped line by line; error: to standard error."""
    print(escape_lines(str(text)), file=sys.stderr if error else sys.stdout, flush=flush)


def echo_csv(text: str) -> None:
    """Print a CSV table to standard output in UTF-8, whatever the terminal's encoding: programs read it."""
    stream = getattr(sys.stdout, "buffer", None)
    if stream is None:  # a notebook, a test
        print(text)
        return
    sys.stdout.flush()
    stream.write(f"{text}\n".encode())
    stream.flush()


def truncate(text: str, most: int = 200) -> str:
    """Return `text`, cut to `most` characters."""
    return text if len(text) <= most else f"{text[:most]}..."


def plural(count: int, noun: str) -> str:
    """Return the count with its noun: `1 epoch`, `1,200 images`."""
    ending = "" if count == 1 else "es" if noun.endswith(("s", "x", "tch")) else "s"
    return f"{count:,} {noun}{ending}"


def cell(text: str) -> str:
    """Escape `text` for a CSV cell: put an apostrophe before what a spreadsheet would take for a formula.

    Numbers stay as they are.
    """
    text = escape(text)
    return text if _NUMBER.fullmatch(text) else _FORMULA.sub(r"\1'", text)


def markdown(text: str) -> str:
    """Escape `text` for a cell of a Markdown table: no new cell, HTML, link or picture."""
    return re.sub(r"[&<>|`\[\]]", lambda match: f"&#{ord(match[0])};", escape(text))


def _is_harmless(c: str) -> bool:
    return c.isprintable() or unicodedata.category(c) == "Zs"  # the spaces of other scripts


def _escape(c: str) -> str:
    number = ord(c)
    if number > 0xFFFF:
        number -= 0x10000
        return f"\\u{0xD800 + (number >> 10):04x}\\u{0xDC00 + (number & 0x3FF):04x}"
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(c, f"\\u{number:04x}")
