"""The `cnnlab` command: its wiring and its exit codes. Slow modules are imported where they are used."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from cnnlab import __version__
from cnnlab.cli.bench import bench
from cnnlab.cli.calibrate import calibrate
from cnnlab.cli.chapter import classical, figures, reproduce
from cnnlab.cli.doctor import data as data_commands
from cnnlab.cli.doctor import doctor
from cnnlab.cli.evaluate import evaluate
from cnnlab.cli.export import export
from cnnlab.cli.grade import grade
from cnnlab.cli.inspect import inspect
from cnnlab.cli.kaggle import kaggle
from cnnlab.cli.lessons import lessons
from cnnlab.cli.list import list_, show
from cnnlab.cli.lr_find import lr_find
from cnnlab.cli.predict import predict
from cnnlab.cli.race import race
from cnnlab.cli.report import report
from cnnlab.cli.runs import runs
from cnnlab.cli.serve import serve
from cnnlab.cli.sweep import sweep
from cnnlab.cli.train import train
from cnnlab.cli.ui import ui
from cnnlab.io import interrupt
from cnnlab.io.errors import CnnlabError, ReportedElsewhere, out_of_memory, reason
from cnnlab.io.text import echo

app = typer.Typer(
    name="cnnlab",
    help="Modern convolutional networks for small images: train, evaluate, predict.\n\n"
    "Start with `cnnlab train`: handwritten digits, no download, under a minute.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(kaggle, name="kaggle")
app.add_typer(data_commands, name="data")
app.add_typer(lessons, name="lessons")


def _print_version(wanted: bool) -> None:
    if wanted:
        echo(f"cnnlab {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


COMMANDS: dict[str, Callable[..., None]] = {
    "train": train, "lr-find": lr_find, "sweep": sweep, "eval": evaluate, "predict": predict, "calibrate": calibrate,
    "inspect": inspect, "report": report, "export": export, "ui": ui, "serve": serve, "runs": runs,
    "list": list_, "show": show,
    "reproduce": reproduce, "classical": classical, "figures": figures, "grade": grade, "bench": bench,
    "race": race, "doctor": doctor,
}  # fmt: skip
for name, command in COMMANDS.items():
    app.command(name)(command)


def main() -> NoReturn:
    """Run the command. On bad input, print one line on standard error and exit with code 2."""
    several = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    if several and sys.argv[1:2] != ["train"]:
        _fail("torchrun has started several processes, and only `cnnlab train` divides its work among them")
    silent = several and os.environ.get("RANK") != "0"
    if silent:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - only the first of several processes prints
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name or a ± that this terminal cannot print
    try:
        code = app(standalone_mode=False)
        if code == 130:  # Typer turns Ctrl-C into this silently; a training prints its own message
            echo("stopped", error=True)
        if sys.stdout is not None:  # None if the parent process closed it
            sys.stdout.flush()
    except CnnlabError as error:
        connected = getattr(sys.modules.get("cnnlab.device.world"), "connected", False)
        if isinstance(error, ReportedElsewhere) or (silent and not connected):
            _end_after_the_first(2)
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        interrupt.ignore_ctrl_c()
        echo("stopped", error=True)
        sys.exit(130)
    except (BrokenPipeError, SystemExit) as error:
        if not isinstance(error, BrokenPipeError) and not isinstance(error.__context__, BrokenPipeError):
            raise
        # The reader of our output (head, less) has exited, which is not an error; Typer would exit with 1.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        _fail(f"{error.filename}: {reason(error)}" if error.filename else reason(error))
    except Exception as error:
        if out_of_memory(error):
            _fail("out of memory; use smaller images (image_size), a smaller batch_size or fewer images")
        # Typer's own errors (unknown option, missing argument) format themselves.
        if not hasattr(error, "format_message"):
            raise
        if not error.format_message():  # a group without a command: its help has been printed
            sys.exit(2)
        _fail(f"{error.format_message().rstrip('.')}. See cnnlab --help, or cnnlab COMMAND --help.")
    sys.exit(code if isinstance(code, int) else 0)


def _end_after_the_first(code: int) -> NoReturn:
    """Exit after the first process, which prints the error: torchrun ends all the others as soon as one has ended."""
    time.sleep(10)
    sys.exit(code)


def _fail(text: str) -> NoReturn:
    echo(f"error: {' '.join(text.splitlines())}", error=True)  # Typer's errors may have several lines
    sys.exit(2)
