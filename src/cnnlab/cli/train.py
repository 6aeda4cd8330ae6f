"""`cnnlab train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cnnlab.cli.options import DataDir, DeviceName, Progress, RunsDir, Settings, SkipBad, Threads, print_training
from cnnlab.io.errors import CnnlabError


def train(
    model: Annotated[
        str | None,
        typer.Argument(help="Network, see `cnnlab list models`. Default: the recipe's.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, fashion-mnist, folder:PATH or store:PATH. Default: the recipe's.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="See `cnnlab list recipes`. Default: the recipe for the data source.", show_default=False),
    ] = None,
    set_: Settings = None,
    seeds: Annotated[
        int | None, typer.Option(help="Train with this many seeds; print mean and std.", show_default=False)
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Resume an interrupted run.", show_default=False)
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the run's folder. Default: data, network and a number.", show_default=False),
    ] = None,
    device: DeviceName = "auto",
    threads: Threads = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = Path("runs"),
    skip_bad: SkipBad = False,
    on_nan: Annotated[
        str | None,
        typer.Option(
            help="If the loss is NaN or Inf: stop, or skip the update. Default: the recipe's (stop).",
            show_default=False,
        ),
    ] = None,
    auto_batch: Annotated[
        bool, typer.Option("--auto-batch", help="Halve the batch size until a step fits in memory.")
    ] = False,
    progress: Progress = "auto",
) -> None:
    """Train a network.

    Without arguments: handwritten digits, in under a minute.
    """
    from cnnlab.recipes import choose_recipe
    from cnnlab.training import train as training

    common: dict[str, Any] = {
        "runs_dir": runs_dir, "device": device, "threads": threads, "data_dir": data_dir, "skip_bad": skip_bad,
        "progress": progress,
    }  # fmt: skip
    if resume is not None:
        given = {
            "MODEL": model,
            "--data": data,
            "--recipe": recipe,
            "--set": set_,
            "--seeds": seeds,
            "--name": name,
            "--auto-batch": auto_batch or None,
        }
        extra = [option for option, value in given.items() if value not in (None, [])]
        if extra:
            raise CnnlabError(f"--resume uses the run's own recipe; leave out {', '.join(extra)}")
        print_training(lambda: training.resume(resume, on_nan=on_nan, **common))
        return
    settings = [*(set_ or ()), *([f"on_nan={on_nan}"] if on_nan is not None else ())]
    chosen = choose_recipe(model=model, data=data, recipe=recipe, settings=settings)
    common["auto_batch"] = auto_batch
    if seeds is None:
        print_training(lambda: training.train(chosen, name=name, **common))
    else:
        print_training(lambda: training.train_seeds(chosen, seeds, name=name, **common))
