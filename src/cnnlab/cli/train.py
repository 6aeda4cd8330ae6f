"""`cnnlab train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cnnlab.cli.options import DataDir, DeviceName, RunsDir, SkipBad, Threads, print_training
from cnnlab.io.errors import CnnlabError


def train(
    model: Annotated[
        str | None,
        typer.Argument(help="Network (cnnlab list models). Unsaid: the recipe's.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, fashion-mnist, folder:PATH or store:PATH. Unsaid: the recipe's, else digits.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="How to train (cnnlab list recipes). Unsaid: the source's default.", show_default=False),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe; may be repeated."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Train from that many seeds; print mean and std.", show_default=False)
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Go on with an interrupted run.", show_default=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the run's folder. Unsaid: a free one.", show_default=False)
    ] = None,
    device: DeviceName = "auto",
    threads: Threads = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = Path("runs"),
    skip_bad: SkipBad = False,
    on_nan: Annotated[
        str | None,
        typer.Option(
            help="stop or skip: what becomes of an update whose loss is no finite number. Unsaid: the recipe's (stop).",
            show_default=False,
        ),
    ] = None,
    auto_batch: Annotated[
        bool, typer.Option("--auto-batch", help="Halve the batch until a step fits into the memory.")
    ] = False,
    progress: Annotated[
        str, typer.Option(help="auto (a bar in a terminal, else nothing), bar, lines, notebook or none.")
    ] = "auto",
) -> None:
    """Train a network. Without arguments: handwritten digits, in under a minute."""
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
            raise CnnlabError(f"--resume goes on with the run's own recipe; leave out {', '.join(extra)}")
        print_training(lambda: training.resume(resume, on_nan=on_nan, **common))
        return
    settings = [*(set_ or ()), *([f"on_nan={on_nan}"] if on_nan is not None else ())]
    chosen = choose_recipe(model=model, data=data, recipe=recipe, settings=settings)
    common["auto_batch"] = auto_batch
    if seeds is None:
        print_training(lambda: training.train(chosen, name=name, **common))
    else:
        print_training(lambda: training.train_seeds(chosen, seeds, name=name, **common))
