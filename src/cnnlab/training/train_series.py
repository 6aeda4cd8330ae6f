"""Train a recipe several times into one folder: `train_seeds` and `train_folds`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from cnnlab.data.own_augment import Augment
from cnnlab.device.world import launched
from cnnlab.io.errors import CnnlabError, TrainingInterrupted
from cnnlab.io.files import write_checked
from cnnlab.models.own import Network, own_name
from cnnlab.recipe import Recipe
from cnnlab.training import runs
from cnnlab.training.checkpointer import explained_write_errors
from cnnlab.training.choice import choose
from cnnlab.training.folders import check_free, new_folder, removed_if_empty
from cnnlab.training.locks import locked
from cnnlab.training.out_of_fold import write_out_of_fold
from cnnlab.training.own import resume_call
from cnnlab.training.results import FoldsResult, Result, SeedsResult
from cnnlab.training.runs import Run
from cnnlab.training.series import MOST_RUNS, Series, spread
from cnnlab.training.session import OnEpoch, Session
from cnnlab.training.start import check_origin, defaults_from_run, note_seen_images, started_members, weights_of
from cnnlab.training.train import train_run


def train_seeds(
    recipe: Recipe | str | Network | None = None,
    count: int = 5,
    *,
    model: str | Network | None = None,
    data: Any = None,
    runs_dir: str | Path = "runs",
    name: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    data_dir: str | Path | None = None,
    skip_bad: bool = False,
    auto_batch: bool = False,
    init_from: Run | str | Path | None = None,
    progress: str = "auto",
    on_epoch: OnEpoch | None = None,
    augment: Augment | None = None,
    **settings: Any,
) -> SeedsResult:
    """Train `count` times, from seeds recipe.seed, recipe.seed + 1, ..., into one folder.

    on_epoch: as for `train`; False ends the training of that seed. A network of your own must be a builder, since a
    module has one set of starting weights. Other arguments and errors: as for `train`.
    """
    if not 1 <= count <= MOST_RUNS:
        raise CnnlabError(f"seeds={count}: must lie between 1 and {MOST_RUNS:,}")
    machine = {"device": device, "threads": threads, "data_dir": data_dir, "skip_bad": skip_bad, "progress": progress,
               "on_epoch": on_epoch, "augment": augment}  # fmt: skip
    return _train_new("seeds", count, recipe, model, data, settings, runs_dir, name, auto_batch, init_from, machine)


def train_folds(
    recipe: Recipe | str | Network | None = None,
    count: int = 5,
    *,
    model: str | Network | None = None,
    data: Any = None,
    runs_dir: str | Path = "runs",
    name: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    data_dir: str | Path | None = None,
    skip_bad: bool = False,
    auto_batch: bool = False,
    init_from: Run | str | Path | None = None,
    progress: str = "auto",
    on_epoch: OnEpoch | None = None,
    augment: Augment | None = None,
    **settings: Any,
) -> FoldsResult:
    """Train `count` times into one folder, each time on all images but one fold, which is held out: cross-validation.

    Each image is in one fold. Folds keep the class proportions, and keep groups together (see the setting `group`). The
    result pools the predictions for all images, each by the network that did not see it. Other arguments and errors: as
    for `train`.
    """
    if count < 2:
        raise CnnlabError(f"folds={count}: must be at least 2")
    machine = {"device": device, "threads": threads, "data_dir": data_dir, "skip_bad": skip_bad, "progress": progress,
               "on_epoch": on_epoch, "augment": augment}  # fmt: skip
    settings |= {"folds": count, "fold": 0}
    result = _train_new("folds", count, recipe, model, data, settings, runs_dir, name, auto_batch, init_from, machine)
    assert isinstance(result, FoldsResult)
    return result


def _train_new(
    kind: str,
    count: int,
    recipe: Recipe | str | Network | None,
    model: str | Network | None,
    data: Any,
    settings: dict[str, Any],
    runs_dir: str | Path,
    name: str | None,
    auto_batch: bool,
    init_from: Run | str | Path | None,
    machine: dict[str, Any],
) -> SeedsResult:
    """Train a new series. machine: arguments of Session; others: see `train`."""
    if init_from is not None and recipe is None:
        model, data, settings = defaults_from_run(init_from, runs_dir, model, data, settings)
    recipe, network, images, given = choose(recipe, model, data, settings)
    first = recipe.seed if kind == "seeds" else 1
    if launched():
        check_single(kind)
    check_builder(network, kind)
    with Session(**machine, network=network, images=images) as session:
        session.given = given
        session.origin = weights_of(init_from, runs_dir) if init_from is not None else None
        own = session.augment.name if session.augment is not None else ""
        series = Series(Path(runs_dir), kind, recipe, range(first, first + count), session.origin, own)
        series.recipe_of(series.numbers[-1])  # raises if the last one is not a valid seed
        check_free(Path(runs_dir), name)
        recipe = session.load_data(series.recipe_of(first))
        check_origin(session, recipe)
        note_seen_images(session, recipe, folds=kind == "folds")
        recipe = session.find_batch_size(recipe) if auto_batch else recipe
        with session.ctrl_c, removed_if_empty(new_folder(Path(runs_dir), name, recipe)) as path:
            series = replace(series, path=path, recipe=recipe)
            series.save()
            return train_members(session, series)


def check_single(kind: str) -> None:
    """Raise CnnlabError for a series, which several processes cannot train together. kind: empty for a single run."""
    if kind:
        option = "--seed N" if kind == "seeds" else "--set folds=K --set fold=N"
        raise CnnlabError(
            f"several processes cannot train a series of {kind} together: start a separate job for each, with {option}"
        )


def check_builder(network: Network | None, kind: str) -> None:
    """Raise CnnlabError for a module in place of a builder: all seeds would start from the same weights."""
    if kind == "seeds" and isinstance(network, nn.Module):
        raise CnnlabError(f"{own_name(network)} is a module with one set of starting weights; pass its class")


def train_members(session: Session, series: Series) -> SeedsResult:
    """Train the runs of a series that are not finished, under its lock. Return all results."""
    recipe, numbers, word = series.recipe, series.numbers, series.setting
    plan_of = next(filter(None, map(runs.first_session, started_members(series.path))), None)  # all share a plan
    results: list[Result] = []
    with locked(series.path):
        for number in numbers:
            folder = series.folder(number)
            try:
                session.ctrl_c.check()
                if series.kind == "folds":
                    session.divide(series.recipe_of(number))
                    for note in session.splits.notes if number != numbers[0] else ():
                        session.display.message(note)
                if (folder / "run.json").exists():
                    run = runs.open_run(folder)
                else:
                    folder.mkdir(exist_ok=True)
                    run = session.create(folder, series.recipe_of(number))
                summary = run.summary()
                done = summary and Result(run, summary, network=session.network)
                results.append(done or train_run(session, run, plan_of))
            except KeyboardInterrupt:
                raise TrainingInterrupted(
                    f"stopped at {word} {number}; {len(results)} of {len(numbers)} {series.kind} are finished. "
                    f"Continue with: {resume_call(series.path, recipe, session.builder(recipe), series.augment)}"
                ) from None
        figures = [
            "loss",
            "train_acc",
            *(f"{recipe.key}_{name}" for name in ("loss", "acc", "balanced_acc", "macro_f1")),
        ]
        figures += ["images_per_second", "examples_per_second"]
        summary = {
            "recipe": recipe.name,
            "eval_split": recipe.eval_split,
            "epoch": "last",
            series.kind: list(numbers),
            **{name: spread([r.summary[name] for r in results]) for name in figures},
        }
        try:
            with explained_write_errors(series.path):
                if series.kind == "folds":
                    summary["out_of_fold"] = write_out_of_fold(session, series, results)
                write_checked(series.path / "summary.json", summary)
        except KeyboardInterrupt:
            raise TrainingInterrupted(
                f"stopped before the summary was written; all {len(numbers)} {series.kind} are finished. "
                f"Continue with: {resume_call(series.path, recipe, session.builder(recipe), series.augment)}"
            ) from None
    return (FoldsResult if series.kind == "folds" else SeedsResult)(series.path, results, summary)
