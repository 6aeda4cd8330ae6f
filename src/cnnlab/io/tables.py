"""Tables and JSON as text, for the command line and for reports. A table fits the terminal: 80 columns without one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from typing import Any

from rich.cells import cell_len, set_cell_size

from cnnlab.io.text import escape

_GAP = 2  # spaces between two columns
_LEAST = 12  # columns of a cell that is shortened; narrower ones stay whole


def to_json(value: Any) -> str:
    """Return `value` as indented JSON in ASCII, which every terminal and code page leaves as it is."""
    return json.dumps(value, indent=2)


def number(value: float | None, form: str = ".3f") -> str:
    """Return `value` in the format `form`, and an empty text for None."""
    return "" if value is None else format(value, form)


def terminal_width() -> int:
    """Return the columns of the terminal, or 80 if the output goes elsewhere."""
    return max(40, shutil.get_terminal_size((80, 24)).columns)


def shorten(text: str, width: int) -> str:
    """Return `text`, with `...` in place of its middle if it takes more than `width` columns."""
    if cell_len(text) <= width:
        return text
    head = (width - 3 + 1) // 2
    tail = text[::-1]
    end = set_cell_size(tail, width - 3 - head).rstrip()[::-1]
    return f"{set_cell_size(text, head).rstrip()}...{end}"


def wrap(text: str, indent: int = 0, width: int | None = None) -> str:
    """Return `text` in lines of at most `width` columns, all but the first indented. Default: the terminal's.

    A path stays whole, so that it can be copied. Spaces at the start stay.
    """
    width = (width or terminal_width()) - indent
    words = text.lstrip(" ")
    lines = [" " * (len(text) - len(words))]
    for word in words.split(" "):
        if lines[-1].strip() and cell_len(lines[-1]) + 1 + cell_len(word) > width:
            lines.append("")
        lines[-1] += (" " if lines[-1].strip() else "") + word
        while cell_len(lines[-1]) > width and "/" not in lines[-1]:  # a language without spaces
            fits = max(1, len(set_cell_size(lines[-1], width).rstrip()))  # else a width of 1 or less would never end
            lines[-1:] = [lines[-1][:fits], lines[-1][fits:]]
    return ("\n" + " " * indent).join(lines)


def definitions(entries: Mapping[str, str]) -> str:
    """Return a line `  name  text` for each entry, the texts aligned and wrapped."""
    width = max(map(cell_len, entries))
    return "\n".join(f"  {name:<{width}}  {wrap(text, width + 4)}" for name, text in entries.items())


class Table:
    """Rows of texts, each cell escaped to one line. The first column is left-aligned.

    left: the other left-aligned columns, by number.
    """

    def __init__(self, *columns: str, left: tuple[int, ...] = ()) -> None:
        self._left = {0, *left}
        self._head = [*map(escape, columns)]
        self.rows: list[list[str]] = []

    def add_row(self, *cells: str) -> None:
        """Add a row; missing cells are empty."""
        self.rows.append([*map(escape, cells), *[""] * (len(self._head) - len(cells))])

    def __str__(self) -> str:
        """Return the table as text.

        If it is too wide, its longest cells lose their middle; if that does not suffice, the columns are spread over
        several tables, one below the other.
        """
        lines, limit = [self._head, *self.rows], terminal_width()
        widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
        most = max(widths)
        while (wide := sum(min(w, most) + _GAP for w in widths) - _GAP > limit) and most > _LEAST:
            most -= 1
        if wide:  # several tables in any case, so names can be longer
            most = (limit - _GAP) // 2
        widths = [min(w, most) for w in widths]
        blocks: list[list[int]] = [[0]]
        for k in range(1, len(widths)):
            if len(blocks[-1]) > 1 and sum(widths[i] + _GAP for i in [*blocks[-1], k]) - _GAP > limit:
                blocks.append([0])
            blocks[-1].append(k)
        return "\n\n".join("\n".join(self._line(line, block, widths) for line in lines) for block in blocks)

    def _line(self, cells: list[str], columns: list[int], widths: list[int]) -> str:
        parts = []
        for k in columns:
            text = shorten(cells[k], widths[k])
            space = " " * (widths[k] - cell_len(text))
            parts.append(text + space if k in self._left else space + text)
        return (" " * _GAP).join(parts).rstrip()
