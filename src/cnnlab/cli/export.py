"""`cnnlab export`: a run's network as a file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cnnlab.cli.options import DataDir, OwnModel, RunName, RunsDir, SkipBad, Threads, Weights, own_model
from cnnlab.io.errors import CnnlabError, unknown
from cnnlab.io.text import echo


def export(
    run: RunName,
    to: Annotated[
        str, typer.Option(help="onnx, torch (a .pt2 archive), safetensors (a folder) or web (a page).")
    ] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="PATH",
            help="New file or folder. Default: the run's name, in this folder.",
            show_default=False,
        ),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise, calibrated on training images.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Compute in float16.")] = False,
    max_loss: Annotated[
        float | None,
        typer.Option(
            help="Percentage points of accuracy it may lose. Default: 1 for --int8, 0.1 for --fp16.", show_default=False
        ),
    ] = None,
    look_at_test: Annotated[
        bool,
        typer.Option("--look-at-test", help="Also check on the test images. The run records this as an evaluation."),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(help="Where the run's images are now. Default: the run's.", show_default=False),
    ] = None,
    single_file: Annotated[
        bool, typer.Option("--single-file", help="For web: one HTML file in place of a folder.")
    ] = False,
    runtime: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="For web: the npm package onnxruntime-web. Default: downloaded once.",
            show_default=False,
        ),
    ] = None,
    weights: Weights = None,
    model: OwnModel = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    threads: Threads = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = Path("runs"),
    skip_bad: SkipBad = False,
) -> None:
    """Write a run's network to a file for other programs.

    The file takes pixels and returns class names and probabilities. It is
    first checked on all validation images. An export that changes a predicted
    class is refused; with --int8 or --fp16, one that loses too much accuracy.
    """
    from cnnlab.export.export import FORMS, export_run

    if to not in (*FORMS, "web"):
        raise unknown("format", to, (*FORMS, "web"))
    options: dict[str, Any] = {
        "out": out, "int8": int8, "fp16": fp16, "max_loss": max_loss, "look_at_test": look_at_test,
        "model": own_model(model), "data": data, "weights": weights, "runs_dir": runs_dir, "data_dir": data_dir,
        "threads": threads, "skip_bad": skip_bad, "force": force,
    }  # fmt: skip
    if to == "web":
        from cnnlab.export.web_run import export_web
        from cnnlab.training.display import reporting

        with reporting() as report:
            page = export_web(run, single_file=single_file, runtime=runtime, report=report, **options)
        echo(page)
        return
    if single_file or runtime is not None:
        raise CnnlabError(f"{'--single-file' if single_file else '--runtime'} requires --to web")
    echo(export_run(run, to=to, **options))
