"""`cnnlab lessons`: parse, make one public call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

lessons = typer.Typer(
    invoke_without_command=True, help="The chapter as notebooks, in English and Chinese: list them, copy them."
)

Language = Annotated[str, typer.Option(help="en or zh.")]


@lessons.callback()
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_()


@lessons.command("list")
def list_(language: Language = "en") -> None:
    """List the lessons."""
    from cnnlab.chapter import lessons as found
    from cnnlab.io.text import echo

    for name in found.lessons():
        echo(f"{name:<14}  {found.title(name, language)}")


@lessons.command()
def copy(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the notebooks; made where it is missing.")],
    language: Language = "en",
    solutions: Annotated[
        bool, typer.Option("--solutions/--no-solutions", help="With the exercises' solutions, collapsed, or without.")
    ] = True,
) -> None:
    """Write the lessons as notebooks. Nothing is overwritten."""
    from cnnlab.chapter import lessons as found
    from cnnlab.io.text import echo

    for path in found.copy(folder, language=language, solutions=solutions):
        echo(path)
