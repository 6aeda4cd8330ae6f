"""Continue an interrupted run or series, or train a finished run for more epochs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cnnlab.data.own import own_images
from cnnlab.data.own_augment import Augment
from cnnlab.device.world import launched
from cnnlab.io.errors import CnnlabError, SourceMissing
from cnnlab.models.own import Network
from cnnlab.recipe import Recipe
from cnnlab.training import runs
from cnnlab.training.checkpointer import explained_write_errors
from cnnlab.training.folders import check_free, new_folder, removed_if_empty
from cnnlab.training.locks import locked
from cnnlab.training.own import check_own
from cnnlab.training.results import Result, SeedsResult
from cnnlab.training.runs import Run
from cnnlab.training.series import Series, is_series, open_series
from cnnlab.training.session import OnEpoch, Session
from cnnlab.training.start import continued_recipe, earlier_run, record_move, started_members
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

    model, data, augment: your own network, images and augmentation that the run was started with; its folder does not
    hold them. data may also name the place where the source's images are now. Default for device, threads, data_dir
    and skip_bad: what the run started with. on_nan: stop or skip, from here on; this changes the recipe.
    settings: epochs=40 trains a finished run for more epochs, in the new folder `runs_dir`/`name`; the learning rate
    follows the schedule over all of them. Without settings, a finished run is not changed.
    Raise like `train`, and also if the data have changed or another process trains this run.
    """
    folder = runs.find_folder(path, Path(runs_dir))
    moved = data if isinstance(data, str) else None
    images = own_images(data) if data is not None and moved is None else None
    several = is_series(folder)
    if several and (on_nan is not None or settings):
        raise CnnlabError(f"{folder} holds several runs; settings are changed for one of them: name that")
    if launched() and not several and (moved is not None or on_nan is not None):
        raise CnnlabError("--data and --on-nan change the run itself: resume it with one process first")
    session = Session(device, threads, data_dir, skip_bad, progress, on_epoch, model, images, augment)
    if several:
        return _resume_series(session, open_series(folder), moved)
    run = runs.open_run(folder)
    if settings:
        changes = {**settings, **({"on_nan": on_nan} if on_nan is not None else {})}
        return _train_longer(session, run, changes, moved, Path(runs_dir), name)
    return _resume_run(session, run, moved, on_nan)


def _resume_run(session: Session, run: Run, moved: str | None, on_nan: str | None) -> Result:
    """Continue an interrupted run. moved: where its images are now."""
    summary = run.summary()
    if summary is not None:
        session.display.message(f"{run.path} is finished: nothing to resume; --epochs N trains it for more epochs")
        return Result(run, summary, network=session.network)
    if on_nan is not None and on_nan != run.recipe.on_nan:
        with locked(run.path), explained_write_errors(run):
            run = runs.change_recipe(run, run.recipe.changed(on_nan=on_nan))
    _check_own(session, run.path, run.recipe, run, run.augment)
    session.continue_as(run)
    with session:
        recipe = _load_again(session, run.recipe, moved, run)
        with session.ctrl_c:
            if moved is not None:
                record_move(run.path, recipe.data)
            return train_run(session, runs.open_run(run.path))


def _train_longer(
    session: Session, run: Run, changes: dict[str, Any], moved: str | None, runs_dir: Path, name: str | None
) -> Result:
    """Train a finished run for more epochs, in a new folder."""
    if run.summary() is None:
        raise CnnlabError(f"{run.path} is not finished; resume it without settings first")
    recipe = continued_recipe(run, changes)
    _check_own(session, run.path, recipe, run, run.augment)
    session.continue_as(run)
    with session:
        earlier = earlier_run(session, recipe, runs_dir)
        if earlier is not None and (summary := earlier.summary()) is not None:  # a process died after its training
            return Result(earlier, summary, network=session.network)
        with session.world.together():
            if earlier is None:
                check_free(runs_dir, name)
        recipe = _load_again(session, recipe, moved, run)
        with session.ctrl_c:
            if earlier is not None:
                return train_run(session, earlier, runs.first_session(run))
            session.origin = {"kind": "continued", "run": str(run.path.absolute()), "epochs": len(run.metrics())}
            folder = session.world.from_first(lambda: new_folder(runs_dir, name, recipe))
            with removed_if_empty(folder) as path:
                continued = session.world.from_first(lambda: session.create(path, recipe))
                return train_run(session, continued, runs.first_session(run))


def _resume_series(session: Session, series: Series, moved: str | None) -> SeedsResult:
    """Train the runs of a series that are not finished."""
    check_builder(session.network, series.kind)
    if launched():
        check_single(series.kind)
    first = next(iter(started_members(series.path)), None)  # not always the first number: its folder may be gone
    recipe = series.recipe_of(getattr(first.recipe, series.setting) if first else series.numbers[0])
    _check_own(session, series.path, recipe, first, series.augment)
    if first is not None:
        session.continue_as(first)
    session.origin = series.origin
    with session:
        recipe = _load_again(session, recipe, moved, first)
        with session.ctrl_c:
            if moved is not None:
                record_move(series.path, recipe.data)
            return train_members(session, open_series(series.path))


def _check_own(session: Session, folder: Path, recipe: Recipe, first: Run | None, augmented: str) -> None:
    """Raise CnnlabError unless the caller's own network, images and augmentation are passed exactly when needed."""
    check_own(
        folder, recipe, builder=first.builder if first else "", augmented=augmented,
        model=session.network, data=session.images, augment=session.augment,
    )  # fmt: skip


def _load_again(session: Session, recipe: Recipe, moved: str | None, first: Run | None) -> Recipe:
    """Load the images of a resumed run, or of the `first` run of a series. moved: where they are now."""
    with session.world.together():
        try:
            return session.load_data(recipe if moved is None else replace(recipe, data=moved), resumed=first)
        except SourceMissing as error:
            if moved is None:
                raise CnnlabError(f"{error}; if its images are elsewhere now, name the place with --data") from error
            raise
