"""Options that several commands share, and how they run a training."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnnlab.io import interrupt
from cnnlab.io.errors import CnnlabError, TrainingInterrupted
from cnnlab.io.text import echo

if TYPE_CHECKING:
    from cnnlab.models import Builder

RunsDir = Annotated[Path, typer.Option(help="Folder of the runs.")]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder of the datasets. Default: $CNNLAB_DATA, else the cache folder.", show_default=False),
]
DeviceName = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads. Default: one per core.", show_default=False)]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Skip damaged images instead of stopping.")]
Weights = Annotated[
    str | None, typer.Option(help="best or last. Default: best if chosen on validation, else last.", show_default=False)
]
Tta = Annotated[str, typer.Option(help="Test-time augmentation: none, flip (2 views) or shift (6 views).")]
OwnModel = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.py:BUILDER",
        help="Your own network, if the run trained one: a class or function in a Python file. Runs the file.",
        show_default=False,
    ),
]
Progress = Annotated[
    str, typer.Option(help="auto, bar, lines, notebook or none. auto: a bar in a terminal, else lines.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe. May be repeated."),
]
NetworkName = Annotated[
    str | None, typer.Argument(help="Network, see `cnnlab list models`. Default: the recipe's.", show_default=False)
]
NetworkOption = Annotated[
    str | None,
    typer.Option("--model", help="As MODEL, or your own as FILE.py:BUILDER (runs the file).", show_default=False),
]
RecipeName = Annotated[
    str | None,
    typer.Option(
        help="See `cnnlab list recipes`; or a run's recipe.json. Default: chosen for the data and network.",
        show_default=False,
    ),
]
InitFrom = Annotated[
    str | None,
    typer.Option(
        metavar="RUN",
        help="Start from this run's weights. Without --recipe, its network and data are the defaults.",
        show_default=False,
    ),
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run, or its name in --runs-dir.")]
IdColumn = Annotated[str, typer.Option(help="Column of the ids.", rich_help_panel="Layout")]
LabelColumn = Annotated[str, typer.Option(help="Column of the labels.", rich_help_panel="Layout")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def all_settings(texts: Sequence[str], **options: Any) -> dict[str, Any]:
    """Return the settings from `--set` and from the given options. Raise CnnlabError for one given twice."""
    from cnnlab.recipe import parse_settings

    given = {key: value for key, value in options.items() if value is not None}
    more = parse_settings(texts)
    if twice := sorted(given.keys() & more.keys()):
        raise CnnlabError(f"{twice[0]} is given twice, as an option and by --set; leave one out")
    return given | more


def machine_options(
    device: str, threads: int | None, data_dir: Path | None, runs_dir: Path, *, skip_bad: bool
) -> dict[str, str | None]:
    """Return the options of a command to repeat in another: option -> value; "" for a flag, None for a default."""
    return {
        "--data-dir": None if data_dir is None else str(data_dir),
        "--runs-dir": None if runs_dir == Path("runs") else str(runs_dir),
        "--device": None if device == "auto" else device,
        "--threads": None if threads is None else str(threads),
        "--skip-bad": "" if skip_bad else None,
    }


def option_words(given: dict[str, str | None]) -> list[str]:
    """Return the words of a command line. given: see `machine_options`."""
    return [word for option, value in given.items() if value is not None for word in (option, value) if word]


def own_model(name: str | None) -> Builder | None:
    """Return the builder `FILE.py:BUILDER`, or None if `name` is None. Raise CnnlabError if it cannot be loaded."""
    if name is None:
        return None
    from cnnlab.models.own import load_builder

    return load_builder(name)


def one_network(argument: str | None, option: str | None) -> str | None:
    """Return the network named as MODEL or with --model. Raise CnnlabError if both are given."""
    if argument is not None and option is not None:
        raise CnnlabError(f"two networks, {argument} and {option}; name one")
    return argument or option


def named_network(name: str | None) -> str | Builder | None:
    """Return the builder for `FILE.py:BUILDER`, and any other name unchanged. Raise CnnlabError."""
    from cnnlab.models.own import is_file

    return own_model(name) if name is not None and is_file(name) else name


def print_training(call: Callable[[], object], stopped: str = "") -> None:
    """Call `call` and print its result. On Ctrl-C, print how to resume and exit with 130 (on SIGTERM with 143).

    stopped: how to resume, if not with the command that the error names.
    """
    # Typer would turn the interruption into a bare exit code and lose the message.
    try:
        echo(call())
    except TrainingInterrupted as error:
        interrupt.ignore_ctrl_c()
        if os.environ.get("RANK", "0") == "0":  # only the first of several processes prints it
            echo(f"{str(error).partition(' Continue with:')[0]} {stopped}" if stopped else error, error=True)
        sys.exit(error.code)
    except KeyboardInterrupt:
        interrupt.ignore_ctrl_c()
        echo(stopped or "stopped; nothing was saved", error=True)
        sys.exit(130)
