"""`cnnlab lessons`: list and copy the notebooks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

lessons = typer.Typer(invoke_without_command=True, help="The chapter as notebooks, in English and Chinese.")

Language = Annotated[str, typer.Option(help="en or zh.")]


@lessons.callback()
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_()


@lessons.command("list")
def list_(language: Language = "en") -> None:
    """List the lessons."""
    from cnnlab.chapter import lessons as sources
    from cnnlab.io.text import echo

    for name in sources.lessons():
        echo(f"{name:<14}  {sources.title(name, language)}")


@lessons.command()
def copy(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the notebooks. Created if missing.")],
    language: Language = "en",
    solutions: Annotated[
        bool, typer.Option("--solutions/--no-solutions", help="Include the solutions of the exercises, collapsed.")
    ] = True,
) -> None:
    """Copy the notebooks into a folder. Nothing is overwritten."""
    from cnnlab.chapter import lessons as sources
    from cnnlab.io.text import echo

    for path in sources.copy(folder, language=language, solutions=solutions):
        echo(path)
