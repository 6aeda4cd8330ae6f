"""Tables and JSON as text, for the command line and for reports."""

from __future__ import annotations

import io
import json
from typing import Any

from rich import table as rich_table
from rich.console import Console

from cnnlab.io.text import escape


def to_json(value: Any) -> str:
    """Return `value` as indented JSON in ASCII, which every terminal and code page leaves as it is."""
    return json.dumps(value, indent=2)


def number(value: float | None, form: str = ".3f") -> str:
    """Return `value` in the format `form`, and an empty text for None."""
    return "" if value is None else format(value, form)


class Table(rich_table.Table):
    """A table whose cells are one line each, whatever a file name or a label holds."""

    def add_row(self, *cells: str) -> None:  # type: ignore[override]
        """Add a row of escaped cells."""
        super().add_row(*map(escape, cells))


def new_table(*columns: str) -> Table:
    """Return an empty table. The first column is left-aligned, the others right-aligned."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(escape(column), justify="left" if i == 0 else "right", overflow="fold")
    return table


def as_text(table: Table) -> str:
    """Return the table as text, as wide as needed: a name broken in two cannot be copied."""
    # In a notebook, a Console would display the text instead of writing it, unless force_jupyter is False.
    console = Console(
        file=io.StringIO(),
        markup=False,
        emoji=False,
        highlight=False,
        width=10_000,
        force_jupyter=False,
        force_terminal=False,
    )
    console.print(table)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip("\n").splitlines())  # type: ignore[attr-defined]
