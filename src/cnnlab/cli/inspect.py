"""`cnnlab inspect`: look inside a run's network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cnnlab.cli.options import (
    AsJson,
    DataDir,
    DeviceName,
    OwnModel,
    RunName,
    RunsDir,
    SkipBad,
    Threads,
    Weights,
    own_model,
)
from cnnlab.io.tables import to_json
from cnnlab.io.text import echo


def inspect(
    run: RunName,
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="IMAGE-OR-FOLDER...", help="Default: some of the validation images.", show_default=False
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write the pictures into this folder, as PNG.", show_default=False),
    ] = None,
    class_: Annotated[
        str | None,
        typer.Option("--class", help="Class to explain. Default: the predicted one.", show_default=False),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            help="Layer of the class-activation maps. Default: the last with feature maps.", show_default=False
        ),
    ] = None,
    search: Annotated[int, typer.Option(help="Training images searched for the nearest ones; 0: all.")] = 5000,
    invert: Annotated[bool, typer.Option("--invert", help="Invert the images (swap black and white) first.")] = False,
    data: Annotated[
        str | None,
        typer.Option(help="Where the run's images are now. Default: the run's.", show_default=False),
    ] = None,
    weights: Weights = None,
    model: OwnModel = None,
    device: DeviceName = "auto",
    threads: Threads = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = Path("runs"),
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Look inside a network.

    Print figures and advice for each layer, and the predicted classes and nearest
    training images of each image. With --save, also draw pictures: filters,
    feature maps, class activation, occlusion, neighbours and class prototypes.
    """
    from cnnlab.inspect.inspection import inspect_run

    if save is not None:
        from cnnlab.inspect.pictures import check_folder

        check_folder(save)
    found = inspect_run(
        run,
        images or None,
        model=own_model(model),
        data=data,
        weights=weights,
        class_name=class_,
        layer=layer,
        search=search,
        invert=invert,
        skip_bad=skip_bad,
        runs_dir=runs_dir,
        device=device,
        data_dir=data_dir,
        threads=threads,
    )
    echo(to_json(found.to_dict()) if as_json else found)
    if save is not None:
        for file in found.save(save):
            echo(f"saved: {file}", error=as_json)
        for text in found.left_out:
            echo(f"left out: {text}", error=True)
