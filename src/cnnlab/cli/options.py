"""What the command's parts share: options that several commands take, and how a training's end is told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cnnlab.io import interrupt
from cnnlab.io.errors import TrainingInterrupted
from cnnlab.io.text import echo

RunsDir = Annotated[Path, typer.Option(help="Folder of the runs.")]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder of the datasets. Unsaid: CNNLAB_DATA, else the user's cache.", show_default=False),
]
DeviceName = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Threads = Annotated[int | None, typer.Option(help="Threads of the CPU. Unsaid: all cores.", show_default=False)]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave damaged images out instead of stopping.")]
Weights = Annotated[
    str | None, typer.Option(help="best or last. Unsaid: best, if chosen on validation.", show_default=False)
]
Progress = Annotated[
    str, typer.Option(help="auto, bar, lines, notebook or none. auto: a bar in a terminal, else none.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe. May be repeated."),
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or its name in --runs-dir.")]
IdColumn = Annotated[str, typer.Option(help="Column of the ids.", rich_help_panel="Layout")]
LabelColumn = Annotated[str, typer.Option(help="Column of the labels.", rich_help_panel="Layout")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_training(call: Callable[[], object], stopped: str = "") -> None:
    """Call, and print what comes back; where Ctrl-C stopped it, what it says, with exit code 130 (SIGTERM: 143).

    stopped: how to go on, where that is not by the training's own command.
    """
    # Typer would turn the interruption into a bare exit code and lose what it says.
    try:
        echo(call())
    except TrainingInterrupted as error:
        interrupt.ending()
        echo(f"{str(error).partition(' Continue with:')[0]} {stopped}" if stopped else error, error=True)
        sys.exit(error.code)
    except KeyboardInterrupt:
        interrupt.ending()
        echo(stopped or "stopped before there was anything to keep", error=True)
        sys.exit(130)
