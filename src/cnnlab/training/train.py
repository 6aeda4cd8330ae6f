"""The entry point `train`, and a run from start to end. The loop itself is in loop.py, the update in step.py.

Several runs of one recipe: train_series.py. An interrupted run: resume.py.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cnnlab.data.own_augment import Augment
from cnnlab.device.determinism import reproducible
from cnnlab.device.world import is_lost, lost_error
from cnnlab.io.errors import CnnlabError, TrainingInterrupted, out_of_memory, reason
from cnnlab.io.files import remove_torn, write_checked
from cnnlab.models.own import Network
from cnnlab.recipe import Recipe
from cnnlab.training import checkpoint, runs
from cnnlab.training.average import Average
from cnnlab.training.calibration import calibrate, held_out_logits
from cnnlab.training.checkpoint import (
    has_checkpoint,
    load_checkpoint,
    previous_checkpoint,
)
from cnnlab.training.checkpointer import Checkpointer, explained_write_errors
from cnnlab.training.choice import choose
from cnnlab.training.diagnosis import diagnose
from cnnlab.training.events import Events
from cnnlab.training.folders import check_free, new_folder, removed_if_empty
from cnnlab.training.guard import NonFinite, divergence_error, is_nondeterministic, memory_error, nondeterminism_error
from cnnlab.training.header import class_counts
from cnnlab.training.locks import locked
from cnnlab.training.loop import Trainer, train_epochs
from cnnlab.training.optim import make_optimizer
from cnnlab.training.plan import Plan, is_compile_error
from cnnlab.training.progress import Progress
from cnnlab.training.results import Result, summarize
from cnnlab.training.runs import Run
from cnnlab.training.session import OnEpoch, Session
from cnnlab.training.start import (
    check_origin,
    continue_from,
    defaults_from_run,
    earlier_run,
    new_model,
    note_differences,
    note_seen_images,
    weights_of,
    with_best_on_disk,
)


def train(
    recipe: Recipe | str | Network | None = None,
    data: Any = None,
    *,
    model: str | Network | None = None,
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
) -> Result:
    """Train a network into the new folder `runs_dir`/`name`.

    recipe: a recipe or its name. Default: the one for the data. In place of model, it may be a network of your own: an
    nn.Module, which is copied before the training, or a builder, which is called with any of num_classes,
    in_channels and image_size that it accepts. The network gets square images (B, C, S, S) float32 and returns logits
    (B, K).
    model: the name of a network, or your own. Default: the recipe's.
    data: the name of a source, or your own images: an ImageSet, a torch Dataset of pairs (image, label), a tuple (X, y)
    of images (N, C, H, W), (N, H, W) or, as an array, (N, H, W, C), and labels (N,) in 0..K-1; or a tuple of two of
    these, to train on and to evaluate on. Images hold uint8 in 0..255 or floating point in 0..1. Default: the recipe's.
    settings: override the recipe's, such as epochs=5 (`cnnlab list settings`).
    device: auto, cpu, cuda or mps. threads: CPU threads. Default: all available cores. data_dir: the folder of the
    datasets. skip_bad: skip damaged images. auto_batch: halve the batch size until a step fits in memory. init_from:
    start from the weights of this run, as far as they fit; with other classes, all but the last layer. Without a
    recipe, its network, image size and data are the defaults. progress: auto, bar, lines, notebook or none (prints
    nothing). on_epoch: called with the row of figures after each epoch is saved; if it returns False, the training ends
    there and counts as finished.
    augment: augmentation of your own, after the recipe's: a function of a batch of images (B, C, H, W) float32 in 0..1
    and a torch.Generator on their device, or of the images alone, that returns the same shape; or a transform of
    torchvision.transforms.v2, which draws once for the whole batch. `resume` needs it again.

    Raise CnnlabError for wrong input or a failing disk, TrainingInterrupted on Ctrl-C, SIGTERM or SIGHUP. In all cases
    `resume` continues from what is saved.
    """
    if init_from is not None and recipe is None:
        model, data, settings = defaults_from_run(init_from, runs_dir, model, data, settings)
    recipe, network, images, given = choose(recipe, model, data, settings)
    with Session(device, threads, data_dir, skip_bad, progress, on_epoch, network, images, augment) as session:
        world = session.world
        session.given = given
        earlier = earlier_run(session, recipe, runs_dir)
        if earlier is not None and (summary := earlier.summary()) is not None:  # a process died after its training
            return Result(earlier, summary, network=network)
        with world.together():
            session.origin = weights_of(init_from, runs_dir) if init_from is not None else None
            if earlier is None:
                check_free(Path(runs_dir), name)
            recipe = session.load_data(recipe if earlier is None else earlier.recipe, resumed=earlier)
            check_origin(session, recipe)
            note_seen_images(session, recipe)
        if auto_batch and earlier is None:
            recipe = session.find_batch_size(recipe)
        with session.ctrl_c:
            if earlier is not None:
                return train_run(session, earlier)
            folder = world.from_first(lambda: new_folder(Path(runs_dir), name, recipe))
            with removed_if_empty(folder) as path:
                return train_run(session, world.from_first(lambda: session.create(path, recipe)))


def train_run(session: Session, run: Run, plan_of: dict[str, Any] | None = None) -> Result:
    """Train a run to its end, from its checkpoint if it has one, and hold its lock meanwhile.

    plan_of: the first session of another run, whose plan a new run shares.
    """
    recipe, started = run.recipe, time.perf_counter()
    session.check_images(run, recipe.data)
    first = runs.first_session(run)
    try:
        plan = session.plan(recipe, first or plan_of or {})
        if not first:
            session.announce_time(recipe, plan)
    except KeyboardInterrupt:
        raise _interrupted_early(run) from None
    here = {**plan.environment(session.device), "processes": session.world.size}
    note_differences(session, run, plan, first, here)
    with contextlib.ExitStack() as held, explained_errors(session, recipe):
        with session.world.together():
            if session.world.first:
                held.enter_context(locked(run.path))
        held.enter_context(reproducible(recipe.seed, plan.threads))
        try:
            trainer, checkpointer = _prepare(session, run, plan, here)
        except KeyboardInterrupt as error:
            raise error if isinstance(error, TrainingInterrupted) else _interrupted_early(run) from None
        return _run_to_end(session, trainer, checkpointer, started)


@contextlib.contextmanager
def explained_errors(session: Session, recipe: Recipe) -> Iterator[None]:
    """Turn PyTorch's errors for steps that cannot be computed here into one-line CnnlabErrors."""
    try:
        yield
    except CnnlabError:
        raise
    except Exception as error:
        if session.world.size > 1 and is_lost(error):
            raise lost_error(error) from error
        if is_compile_error(error):
            raise CnnlabError(
                f"{recipe.model} cannot be compiled here: {reason(error, 200)}; set compile=off"
            ) from error
        if is_nondeterministic(error):
            raise nondeterminism_error(error, recipe, session.device) from error
        if out_of_memory(error):
            raise memory_error(recipe, session.preprocessing.image_size) from error
        raise


def _prepare(session: Session, run: Run, plan: Plan, here: dict[str, Any]) -> tuple[Trainer, Checkpointer]:
    """Build the trainer, new or from the checkpoint, and save its state. here: the current environment."""
    recipe, device, world = run.recipe, session.device, session.world

    def clean() -> None:
        with explained_write_errors(run):
            continue_from(run)
            remove_torn(run.path)

    world.from_first(clean)
    resumed = has_checkpoint(run.checkpoint)
    model = new_model(session, run, published=not resumed).to(device).to(memory_format=plan.memory_format)
    optimizer = make_optimizer(model, recipe, plan.precision)
    average = Average(model, recipe) if recipe.average != "none" else None
    progress = Progress()
    with explained_write_errors(run):
        if resumed or run.metrics():
            values = load_checkpoint(run.checkpoint, model, optimizer, device, average, session.display.message)
            progress = Progress.from_dict(values, recipe, len(session.train_set), run.checkpoint)
            progress = with_best_on_disk(session, run, progress)
            if len(progress.rows) == run.info.get("from", {}).get("epochs"):  # the run before may have ended early
                progress = replace(progress, stopped=False)

    def begin() -> None:
        with explained_write_errors(run, str(progress)):
            runs.add_session(run, here)
            if not resumed:
                checkpoint.save_checkpoint(run.checkpoint, model, optimizer, device, progress.to_dict(), average)
            runs.write_metrics(run, progress.rows)  # drops what a killed process wrote after its checkpoint

    world.gather(None)  # all processes have read what is there
    world.from_first(begin)
    trainer = Trainer(session, run, plan, model, optimizer, average, progress)
    return trainer, Checkpointer(run, model, optimizer, average, device, progress, writes=world.first)


def _run_to_end(session: Session, trainer: Trainer, checkpointer: Checkpointer, started: float) -> Result:
    """Train the epochs that are left, then write curves and summary. started: when the call began."""
    run, recipe, display = trainer.run, trainer.recipe, session.display
    setup_done = time.perf_counter()
    writes = session.world.first
    with contextlib.closing(Events(run, checkpointer.saved.rows)) if writes else contextlib.nullcontext() as events:
        try:
            with contextlib.closing(checkpointer):
                train_epochs(trainer, checkpointer, session, events)
        except NonFinite as error:
            raise divergence_error(error, run, str(checkpointer.saved)) from None
        except KeyboardInterrupt:
            display.end()
            rows = checkpointer.saved.rows
            with contextlib.suppress(OSError):  # the message below matters more
                if rows and writes:
                    _save_curves(run, rows)
            raise TrainingInterrupted(
                f"stopped in epoch {min(len(rows) + 1, recipe.epochs)} of {recipe.epochs}; {checkpointer.saved}. "
                f"Continue with: {run.resume_call}"
            ) from None
        finally:
            display.end()
    trained = time.perf_counter()
    try:
        summary = session.world.from_first(lambda: _finish(session, run, checkpointer.saved))
    except KeyboardInterrupt:
        raise TrainingInterrupted(
            f"stopped before the summary was written; {checkpointer.saved}. Continue with: {run.resume_call}"
        ) from None
    timings = {
        "setup": setup_done - started,
        "whitening": session.whitening_seconds,
        "training": trained - setup_done,
        "finish": time.perf_counter() - trained,
    }
    return Result(run, summary, timings, session.network)


def _finish(session: Session, run: Run, progress: Progress) -> dict[str, Any]:
    """Write curves and summary. Return the summary."""
    with explained_write_errors(run, str(progress)):
        _save_curves(run, progress.rows)
        images = {run.recipe.eval_split: len(session.eval_set), "train": len(session.train_set)}
        support = class_counts(session.eval_set)
        summary = summarize(run, progress, images, support, session.shared(run.recipe), str(session.device))
        if run.recipe.eval_split == "validation":
            dead = _calibrated(session, run, summary)
            findings = diagnose(summary, progress.rows, run.recipe, class_counts(session.train_set), dead)
            summary["findings"] = [finding.to_dict() for finding in findings]
        write_checked(run.path / "summary.json", summary)
        previous_checkpoint(run.checkpoint).unlink(missing_ok=True)  # a finished run does not need it
    return summary


def _calibrated(session: Session, run: Run, summary: dict[str, Any]) -> float:
    """Add the calibration to the summary, and return the fraction of dead units.

    Damaged weights or too little memory must not prevent a trained run from finishing: the calibration is then left
    out, with a note.
    """
    try:
        found, dead = held_out_logits(session, run)
    except Exception as error:
        if not isinstance(error, CnnlabError) and not out_of_memory(error):
            raise
        why = str(error).partition("; ")[0] if isinstance(error, CnnlabError) else "out of memory"
        session.display.message(f"note: the probabilities of {run.path} are not calibrated: {why}")
        return 0.0
    summary["calibration"] = calibrate(run, found, session.eval_set.labels).to_dict()
    return dead


def _save_curves(run: Run, rows: Any) -> None:
    from cnnlab.training.curves import save_curves  # imports matplotlib, which is slow

    save_curves(run, rows)


def _interrupted_early(run: Run) -> TrainingInterrupted:
    return TrainingInterrupted(f"stopped before training started. Continue with: {run.resume_call}")
