"""Training, in plain sight: from a recipe to a run's folder.

`train` begins a run, `resume` goes on with one, `train_seeds` repeats it; all three come to `_epochs`, which is the
loop, and the loop comes to `step.train_step`, which is the update.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.data.augment import Augmentation
from cnnlab.data.loader import Batches, Loader
from cnnlab.device.hardware import (
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
from cnnlab.io.errors import CnnlabError, TrainingInterrupted, out_of_memory, reason
from cnnlab.io.files import remove_torn, write_checked
from cnnlab.io.schema import COUNT, NUMBER, POSITIVE, Number, check
from cnnlab.io.text import echo
from cnnlab.recipe import Recipe
from cnnlab.recipes import find_recipe
from cnnlab.training import runs
from cnnlab.training.checkpoint import (
    BackgroundWriter,
    Damaged,
    SaveSchedule,
    about_weights,
    earlier,
    has_checkpoint,
    load_checkpoint,
    save_checkpoint,
    save_weights,
)
from cnnlab.training.cuda_graph import step_of
from cnnlab.training.evaluate import evaluate
from cnnlab.training.guard import NonFiniteMonitor, NotFinite, diverged, no_memory, not_repeatable, unrepeatable
from cnnlab.training.optim import Average, initialize, learning_rate, make_optimizer, shown, size_in_epoch
from cnnlab.training.plan import compiled, not_compiled
from cnnlab.training.record import Events, Saving, kept, save_curves, summary
from cnnlab.training.results import Result, SeedsResult
from cnnlab.training.runs import Run
from cnnlab.training.session import Session
from cnnlab.training.step import train_step


def train(
    recipe: Recipe | str = "digits",
    *,
    runs_dir: str | Path = "runs",
    name: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    data_dir: str | Path | None = None,
    skip_bad: bool = False,
    auto_batch: bool = False,
    progress: str = "auto",
) -> Result:
    """Train a network by a recipe (or the name of one) into a new folder `runs_dir`/`name`.

    device: auto, cpu, cuda or mps; threads: of the CPU, unsaid all cores that are ours; data_dir: where datasets
    lie; skip_bad: leave damaged images out instead of stopping; auto_batch: halve the batch until a step fits into
    the memory; progress: auto, bar, lines, notebook or none.

    Raises: CnnlabError for anything wrong with the input or the disk, TrainingInterrupted on Ctrl-C, SIGTERM or
    SIGHUP; in all cases what is saved is kept and `resume` goes on.
    """
    with Session(device, threads, data_dir, skip_bad, progress) as session:
        recipe = session.begin(find_recipe(recipe) if isinstance(recipe, str) else recipe)
        recipe = session.fitting(recipe) if auto_batch else recipe
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
    auto_batch: bool = False,
    progress: str = "auto",
) -> SeedsResult:
    """Train `count` times, from seeds recipe.seed, recipe.seed + 1, ..., into one folder. As `train` otherwise."""
    if not 1 <= count <= runs.MOST_SEEDS:
        raise CnnlabError(f"seeds={count}: must lie between 1 and {runs.MOST_SEEDS:,}")
    with Session(device, threads, data_dir, skip_bad, progress) as session:
        recipe = find_recipe(recipe) if isinstance(recipe, str) else recipe
        replace(recipe, seed=recipe.seed + count - 1)  # is the last one a seed?
        recipe = session.begin(recipe)
        recipe = session.fitting(recipe) if auto_batch else recipe
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
    on_nan: str | None = None,
    progress: str = "auto",
) -> Result | SeedsResult:
    """Go on with an interrupted run, or with the seeds of a folder of several, to the same weights, bit for bit.

    Device, data folder and skip_bad are those that the run began with, unless others are given. on_nan: from here on
    stop or skip, in place of the recipe's; the run's recipe says so afterwards. A run that is finished is left as it
    is. Raises: as `train`; also where the data are no longer the same, or another process trains this run.
    """
    folder = runs.find_folder(path, Path(runs_dir))
    several = (folder / "seeds.json").exists()
    if several and on_nan is not None:
        raise CnnlabError(f"{folder} holds several seeds; on_nan is changed for one of its runs: name that")
    if not several:
        run = runs.open_run(folder)
        found = run.summary()
        if found is not None:
            echo(f"{run.path} is finished: nothing to resume", error=True)
            return Result(run, found)
        if on_nan is not None and on_nan != run.recipe.on_nan:
            with runs.locked(run.path), Saving(run.path):
                run = runs.change_recipe(run, run.recipe.changed(on_nan=on_nan))
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
        session.begin(recipe, again=first is not None)
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
    recipe, told = run.recipe, session.display.message
    if run.info["data"]["fingerprint"] != session.fingerprint:
        raise CnnlabError(f"the images of {recipe.data} are not those that {run.path} began with; train a new run")
    first = runs.first_session(run)
    try:
        plan = session.plan(recipe, first or like or {})
    except KeyboardInterrupt:
        raise _stopped_early(run) from None
    now = environment(session.device, plan)
    if plan.precision == torch.bfloat16 and first and not has_bfloat16(session.device):
        told(f"note: {run.path} began in bfloat16 and goes on in it, slowly: this device has no units for it")
    for what in ("device_name", "threads", "versions", "compile"):
        if first.get(what, now[what]) != now[what]:
            told(
                f"note: {run.path} began with {what} {first[what]} and goes on with {now[what]}: the weights may "
                "differ in their last bits from those of an undisturbed run"
            )
    with runs.locked(run.path), reproducible(recipe.seed, plan.threads):
        try:
            begun = has_checkpoint(run.checkpoint)
            # On the host: the same starting weights on every device. A checkpoint has weights of its own.
            model = session.build(recipe, published=not begun)
            initialize(model, recipe.init)
            if not begun:
                session.whiten(model)
            model.to(session.device).to(memory_format=plan.memory_format)
            optimizer = make_optimizer(model, recipe, plan.precision)
            average = Average(model, recipe) if recipe.average != "none" else None
            # Rows of the epochs that are saved; best figure so far, and its epoch; what is saved of the epoch after.
            state: dict[str, Any] = {"rows": [], "best": None, "best_epoch": 0, "part": None}
            with Saving(run.path):
                remove_torn(run.path)
                if begun or run.metrics():
                    state |= load_checkpoint(run.checkpoint, model, optimizer, session.device, average, told)
                    _check_state(session, run, state)
                    _keep_best(session, run, state)
            with Saving(run.path, state):
                runs.add_session(run, now)
                if not begun:
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
            if not_repeatable(error):
                raise unrepeatable(error, recipe, session.device) from error
            if not out_of_memory(error):
                raise
            raise no_memory(recipe, session.preprocessing.image_size) from error


def _check_state(session: Session, run: Run, state: dict[str, Any]) -> None:
    """Raises: CnnlabError where a checkpoint holds what no training of this recipe comes to. It may be a stranger's."""
    recipe, path, rows, part = run.recipe, run.checkpoint, state["rows"], state["part"]
    check(path, state, {**_STATE, "rows": [runs.row_form(recipe, whole=True)]}, "train again")
    fault = ""
    if [row["epoch"] for row in rows] != [*range(1, len(rows) + 1)] or len(rows) > recipe.epochs:
        fault = f"its epochs are not 1, 2, ... up to {recipe.epochs}"
    elif state["best"] is not None and len(state["best"]) != (2 if recipe.eval_split == "validation" else 1):
        fault = "its best figure is none of this recipe's"
    elif len(rows) == recipe.epochs and (state["best"] is None or part is not None):
        fault = "it is at the end without having been there"
    elif part is not None:
        count = len(session.train_set)
        whole = part["steps"] == part["batches"]["done"] <= -(-count // recipe.batch_size)
        if not whole or part["seen"] > count or len(part["statistics"]) != 2:
            fault = "its place in the epoch is none that there is"
    if fault:
        raise CnnlabError(f"{path} is damaged: {fault}; train again")


def _keep_best(session: Session, run: Run, state: dict[str, Any]) -> None:
    """Make the best figure that of the best weights on the disk: a worse epoch must not replace them.

    A killed process may have saved them beyond its checkpoint.
    """
    path = run.path / "best.safetensors"
    try:
        about = about_weights(path) if path.exists() or state["best"] is not None else {}
    except CnnlabError as error:
        if isinstance(error, Damaged) or not path.exists():
            left = len(state["rows"]) < run.recipe.epochs
            instead = "the best of the epochs to come takes its place" if left else "last.safetensors is there"
            session.display.message(f"note: {str(error).partition('; ')[0]}; {instead}")
            if left:
                state.update(best=None, best_epoch=0)
        return
    check(path, about, {"figure?": [NUMBER], "epoch?": COUNT}, "remove it: another takes its place")
    if "figure" in about and (state["best"] is None or about["figure"] > state["best"]):
        state.update(best=about["figure"], best_epoch=about["epoch"])


def _stopped_early(run: Run) -> TrainingInterrupted:
    return TrainingInterrupted(f"stopped before an epoch. Go on with: cnnlab train --resume {run.path}")


def _train_seeds(session: Session, path: Path) -> SeedsResult:
    recipe, seeds = runs.open_seeds(path)
    begun = [runs.open_run(folder) for folder in runs.seed_folders(path) if (folder / "run.json").exists()]
    like = next(filter(None, map(runs.first_session, begun)), None)  # all seeds compute alike
    results = []
    with runs.locked(path):
        for seed in seeds:
            folder = path / f"seed-{seed}"
            try:
                session.ctrl_c.check()
                if (folder / "run.json").exists():
                    run = runs.open_run(folder)
                else:
                    folder.mkdir(exist_ok=True)
                    run = session.create(folder, replace(recipe, seed=seed))
                found = run.summary()
                results.append(Result(run, found) if found is not None else _train(session, run, like))
            except KeyboardInterrupt:
                raise TrainingInterrupted(
                    f"stopped at seed {seed}; {len(results)} of {len(seeds)} seeds are finished and kept. Go on with: "
                    f"cnnlab train --resume {path}"
                ) from None
        figures = ("loss", "train_acc", f"{recipe.key}_loss", f"{recipe.key}_acc")
        together = {
            "recipe": recipe.name,
            "eval_split": recipe.eval_split,
            "epoch": "last",
            "seeds": list(seeds),
            **{name: runs.spread([r.summary[name] for r in results]) for name in figures},
            **{n: runs.spread([r.summary[n] for r in results]) for n in ("images_per_second", "examples_per_second")},
        }
        with Saving(path):
            write_checked(path / "summary.json", together)
    return SeedsResult(path, results, together)


def _fit(
    session: Session,
    run: Run,
    plan: Plan,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    state: dict[str, Any],
) -> Result:
    """Train the epochs that are left, and close what must be closed however that ends. `state`: see `_train`."""
    recipe, display = run.recipe, session.display
    with contextlib.closing(Events(run, state["rows"])) as events:
        try:
            with contextlib.closing(BackgroundWriter()) as beside:
                _epochs(session, run, plan, model, optimizer, average, state, events, beside)
        except NotFinite as error:
            raise diverged(error, run.path, recipe, kept(state)) from None
        except KeyboardInterrupt:
            display.end()
            with contextlib.suppress(OSError):  # what matters is how to go on
                if state["rows"]:
                    save_curves(run, state["rows"])
            epoch = min(len(state["rows"]) + 1, recipe.epochs)
            raise TrainingInterrupted(
                f"stopped in epoch {epoch} of {recipe.epochs}; {kept(state)}. Go on with: cnnlab train --resume "
                f"{run.path}"
            ) from None
        finally:
            display.end()
        with Saving(run.path, state):
            save_curves(run, state["rows"])
            found = summary(session, run, state)
            write_checked(run.path / "summary.json", found)
            earlier(run.checkpoint).unlink(missing_ok=True)  # a finished run needs no second one
    return Result(run, found)


# What a checkpoint keeps of a training, beside its rows: see `_train`.
_STATE = {
    "best": (None, [NUMBER]),
    "best_epoch": COUNT,
    "part": (None, {
        "steps": COUNT, "seen": COUNT, "left_out": COUNT, "statistics": [NUMBER], "train_seconds": Number(0),
        "compute_seconds": Number(0), "batches": {"done": COUNT, "kind": str, "host": str, "here": str},
    }),
    "scaler?": (None, {"scale": POSITIVE, "growth_factor": POSITIVE, "backoff_factor": POSITIVE,
                       "growth_interval": COUNT, "_growth_tracker": COUNT}),
}  # fmt: skip
# What `state["part"]` is at the beginning of an epoch.
_NOTHING: dict[str, Any] = {
    "steps": 0,
    "seen": 0,
    "left_out": 0,
    "statistics": (0.0, 0.0),
    "batches": None,
    "train_seconds": 0.0,
    "compute_seconds": 0.0,
}


def _epochs(
    session: Session,
    run: Run,
    plan: Plan,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    state: dict[str, Any],
    events: Events,
    beside: BackgroundWriter,
) -> None:
    """The loop: every epoch that `state` lacks, each saved before it counts; where they are long, in between, too."""
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
        session.eval_set,
        session.preprocessing,
        1000 if small else recipe.batch_size,
        device,
        memory_format=plan.memory_format,
    )
    steps_alike = f"{plan.values}, {recipe.batch_size} images of {session.preprocessing.image_size} pixels on {device}"
    forward = compiled(model, plan.compile, steps_alike)
    scaler = loss_scaler(device, plan.precision, state.get("scaler"))
    num_classes = len(session.train_set.classes)
    each = len(train_loader)  # steps of an epoch
    steps, skips = recipe.epochs * each, recipe.on_nan == "skip"
    update = step_of(train_step, plan, device, skips, display.message)  # train_step itself or, on CUDA, recorded
    lookout, due = NonFiniteMonitor(device, each, skips), SaveSchedule(recipe)

    def reached(
        steps: int, seen: int, left_out: int, statistics: Tensor, batches: Batches, seconds: float, compute: Stopwatch
    ) -> dict[str, Any]:
        """The state's `part`: what is done of an epoch."""
        return {
            "steps": steps,
            "seen": seen,
            "left_out": left_out,
            "statistics": statistics.tolist(),
            "batches": batches.state(),
            "train_seconds": seconds,
            "compute_seconds": compute.seconds(),
        }

    def save(**changes: Any) -> None:
        """Save this very moment, with `changes` of the state, beside the steps to come; they count once it is saved."""
        began = time.perf_counter()
        after = {**state, **changes, "scaler": scaler and scaler.state_dict()}

        def write_beside(write: Callable[[], None]) -> None:
            beside.do(write, lambda: state.update(after))

        save_checkpoint(run.checkpoint, model, optimizer, device, after, average, write_beside)
        due.saved(time.perf_counter() - began)

    display.begin(train_loader, recipe.epochs, len(state["rows"]), recipe.eval_split, state["rows"])
    for epoch in range(len(state["rows"]), recipe.epochs):
        part = state["part"] or _NOTHING  # what is done of this epoch
        began, compute = time.perf_counter() - part["train_seconds"], Stopwatch(device, part["compute_seconds"])
        seen, left_out = part["seen"], part["left_out"]
        statistics = torch.tensor(part["statistics"], device=device)
        loss_sum, hit_count = statistics.unbind()  # views of it
        model.train()
        size = size_in_epoch(recipe, session.preprocessing.image_size, epoch)
        batches = train_loader.shuffled(recipe.seed, epoch, size, part["batches"])
        step = epoch * each + part["steps"]
        for x, y in batches:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, step, steps)
            compute.start()
            # Each other shape would be compiled anew: a last batch, and images that are still growing.
            usual = len(y) == recipe.batch_size and size == session.preprocessing.image_size
            now = forward if usual else model
            loss, hits = update(now, optimizer, x, y, recipe.label_smoothing, plan.precision, scaler, skips)
            if average is not None:
                average.after_step(step)
            if lookout.counts(step, loss):
                loss_sum.add_(loss, alpha=len(y))
                hit_count.add_(hits)
                seen += len(y)
            else:
                left_out += 1
            compute.stop()
            step += 1
            display.step(epoch, seen, statistics)
            if due(step) or session.ctrl_c.asked or beside.failed:
                lookout.check(step - 1, model)  # waits for the device, as every save does
                done, seconds = step - epoch * each, time.perf_counter() - began
                with Saving(run.path, state):
                    save(part=reached(done, seen, left_out, statistics, batches, seconds, compute))
                    if session.ctrl_c.asked:
                        beside.wait()
            session.ctrl_c.check()
        synchronize(device)  # the epoch's one wait for the device: now its figures are read
        trained = time.perf_counter()
        lookout.check(step - 1, model)
        if not seen:
            raise NotFinite("the loss was no finite number throughout the epoch, again", step - 1, each)
        total_loss, total_hits = statistics.tolist()
        try:
            with shown(average):
                measured = evaluate(model, watch_loader, num_classes, session.ctrl_c.check, plan.precision)
        except KeyboardInterrupt:
            if not session.ctrl_c.at_once:  # else averaged weights may be half exchanged
                with Saving(run.path, state):
                    save(part=reached(each, seen, left_out, statistics, batches, trained - began, compute))
                    beside.wait()
            raise
        for what, value in (("training", total_loss), (recipe.eval_split, measured.loss)):
            if not math.isfinite(value):
                raise NotFinite(f"the {what} loss became {value:g}", step - 1, each)
        compute_seconds = compute.seconds()
        row = {
            "epoch": epoch + 1,
            "learning_rate": learning_rate(recipe, step - 1, steps),  # of the last update, here or before a resume
            "loss": total_loss / seen,
            "train_acc": total_hits / seen,
            f"{key}_loss": measured.loss,
            f"{key}_acc": measured.accuracy,
            "images": seen,
            **({"left_out": left_out} if skips else {}),
            "train_seconds": trained - began,
            "compute_seconds": compute_seconds,
            "evaluation_seconds": time.perf_counter() - trained,
            "images_per_second": seen / (trained - began),
            "examples_per_second": seen / compute_seconds,
        }
        with Saving(run.path, state):
            # Chosen on validation; where only the test set is watched, by the training loss instead.
            # Of equal accuracies, which a small set has often, the lower loss is the better network.
            figure = [row["val_acc"], -row["val_loss"]] if recipe.eval_split == "validation" else [-row["loss"]]
            best = {"best": state["best"], "best_epoch": state["best_epoch"]}
            with shown(average):
                if state["best"] is None or figure > state["best"]:
                    best = {"best": figure, "best_epoch": epoch + 1}
                    save_weights(run.path / "best.safetensors", model, {"figure": figure, "epoch": epoch + 1})
                save_weights(run.path / "last.safetensors", model)
            row["seconds"] = time.perf_counter() - began
            rows = [*state["rows"], row]
            runs.write_metrics(run, rows)
            events.add(row)
            # Last: whatever came before is written again, the same, should the process die in between.
            save(rows=rows, part=None, **best)
            beside.wait()
        display.epoch(row)
