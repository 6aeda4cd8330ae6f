"""`cnnlab report`: a page about a run, or about several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cnnlab.cli.options import DataDir, DeviceName, OwnModel, RunsDir, SkipBad, Threads, Weights, own_model
from cnnlab.io.errors import CnnlabError
from cnnlab.io.text import echo


def report(
    run: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Runs, or a folder of seeds or folds.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Default: the run's name with .html, here.", show_default=False),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="test, val or train. Default: the one it was selected on.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Where the run's images are now, or other images of the same classes. Default: the run's.",
            show_default=False,
        ),
    ] = None,
    weights: Weights = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a model card (Markdown).", show_default=False)
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also draw the pictures, each as PNG and SVG.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    model: OwnModel = None,
    device: DeviceName = "auto",
    threads: Threads = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = Path("runs"),
    skip_bad: SkipBad = False,
) -> None:
    """Write a page about a run: one HTML file.

    It shows curves, the confusion matrix with its images, figures of each
    class, calibration and settings, and where several runs disagree.
    """
    from cnnlab.inspect.report import check_new, default_file
    from cnnlab.inspect.report import report as make

    file = out or default_file(run[0])
    check_new(file, force)
    if markdown is not None:
        check_new(markdown, force, (".md", ".markdown"))
    if (
        pictures is not None
        and pictures.exists()
        and (not pictures.is_dir() or (any(pictures.iterdir()) and not force))
    ):
        what = "is not empty; name another folder, or replace its pictures with --force"
        raise CnnlabError(f"{pictures} {what if pictures.is_dir() else 'is a file; name a folder'}")
    made = make(
        *run,
        split=split,
        weights=weights,
        data=data,
        model=own_model(model),
        runs_dir=runs_dir,
        data_dir=data_dir,
        device=device,
        threads=threads,
        skip_bad=skip_bad,
        folder=file.absolute().parent,
    )
    made.save(file, force=force)
    for part in made.payload["runs"]:
        for text in part["missing"]:
            echo(f"missing: {text}", error=True)
    if markdown is not None:
        made.save_markdown(markdown, force=force)
        echo(f"model card: {markdown}")
    if pictures is not None:
        files = made.save_pictures(pictures, force=force)
        echo(f"pictures: {pictures} ({len(files)} files)")
    echo(f"report: {file} ({file.stat().st_size / 1e6:.1f} MB)")
