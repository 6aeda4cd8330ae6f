"""The state that a training starts from: its own checkpoint, a finished run, or the weights of another run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.device.hardware import has_bfloat16
from cnnlab.io.errors import CnnlabError
from cnnlab.io.files import digest, read_json, write_atomic
from cnnlab.io.schema import COUNT, NUMBER, check
from cnnlab.io.text import plural, truncate
from cnnlab.recipe import Recipe
from cnnlab.training import runs
from cnnlab.training.checkpoint import Damaged, has_checkpoint, read_weights, weights_metadata
from cnnlab.training.checkpointer import explained_write_errors
from cnnlab.training.finetune import find_head
from cnnlab.training.locks import locked
from cnnlab.training.optim import initialize
from cnnlab.training.own import check_own
from cnnlab.training.plan import Plan
from cnnlab.training.progress import Progress, ranking_size
from cnnlab.training.runs import Run
from cnnlab.training.series import is_series, member_folders, open_series
from cnnlab.training.session import Session

# The settings that may change when a finished run is trained for more epochs. The saved state does not depend on them.
CONTINUABLE = {
    "epochs", "learning_rate", "other_learning_rate", "momentum", "weight_decay", "schedule", "warmup", "cooldown",
    "decay", "decay_every", "clip_norm", "label_smoothing", "on_nan", "save_seconds", "save_steps", "shift",
    "shift_fill", "flip", "alternating_flip", "vertical_flip", "rotation", "zoom", "shear", "fill", "crop_scale",
    "crop_ratio", "brightness", "contrast", "saturation", "randaugment", "magnitude",
    "cutout", "mixup", "cutmix", "balance",
    "patience",
}  # fmt: skip
# The settings that determine which images are held out.
_DIVISION = ("eval_split", "val_fraction", "split_seed", "folds", "fold", "group", "group_duplicates")


def continued_recipe(run: Run, settings: dict[str, Any]) -> Recipe:
    """Return the recipe for continuing the finished `run`.

    settings: those that change, epochs among them. Raise CnnlabError if one of them must not change, or if there are no
    more epochs than before.
    """
    recipe = run.recipe.changed(**settings)
    fixed = [key for key, value in settings.items() if getattr(run.recipe, key) != value and key not in CONTINUABLE]
    if fixed:
        raise CnnlabError(
            f"{', '.join(fixed)} cannot change when {run.path} is continued; --init-from {run.path} starts a new "
            "training from its weights"
        )
    done = len(run.metrics())
    if recipe.epochs <= done:
        raise CnnlabError(f"{run.path} has {plural(done, 'epoch')} already; set epochs above {done}")
    return recipe


def continue_from(run: Run) -> None:
    """Copy the state of the finished run that `run` continues, unless `run` has a checkpoint already.

    Raise OSError, and CnnlabError if the finished run is gone.
    """
    origin = run.info.get("from", {})
    if origin.get("kind") != "continued" or has_checkpoint(run.checkpoint):
        return
    before = runs.open_run(origin["run"])
    runs.write_metrics(run, before.metrics()[: origin["epochs"]])
    for name in ("best.safetensors", "last.safetensors", "checkpoint.safetensors"):  # last: the one that counts
        if (before.path / name).exists():
            write_atomic(run.path / name, (before.path / name).read_bytes())


def earlier_run(session: Session, recipe: Recipe, runs_dir: str | Path) -> Run | None:
    """Return the run of this recipe that the same job of several processes started before torchrun restarted them.

    Set `session.job`, by which it is recognised.
    """
    world = session.world
    if world.size == 1 or not world.job:
        return None
    session.job = job = f"{world.job} {digest(recipe.to_dict())[:12]}"
    return world.from_first(lambda: _run_of_job(job, runs_dir, finished=world.restarted))


def _run_of_job(job: str, runs_dir: str | Path, *, finished: bool) -> Run | None:
    """Return the run under `runs_dir` that was started by `job`. finished: whether to return a finished run, too."""
    folder = Path(runs_dir)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        with suppress(CnnlabError, OSError):
            if (path / "run.json").is_file() and read_json(path / "run.json").get("job") == job:
                run = runs.open_run(path)
                if finished or run.summary() is None:
                    return run
    return None


def weights_of(name: Run | str | Path, runs_dir: str | Path) -> dict[str, Any]:
    """Return what a new run records about the run whose weights it starts from. Raise CnnlabError."""
    run = name if isinstance(name, Run) else runs.open_run(name, runs_dir)
    if not run.weights().exists():
        raise CnnlabError(f"{run.weights()} does not exist: {run.path} has not finished an epoch")
    return {"kind": "weights", "run": str(run.path.absolute()), "weights": run.weights().name}


def defaults_from_run(
    name: Run | str | Path, runs_dir: str | Path, model: Any, data: Any, settings: dict[str, Any]
) -> tuple[Any, Any, dict[str, Any]]:
    """Return model, data and settings of a training that starts from a run's weights. Default: the run's.

    The image size comes with the network. Raise CnnlabError if the run's network or images are needed here, but were
    the caller's own.
    """
    run = name if isinstance(name, Run) else runs.open_run(name, runs_dir)
    given = {"model": model, "data": data}
    needed: dict[str, Any] = {key: value for key, value in given.items() if value is None}
    check_own(run.path, run.recipe, builder=run.builder, **needed)
    if model is None:
        model, settings = run.recipe.model, {"image_size": run.info["model"]["image_size"], **settings}
    return model, run.recipe.data if data is None else data, settings


def fitting_weights(
    origin: dict[str, Any], model: nn.Module, name: str, classes: list[str], build: Callable[[int], nn.Module]
) -> dict[str, Tensor]:
    """Return the weights of the run `origin` that fit `model`, the network `name`, which may be on the meta device.

    origin: see `weights_of`. Layers whose shape depends on the number of classes, or else the last one, are left out,
    unless the classes are the same. build: returns the network for a number of classes. Raise CnnlabError if nothing
    fits.
    """
    before = runs.open_run(origin["run"])
    tensors = read_weights(before.path / origin["weights"])
    own = model.state_dict()
    head: set[str] = set()
    if before.classes != classes:
        other = build(len(classes) + 1).state_dict()
        head = {key for key, tensor in own.items() if other[key].shape != tensor.shape}
        if not head:  # a module of the caller's own has the same shapes for any number of classes
            last = find_head(model)
            head = {key for key in own if key.rpartition(".")[0] in last}
    fitting = {n: t for n, t in tensors.items() if n in own and n not in head and t.shape == own[n].shape}
    if not _count(fitting.values()):
        raise CnnlabError(f"no weight of {before.path}, a {before.recipe.model}, fits {name}; train the same network")
    return fitting


def check_origin(session: Session, recipe: Recipe) -> None:
    """Raise CnnlabError if no weight of the run to start from fits. Call it before a folder is created."""
    if session.origin is not None:
        with torch.device("meta"):  # shapes without memory
            model = session.build(recipe)
            fitting_weights(
                session.origin, model, recipe.model, session.train_set.classes,
                lambda classes: session.build(recipe, classes=classes),
            )  # fmt: skip


def note_seen_images(session: Session, recipe: Recipe, *, folds: bool = False) -> None:
    """Warn if the run to start from may have seen images that are held out now. folds: each image is held out once."""
    if session.origin is None or recipe.eval_split != "validation":
        return
    before = runs.open_run(session.origin["run"])
    if before.recipe.data != recipe.data or before.classes != session.train_set.classes:
        return
    like_before = all(getattr(before.recipe, key) == getattr(recipe, key) for key in _DIVISION)
    if folds or not (like_before or before.info["data"]["fingerprint"] == session.fingerprint):
        session.display.message(
            f"warning: {before.path} was trained on images of {recipe.data}, so its weights may have seen those that "
            "are held out here, which inflates the accuracy; start from weights trained on other images"
        )


def new_model(session: Session, run: Run, *, published: bool = True) -> nn.Module:
    """Return the run's network on the CPU with its starting weights, the same on every device.

    published: False leaves out what a checkpoint replaces: published weights, whitening and another run's weights.
    """
    recipe = run.recipe
    model = session.build(recipe, published=published)
    initialize(model, recipe.init)
    if published:
        session.whiten(model)
        initialize_from(model, run, lambda classes: session.build(recipe, classes=classes), session.display.message)
    return model


def initialize_from(model: nn.Module, run: Run, build: Callable[[int], nn.Module], log: Callable[[str], None]) -> None:
    """Copy the `fitting_weights` that the new `run` starts from into `model`, and log what was copied."""
    origin = run.info.get("from", {})
    if origin.get("kind") != "weights":
        return
    copied, own = fitting_weights(origin, model, run.recipe.model, run.classes, build), model.state_dict()
    model.load_state_dict(copied, strict=False)
    new = [name for name in own if name not in copied and own[name].is_floating_point()]
    rest = f"; new: {truncate(', '.join(new), 120)}" if new else ""
    log(
        f"init: {_count(copied.values()):,} of {_count(own.values()):,} weights copied from {origin['run']}, "
        f"{origin['weights']}{rest}"
    )


def _count(tensors: Any) -> int:
    return sum(t.numel() for t in tensors if t.is_floating_point())


def note_differences(session: Session, run: Run, plan: Plan, first: dict[str, Any], here: dict[str, Any]) -> None:
    """Note what may change the last bits of a resumed run. first, here: its first environment and the current one."""
    log = session.display.message
    if plan.precision == torch.bfloat16 and first and not has_bfloat16(session.device):
        log(f"note: {run.path} started in bfloat16, which this device computes slowly")
    for key in ("device_name", "threads", "versions", "compile", "processes"):
        if first.get(key, here[key]) != here[key]:
            log(
                f"note: {run.path} started with {key} {first[key]} and continues with {here[key]}: the weights may "
                "differ in their last bits from those of an uninterrupted run"
            )


def with_best_on_disk(session: Session, run: Run, progress: Progress) -> Progress:
    """Return `progress` with the figures of best.safetensors if better: a worse epoch must not replace those weights.

    A killed process may have saved them after its last checkpoint.
    """
    path = run.path / "best.safetensors"
    try:
        metadata = weights_metadata(path) if path.exists() or progress.best is not None else {}
    except CnnlabError as error:
        if not isinstance(error, Damaged) and path.exists():
            return progress
        left = len(progress.rows) < run.recipe.epochs and not progress.stopped
        instead = "the best of the remaining epochs will replace it" if left else "last.safetensors is still available"
        session.display.message(f"note: {str(error).partition('; ')[0]}; {instead}")
        return replace(progress, best=None, best_epoch=0) if left else progress
    if not metadata:
        return progress
    remedy = "remove it; training writes a new one"
    check(path, metadata, {"figure": [NUMBER], "epoch": COUNT}, remedy)
    if len(metadata["figure"]) != ranking_size(run.recipe):
        raise CnnlabError(f"{path} is damaged: its figures do not fit the recipe; {remedy}")
    if progress.best is None or metadata["figure"] > progress.best:
        return replace(progress, best=metadata["figure"], best_epoch=metadata["epoch"])
    return progress


def started_members(path: Path) -> list[Run]:
    """Return the runs in the folder of a series, in the order of their seeds or folds."""
    return [runs.open_run(folder) for folder in member_folders(path) if (folder / "run.json").exists()]


def record_move(folder: Path, data: str) -> None:
    """Record that the images of a run, or of a series, are at `data` now."""
    with explained_write_errors(folder):
        if is_series(folder):
            series = open_series(folder)
            with locked(folder):
                replace(series, recipe=replace(series.recipe, data=data)).save()
        members = started_members(folder)
        if not members and (folder / "run.json").exists():
            members = [runs.open_run(folder)]
        for run in members:
            with locked(run.path):
                runs.change_recipe(run, replace(run.recipe, data=data))
