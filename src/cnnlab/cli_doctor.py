"""`cnnlab doctor` and `cnnlab data`: parse, make one public call, print."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cnnlab.cli_options import AsJson, DataDir, DeviceName, RunsDir
from cnnlab.safety import say

if TYPE_CHECKING:
    from cnnlab.doctor import Check

data = typer.Typer(no_args_is_help=True, help="The files of a source of images.")


def doctor(
    device: DeviceName = "auto",
    data_dir: DataDir = None,
    runs_dir: RunsDir = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Look whether all is well here, and print what a bug report needs: versions, device, disk, data files, runs."""
    from cnnlab.doctor import examine

    _tell(examine(runs_dir=runs_dir, data_dir=data_dir, device=device), as_json)


@data.command()
def verify(
    source: Annotated[str, typer.Argument(help="digits, fashion-mnist, folder:PATH or store:PATH.")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Check every file of a source of images; exit code 1 where one is damaged."""
    from cnnlab.doctor import verify as look

    _tell(look(source, data_dir=data_dir), as_json)


def _tell(checks: Iterator[Check], as_json: bool) -> None:
    """Print each as it comes, or all as JSON; exit with 1 where something has failed."""
    from cnnlab import tables

    found = []
    for check in checks:
        found.append(check)
        if not as_json:
            say(check, flush=True)
    if as_json:
        say(tables.as_json([check.to_dict() for check in found]))
    if any(check.state == "failed" for check in found):
        raise typer.Exit(1)
