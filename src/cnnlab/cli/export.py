"""`cnnlab export`: a run's network as a file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cnnlab.cli.options import OwnModel, RunName, RunsDir, Weights, own_model
from cnnlab.io.text import echo


def export(
    run: RunName,
    to: Annotated[str, typer.Option(help="onnx.")] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Default: the run's name with .onnx, here.", show_default=False
        ),
    ] = None,
    weights: Weights = None,
    model: OwnModel = None,
    runs_dir: RunsDir = Path("runs"),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
) -> None:
    """Write a run's network to a file for other programs.

    With all that goes before and after it: pixels in, named classes out.
    """
    from cnnlab.export.export import export_run

    echo(export_run(run, to=to, out=out, model=own_model(model), weights=weights, runs_dir=runs_dir, force=force))
