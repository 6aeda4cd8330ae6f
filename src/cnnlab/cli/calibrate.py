"""`cnnlab calibrate`: choose a run's threshold for "none of these"."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cnnlab.cli.options import AsJson, DataDir, DeviceName, OwnModel, RunName, RunsDir, SkipBad, Threads, own_model
from cnnlab.io.tables import to_json
from cnnlab.io.text import echo


def calibrate(
    run: RunName,
    precision: Annotated[
        float | None,
        typer.Option(help="Required fraction of correct predictions among accepted images.", show_default=False),
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option(help="Required fraction of accepted images; 1 rejects nothing.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Where the run's images are now. Default: where they were.", show_default=False),
    ] = None,
    model: OwnModel = None,
    device: DeviceName = "auto",
    threads: Threads = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = Path("runs"),
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Choose when `predict` answers "none of these".

    The threshold is chosen on the run's validation images, for a given precision or coverage.
    """
    from cnnlab.inference.threshold import set_threshold

    found = set_threshold(
        run, precision=precision, coverage=coverage, model=own_model(model), data=data, runs_dir=runs_dir,
        device=device, data_dir=data_dir, skip_bad=skip_bad, threads=threads,
    )  # fmt: skip
    echo(to_json(found.to_dict()) if as_json else found)
