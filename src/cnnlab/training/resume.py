"""Continue an interrupted run or series, or train a finished run for more epochs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cnnlab.data.own import own_images
from cnnlab.data.own_augment import Augment
from cnnlab.device.world import launched
from cnnlab.io.errors import CnnlabError
from cnnlab.models.own import Network
from cnnlab.recipe import Recipe
from cnnlab.training import runs
from cnnlab.training.checkpointer import explained_write_errors
from cnnlab.training.folders import check_free, new_folder, removed_if_empty
from cnnlab.training.own import check_own
from cnnlab.training.results import Result, SeedsResult
from cnnlab.training.runs import Run
from cnnlab.training.series import is_series, open_series
from cnnlab.training.session import OnEpoch, Session
from cnnlab.training.start import continued_recipe, record_move, started_members
from cnnlab.training.train import train_run
from cnnlab.training.train_series import check_builder, check_single, train_members


def resume(
    path: str | Path,
    *,
    model: Network | None = None,
    data: Any = None,
    runs_dir: str | Path = "runs",
    device: str = "auto",
    threads: int | None = None,
    data_dir: str | Path | None = None,
    skip_bad: bool = False,
    on_nan: str | None = None,
    name: str | None = None,
    progress: str = "auto",
    on_epoch: OnEpoch | None = None,
    augment: Augment | None = None,
    **settings: Any,
) -> Result | SeedsResult:
    """Continue an interrupted run, or a series of several seeds or folds, to the same weights, bit for bit.

    model, data, augment: the network, images and augmentation of your own that the run was started with; its folder
    lacks them. data may also name where the source's images are now. Default for device, threads, data_dir and
    skip_bad: what the run started with. on_nan: stop or skip, from here on, instead of the recipe's, which is changed.
    settings: epochs=40 trains a finished run for more epochs, in the new folder `runs_dir`/`name`; the learning rate
    follows the schedule over all of them. Without settings, a finished run is not changed.
    Raise as `train`; also if the data have changed, or another process trains this run.
    """
    folder = runs.find_folder(path, Path(runs_dir))
    series = open_series(folder) if is_series(folder) else None
    if series is not None:
        if on_nan is not None or settings:
            raise CnnlabError(
                f"{folder} holds several {series.kind}; settings are changed for one of its runs: name that"
            )
        check_builder(model, series.kind)
    moved = data if isinstance(data, str) else None
    if launched():
        check_single(series.kind if series is not None else "")
        if moved is not None or on_nan is not None:
            raise CnnlabError("--data and --on-nan change the run itself: resume it with one process first")
    images = own_images(data) if data is not None and moved is None else None
    session = Session(device, threads, data_dir, skip_bad, progress, on_epoch, model, images, augment)
    if series is not None:
        first = next(iter(started_members(folder)), None)  # not always the first number: its folder may be gone
        recipe = series.recipe_of(getattr(first.recipe, series.setting) if first else series.numbers[0])
    else:
        first = run = runs.open_run(folder)
        summary = run.summary()
        if settings:
            recipe = continued_recipe(run, {**settings, **({"on_nan": on_nan} if on_nan is not None else {})})
            if summary is None:
                raise CnnlabError(f"{folder} is not finished; resume it without settings first")
        elif summary is not None:
            session.display.message(f"{run.path} is finished: nothing to resume; --epochs N trains it for more epochs")
            return Result(run, summary, network=model)
        elif on_nan is not None and on_nan != run.recipe.on_nan:
            with runs.locked(run.path), explained_write_errors(run.path):
                first = run = runs.change_recipe(run, run.recipe.changed(on_nan=on_nan))
        recipe = recipe if settings else run.recipe
    augmented = series.augment if series is not None else run.augment
    builder = first.builder if first else ""
    check_own(folder, recipe, builder=builder, augmented=augmented, model=model, data=images, augment=augment)
    if first is not None:
        session.continue_as(first)
    if series is not None:
        session.origin = series.origin
    if settings:
        check_free(Path(runs_dir), name)
    with session:
        with session.world.together():
            recipe = _load_again(session, recipe, moved, first)
        with session.ctrl_c:
            if settings:
                session.origin = {"kind": "continued", "run": str(run.path.absolute()), "epochs": len(run.metrics())}
                new = session.world.from_first(lambda: new_folder(Path(runs_dir), name, recipe))
                with removed_if_empty(new) as path:
                    continued = session.world.from_first(lambda: session.create(path, recipe))
                    return train_run(session, continued, runs.first_session(run))
            if moved is not None:
                record_move(folder, recipe.data)
            if series is not None:
                return train_members(session, open_series(folder))
            return train_run(session, runs.open_run(folder))


def _load_again(session: Session, recipe: Recipe, moved: str | None, first: Run | None) -> Recipe:
    """Load the images of a resumed run, or of the `first` run of a series. moved: where they are now."""
    try:
        return session.load_data(recipe if moved is None else replace(recipe, data=moved), again=first)
    except CnnlabError as error:
        if moved is None and "does not exist" in str(error):
            raise CnnlabError(f"{error}; if its images are elsewhere now, name the place with --data") from error
        raise
