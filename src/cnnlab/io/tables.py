"""Tables and JSON as text, for the command line and for reports."""

from __future__ import annotations

import io
import json
from typing import Any

from rich import table as rich_table
from rich.console import Console

from cnnlab.io.text import escape


def to_json(value: Any) -> str:
    """`value` as indented JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def number(value: float | None, form: str = ".3f") -> str:
    """Return `value` in the format `form`, and an empty text for None."""
    return "" if value is None else format(value, form)


class Table(rich_table.Table):
    """A table whose cells are a line each, whatever a file's name or a label holds."""

    def add_row(self, *cells: str) -> None:  # type: ignore[override]
        """Add a row; escape what a terminal would read as a command."""
        super().add_row(*map(escape, cells))


def new_table(*columns: str) -> Table:
    """Return an empty table. The first column is left-aligned, the others right-aligned."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(escape(column), justify="left" if i == 0 else "right", overflow="fold")
    return table


def as_text(table: Table) -> str:
    """The table as text, as wide as it needs to be: a name that is broken in two cannot be copied."""
    # Unless it is told not to, a Console in a notebook shows its text there in place of writing it, with bold type.
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
