"""Training, in plain sight: from a recipe to a run's folder.

`train` begins a run, `resume` goes on with one, `train_seeds` repeats it; all three come to `_epochs`, which is the
loop, and the loop comes to `step.train_step`, which is the update.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from cnnlab import runs
from cnnlab.checkpoint import load_checkpoint, save_checkpoint, save_weights
from cnnlab.data.augment import Augmentation
from cnnlab.data.loader import Loader
from cnnlab.device import (
    Plan,
    Stopwatch,
    available_cores,
    environment,
    has_bfloat16,
    loss_scaler,
    pick_device,
    reproducible,
    synchronize,
)
from cnnlab.errors import CnnlabError, TrainingInterrupted, out_of_memory, reason
from cnnlab.evaluation import evaluate
from cnnlab.files import write_atomic, write_json
from cnnlab.optim import Average, initialize, learning_rate, make_optimizer, shown, size_in_epoch
from cnnlab.probe import compiled, not_compiled
from cnnlab.recipe import Recipe
from cnnlab.recipes import find_recipe
from cnnlab.results import Result, SeedsResult
from cnnlab.runs import Run
from cnnlab.session import Session
from cnnlab.step import train_step


def train(
    recipe: Recipe | str = "digits",
    *,
    runs_dir: str | Path = "runs",
    name: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    data_dir: str | Path | None = None,
    skip_bad: bool = False,
    progress: str = "auto",
) -> Result:
    """Train a network by a recipe (or the name of one) into a new folder `runs_dir`/`name`.

    device: auto, cpu, cuda or mps; threads: of the CPU, unsaid all cores that are ours; data_dir: where datasets
    lie; skip_bad: leave damaged images out instead of stopping; progress: auto, bar, lines, notebook or none.

    Raises: CnnlabError for anything wrong with the input or the disk, TrainingInterrupted on Ctrl-C; in both cases
    the finished epochs are kept and `resume` goes on.
    """
    with Session(device, threads, data_dir, skip_bad, progress) as session:
        recipe = session.begin(find_recipe(recipe) if isinstance(recipe, str) else recipe)
        with session.ctrl_c, _new_folder(Path(runs_dir), name, recipe) as path:
            return _train(session, session.create(path, recipe))


def train_seeds(
    recipe: Recipe | str = "digits",
    count: int = 5,
    *,
    runs_dir: str | Path = "runs",
    name: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    data_dir: str | Path | None = None,
    skip_bad: bool = False,
    progress: str = "auto",
) -> SeedsResult:
    """Train `count` times, from seeds recipe.seed, recipe.seed + 1, ..., into one folder. As `train` otherwise."""
    if count < 1:
        raise CnnlabError(f"seeds={count}: must be at least 1")
    with Session(device, threads, data_dir, skip_bad, progress) as session:
        recipe = find_recipe(recipe) if isinstance(recipe, str) else recipe
        replace(recipe, seed=recipe.seed + count - 1)  # is the last one a seed?
        recipe = session.begin(recipe)
        with session.ctrl_c, _new_folder(Path(runs_dir), name, recipe) as path:
            runs.create_seeds(path, recipe, range(recipe.seed, recipe.seed + count))
            return _train_seeds(session, path)


def resume(
    path: str | Path,
    *,
    runs_dir: str | Path = "runs",
    device: str = "auto",
    threads: int | None = None,
    data_dir: str | Path | None = None,
    skip_bad: bool = False,
    progress: str = "auto",
) -> Result | SeedsResult:
    """Go on with an interrupted run, or with the seeds of a folder of several, to the same weights, bit for bit.

    Device, data folder and skip_bad are those that the run began with, unless others are given. A run that is
    finished is left as it is. Raises: as `train`; also where the data are no longer the same, or another process
    trains this run.
    """
    folder = runs.find_folder(path, Path(runs_dir))
    several = (folder / "seeds.json").exists()
    if not several:
        run = runs.open_run(folder)
        summary = run.summary()
        if summary is not None:
            print(f"{run.path} is finished: nothing to resume", file=sys.stderr)
            return Result(run, summary)
    recipe = runs.open_seeds(folder)[0] if several else run.recipe
    begun = (runs.open_run(f) for f in runs.seed_folders(folder) if (f / "run.json").exists())
    first = next(begun, None) if several else run
    if first is not None:
        data_dir = data_dir or runs.data_dir(first)
        skip_bad = skip_bad or bool(first.info["data"].get("skip_bad"))
        began = runs.first_session(first)
        if device == "auto":
            device = same_device(began.get("device"))
        if threads is None and isinstance(began.get("threads"), int):
            threads = max(1, min(began["threads"], available_cores()))  # also for seeds that have not begun
    with Session(device, threads, data_dir, skip_bad, progress) as session:
        session.begin(recipe)
        with session.ctrl_c:
            return _train_seeds(session, folder) if several else _train(session, run)


def same_device(name: str | None) -> str:
    """`name`, where there is such a device here, else `auto`."""
    try:
        return str(pick_device(name or "auto"))
    except CnnlabError:
        return "auto"


@contextlib.contextmanager
def _new_folder(runs_dir: Path, name: str | None, recipe: Recipe) -> Iterator[Path]:
    """A new folder for a run, removed again if nothing has come into it."""
    path = runs.new_folder(runs_dir, name, recipe)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            path.rmdir()  # refuses where there is anything inside


def _train(session: Session, run: Run, like: dict[str, Any] | None = None) -> Result:
    """Train a run to its end, from its checkpoint if it has one; no other process may do so meanwhile.

    like: the first session of a run whose plan a new one shares.
    """
    recipe = run.recipe
    if run.info["data"]["fingerprint"] != session.fingerprint:
        raise CnnlabError(f"the images of {recipe.data} are not those that {run.path} began with; train a new run")
    first = runs.first_session(run)
    try:
        plan = session.plan(recipe, first or like or {})
    except KeyboardInterrupt:
        raise _stopped_early(run) from None
    now = environment(session.device, plan)
    if plan.precision == torch.bfloat16 and first and not has_bfloat16(session.device):
        session.display.message(
            f"note: {run.path} began in bfloat16 and goes on in it, slowly: this device has no units for it"
        )
    for what in ("device_name", "threads", "versions", "compile"):
        if first.get(what, now[what]) != now[what]:
            session.display.message(
                f"note: {run.path} began with {what} {first[what]} and goes on with {now[what]}: the weights may "
                "differ in their last bits from those of an undisturbed run"
            )
    with runs.locked(run), reproducible(recipe.seed, plan.threads):
        try:
            # On the host: the same starting weights on every device. A checkpoint has weights of its own.
            model = session.build(recipe, published=not run.checkpoint.exists())
            initialize(model, recipe.init)
            if not run.checkpoint.exists():
                session.whiten(model)
            model.to(session.device).to(memory_format=plan.memory_format)
            optimizer = make_optimizer(model, recipe)
            average = Average(model, recipe) if recipe.average != "none" else None
            state: dict[str, Any] = {"rows": [], "best": None, "best_epoch": 0}
            if run.checkpoint.exists() or run.metrics():
                state = load_checkpoint(run.checkpoint, model, optimizer, session.device, average)
            with _Saving(run.path, len(state["rows"])):
                runs.add_session(run, now)
                if not run.checkpoint.exists():
                    save_checkpoint(run.checkpoint, model, optimizer, session.device, state, average)
                runs.write_metrics(run, state["rows"])  # what a killed process wrote beyond its checkpoint is dropped
            return _fit(session, run, plan, model, optimizer, average, state)
        except TrainingInterrupted:
            raise
        except KeyboardInterrupt:
            raise _stopped_early(run) from None
        except Exception as error:
            if not_compiled(error):
                raise CnnlabError(
                    f"{recipe.model} cannot be compiled here: {reason(error)[:200]}; set compile=off"
                ) from error
            if not out_of_memory(error):
                raise
            raise CnnlabError(
                f"out of memory with batch_size={recipe.batch_size} and images of {session.preprocessing.image_size} "
                f"pixels; try --set batch_size={max(1, recipe.batch_size // 2)} or a smaller image_size"
            ) from error


def _stopped_early(run: Run) -> TrainingInterrupted:
    return TrainingInterrupted(f"stopped before an epoch. Go on with: cnnlab train --resume {run.path}")


def _train_seeds(session: Session, path: Path) -> SeedsResult:
    recipe, seeds = runs.open_seeds(path)
    begun = [runs.open_run(folder) for folder in runs.seed_folders(path) if (folder / "run.json").exists()]
    like = next(filter(None, map(runs.first_session, begun)), None)  # all seeds compute alike
    results = []
    for seed in seeds:
        folder = path / f"seed-{seed}"
        try:
            session.ctrl_c.check()
            if (folder / "run.json").exists():
                run = runs.open_run(folder)
            else:
                folder.mkdir(exist_ok=True)
                run = session.create(folder, replace(recipe, seed=seed))
            summary = run.summary()
            results.append(Result(run, summary) if summary is not None else _train(session, run, like))
        except KeyboardInterrupt:
            raise TrainingInterrupted(
                f"stopped at seed {seed}; {len(results)} of {len(seeds)} seeds are finished and kept. Go on with: "
                f"cnnlab train --resume {path}"
            ) from None
    figures = ("loss", "train_acc", f"{recipe.key}_loss", f"{recipe.key}_acc")
    summary = {
        "recipe": recipe.name,
        "watch": recipe.watch,
        "epoch": "last",
        "seeds": list(seeds),
        **{name: runs.spread([r.summary[name] for r in results]) for name in figures},
        **{n: runs.spread([r.summary[n] for r in results]) for n in ("images_per_second", "examples_per_second")},
    }
    with _Saving(path, recipe.epochs):
        write_json(path / "summary.json", summary)
    return SeedsResult(path, results, summary)


def _fit(
    session: Session,
    run: Run,
    plan: Plan,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    state: dict[str, Any],
) -> Result:
    """Train the epochs that are left, and close what must be closed however that ends.

    `state`: rows of the epochs that are saved, best figure so far and its epoch.
    """
    recipe, display = run.recipe, session.display
    with contextlib.closing(_Events(run, len(state["rows"]))) as events:
        try:
            _epochs(session, run, plan, model, optimizer, average, state, events)
        except KeyboardInterrupt:
            display.end()
            saved = len(state["rows"])
            with contextlib.suppress(OSError):  # what matters is how to go on
                if saved:
                    _save_curves(run, state["rows"])
            raise TrainingInterrupted(
                f"stopped in epoch {min(saved + 1, recipe.epochs)} of {recipe.epochs}; {saved} finished epochs are "
                f"kept. Go on with: cnnlab train --resume {run.path}"
            ) from None
        finally:
            display.end()
        with _Saving(run.path, recipe.epochs):
            _save_curves(run, state["rows"])
            summary = _summary(session, run, state)
            write_json(run.path / "summary.json", summary)
    return Result(run, summary)


def _epochs(
    session: Session,
    run: Run,
    plan: Plan,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    state: dict[str, Any],
    events: _Events,
) -> None:
    """The loop: every epoch that `state` lacks, each saved before it counts."""
    recipe, device, display, key = run.recipe, session.device, session.display, run.recipe.key
    train_loader = Loader(
        session.train_set,
        session.preprocessing,
        recipe.batch_size,
        device,
        augmentation=Augmentation(**{f.name: getattr(recipe, f.name) for f in fields(Augmentation)}),
        memory_format=plan.memory_format,
    )
    # Nothing is kept for a backward pass here, so small images go through in larger batches.
    small = session.preprocessing.image_size <= 64
    watch_loader = Loader(
        session.watch_set,
        session.preprocessing,
        1000 if small else recipe.batch_size,
        device,
        memory_format=plan.memory_format,
    )
    forward = compiled(model, plan.compile)
    scaler = loss_scaler(device, plan.precision, state.get("scaler"))
    num_classes = len(session.train_set.classes)
    steps = recipe.epochs * len(train_loader)
    display.begin(train_loader, recipe.epochs, len(state["rows"]), recipe.watch, state["rows"])
    for epoch in range(len(state["rows"]), recipe.epochs):
        began = time.perf_counter()
        compute = Stopwatch(device)
        step, seen = epoch * len(train_loader), 0
        statistics = torch.zeros(2, device=device)  # sum of losses, number of hits
        model.train()
        size = size_in_epoch(recipe, session.preprocessing.image_size, epoch)
        for x, y in train_loader.shuffled(recipe.seed, epoch, size):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, step, steps)
            compute.start()
            # Each other shape would be compiled anew: a last batch, and images that are still growing.
            usual = len(y) == recipe.batch_size and size == session.preprocessing.image_size
            now = forward if usual else model
            loss, hits = train_step(now, optimizer, x, y, recipe.label_smoothing, plan.precision, scaler)
            if average is not None:
                average.after_step(step)
            statistics += torch.stack((loss * len(y), hits))
            compute.stop()
            step, seen = step + 1, seen + len(y)
            display.step(epoch, seen, statistics)
            session.ctrl_c.check()
        synchronize(device)  # the epoch's one wait for the device: now its figures are read
        trained = time.perf_counter()
        loss_sum, hit_count = statistics.tolist()
        with shown(average):
            measured = evaluate(model, watch_loader, num_classes, session.ctrl_c.check, plan.precision)
        if not math.isfinite(loss_sum + measured.loss):  # the last update shows in the evaluation only
            raise _diverged(run, recipe, epoch, loss_sum + measured.loss)
        compute_seconds = compute.seconds()
        row = {
            "epoch": epoch + 1,
            "learning_rate": optimizer.param_groups[0]["lr"],
            "loss": loss_sum / seen,
            "train_acc": hit_count / seen,
            f"{key}_loss": measured.loss,
            f"{key}_acc": measured.accuracy,
            "images": seen,
            "train_seconds": trained - began,
            "compute_seconds": compute_seconds,
            "evaluation_seconds": time.perf_counter() - trained,
            "images_per_second": seen / (trained - began),
            "examples_per_second": seen / compute_seconds,
        }
        with _Saving(run.path, epoch):
            after = {**state, "rows": [*state["rows"], row], "scaler": scaler and scaler.state_dict()}
            # Chosen on validation; where only the test set is watched, by the training loss instead.
            # Of equal accuracies, which a small set has often, the lower loss is the better network.
            figure = [row["val_acc"], -row["val_loss"]] if recipe.watch == "validation" else [-row["loss"]]
            with shown(average):
                if state["best"] is None or figure > state["best"]:
                    after.update(best=figure, best_epoch=epoch + 1)
                    save_weights(run.path / "best.safetensors", model)
                save_weights(run.path / "last.safetensors", model)
            row["seconds"] = time.perf_counter() - began
            runs.write_metrics(run, after["rows"])
            events.add(row)
            # Last: whatever came before is written again, the same, should the process die in between.
            save_checkpoint(run.checkpoint, model, optimizer, device, after, average)
        state.update(after)
        display.epoch(row)


def _summary(session: Session, run: Run, state: dict[str, Any]) -> dict[str, Any]:
    rows, recipe = state["rows"], run.recipe
    images = sum(r["images"] for r in rows)
    by_validation = recipe.watch == "validation"
    last, key = rows[-1], recipe.key
    return {
        "recipe": recipe.name,
        "model": recipe.model,
        "parameters": run.info["model"]["parameters"],
        "data": recipe.data,
        "images": {"train": len(session.train_set), recipe.watch: len(session.watch_set)},
        "skipped": len(run.info["data"]["skipped"]),
        "seed": recipe.seed,
        "epochs": recipe.epochs,
        "watch": recipe.watch,
        "loss": last["loss"],
        "train_acc": last["train_acc"],
        f"{key}_loss": last[f"{key}_loss"],
        f"{key}_acc": last[f"{key}_acc"],
        "best_epoch": state["best_epoch"],
        "best_by": "val_acc" if by_validation else "loss",
        "best": state["best"][0] if by_validation else -state["best"][0],
        "examples_per_second": images / sum(r["compute_seconds"] for r in rows),
        "images_per_second": images / sum(r["train_seconds"] for r in rows),
        "train_seconds": sum(r["train_seconds"] for r in rows),
        "total_seconds": sum(r["seconds"] for r in rows),
        "device": str(session.device),
    }


def _save_curves(run: Run, rows: Sequence[dict[str, Any]]) -> None:
    from cnnlab import plots  # matplotlib is slow to import, so only here

    title = f"{run.recipe.model} on {run.recipe.data.split('/')[-1]}, recipe {run.recipe.name}, seed {run.recipe.seed}"
    write_atomic(run.path / "curves.png", plots.png(plots.curves(rows, run.recipe.watch, title)))


def _diverged(run: Run, recipe: Recipe, epoch: int, loss: float) -> CnnlabError:
    return CnnlabError(
        f"the loss became {loss:g} in epoch {epoch + 1} at a learning rate of up to {recipe.learning_rate:g}; the "
        f"{epoch} epochs before are kept in {run.path}. Try --set learning_rate={recipe.learning_rate / 3:.3g}"
    )


class _Saving:
    """Turns the system's refusal to write (disk full, read-only, ...) into one line that says how to go on."""

    def __init__(self, path: Path, epochs_done: int) -> None:
        self._path, self._done = path, epochs_done

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            raise CnnlabError(
                f"cannot save into {self._path}: {reason(error)}; {self._done} finished epochs are kept. Free some "
                f"space, then go on with: cnnlab train --resume {self._path}"
            ) from error


class _Events:
    """The rows as TensorBoard events."""

    def __init__(self, run: Run, epochs_done: int) -> None:
        # Slow to import, so only here.
        from torch.utils.tensorboard import SummaryWriter

        with _Saving(run.path, epochs_done):
            # Events that a killed process wrote beyond its checkpoint are marked as void.
            self._writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=epochs_done + 1)
        self._watch, self._key = run.recipe.watch, run.recipe.key

    def add(self, row: dict[str, Any]) -> None:
        key = self._key
        scalars = {
            "loss/train": row["loss"],
            f"loss/{self._watch}": row[f"{key}_loss"],
            "accuracy/train": row["train_acc"],
            f"accuracy/{self._watch}": row[f"{key}_acc"],
            "learning_rate": row["learning_rate"],
            "images_per_second": row["images_per_second"],
        }
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a full disk: the error that matters is already on its way
            self._writer.close()
