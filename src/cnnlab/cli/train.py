"""`cnnlab train`: train a network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cnnlab.cli.options import (
    DataDir,
    DeviceName,
    InitFrom,
    NetworkName,
    NetworkOption,
    Progress,
    RecipeName,
    RunsDir,
    Settings,
    SkipBad,
    Threads,
    all_settings,
    named_network,
    one_network,
    own_model,
    print_training,
)
from cnnlab.io.errors import CnnlabError


def train(
    model: NetworkName = None,
    model_option: NetworkOption = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, fashion-mnist, folder:PATH, csv:FILE or another: `cnnlab list data`. Default: the recipe's.",
            show_default=False,
        ),
    ] = None,
    recipe: RecipeName = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.", show_default=False)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.", show_default=False)] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.", show_default=False)] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd, adamw or muon.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.", show_default=False)] = None,
    set_: Settings = None,
    seeds: Annotated[
        int | None, typer.Option(help="Train with this many seeds; print mean and std.", show_default=False)
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(help="Cross-validation: train with this many folds; print mean and std.", show_default=False),
    ] = None,
    group_duplicates: Annotated[
        bool, typer.Option("--group-duplicates", help="Keep near-duplicates on one side of the validation split.")
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Resume an interrupted run; with --epochs, train a finished one for more epochs.",
            show_default=False,
        ),
    ] = None,
    init_from: InitFrom = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the run's folder. Default: data, network and a number.", show_default=False),
    ] = None,
    device: DeviceName = "auto",
    threads: Threads = None,
    nproc: Annotated[
        int | None,
        typer.Option(
            help="Processes on this machine, one per GPU; each takes a part of every batch. Default: 1.",
            show_default=False,
        ),
    ] = None,
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
    from cnnlab.models.own import is_file

    if nproc is not None and nproc != 1:
        from cnnlab.device.launch import launch
        from cnnlab.device.world import launched

        if launched():
            raise CnnlabError("torchrun has started this process, so --nproc cannot start more; leave it out")
        sys.exit(launch(nproc, _without_nproc(sys.argv[1:])))
    from cnnlab.training.resume import resume as resume_training
    from cnnlab.training.train import train as train_once
    from cnnlab.training.train_series import train_folds, train_seeds

    settings = all_settings(
        set_ or (), epochs=epochs, batch_size=batch_size, learning_rate=lr, optimizer=optimizer, seed=seed, folds=folds,
        group_duplicates=group_duplicates or None, data=data, model=one_network(model, model_option), on_nan=on_nan,
    )  # fmt: skip
    model, data = settings.pop("model", None), settings.pop("data", None)
    common: dict[str, Any] = {
        "runs_dir": runs_dir, "device": device, "threads": threads, "data_dir": data_dir, "skip_bad": skip_bad,
        "progress": progress, "name": name,
    }  # fmt: skip
    if resume is not None:
        on_nan = settings.pop("on_nan", None)
        _refuse_beside_resume({
            "MODEL": None if model is not None and is_file(model) else model,
            "--recipe": recipe,
            "--seeds": seeds,
            "--folds": folds,
            "--group-duplicates": group_duplicates or None,
            "--init-from": init_from,
            "--name": name if not settings else None,
            "--auto-batch": auto_batch or None,
        })  # fmt: skip
        print_training(
            lambda: resume_training(resume, model=own_model(model), data=data, on_nan=on_nan, **common, **settings)
        )
        return
    if seeds is not None and folds is not None:
        raise CnnlabError("--seeds and --folds cannot be combined; leave one out")
    common |= {
        "auto_batch": auto_batch,
        "init_from": init_from,
        "model": named_network(model),
        "data": data,
        **settings,
    }
    if seeds is not None:
        print_training(lambda: train_seeds(recipe, seeds, **common))
    elif (folds is not None or settings.get("folds")) and not settings.get("fold"):
        print_training(lambda: train_folds(recipe, settings["folds"], **common))
    else:
        print_training(lambda: train_once(recipe, **common))


def _refuse_beside_resume(options: dict[str, Any]) -> None:
    """Raise CnnlabError if any of the options is given: it would change the run."""
    if extra := [option for option, value in options.items() if value is not None]:
        raise CnnlabError(f"--resume uses the run's own recipe; leave out {', '.join(extra)}")


def _without_nproc(arguments: list[str]) -> list[str]:
    """Return the command line without `--nproc N` and `--nproc=N`."""
    left, given = [], iter(arguments)
    for argument in given:
        if argument == "--nproc":
            next(given, None)
        elif not argument.startswith("--nproc="):
            left.append(argument)
    return left
