"""Train the chapter's experiments and the classical baseline; compare them with the figures that the manual prints."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cnnlab.chapter.classical import classical
from cnnlab.chapter.experiments import CLASSICAL, EXPERIMENTS, heading, markdown, printed_figures
from cnnlab.data import SourceOptions, data_folder, load_images
from cnnlab.device.hardware import available_cores, check_threads, pick_device
from cnnlab.inference import load_network
from cnnlab.io.errors import CnnlabError, TrainingInterrupted, reason, unknown
from cnnlab.io.files import read_json, write_atomic, write_json
from cnnlab.io.schema import COUNT, Number, check
from cnnlab.models import build_model
from cnnlab.models.batch_norm import BatchNorm
from cnnlab.recipe import Recipe
from cnnlab.recipes import find_recipe
from cnnlab.training import runs, train_series
from cnnlab.training.autotune import time_step
from cnnlab.training.display import make_display
from cnnlab.training.folders import check_name, make_folder, named_folder
from cnnlab.training.plan import Plan as StepPlan
from cnnlab.training.plan import Workload
from cnnlab.training.results import SeedsResult
from cnnlab.training.resume import resume
from cnnlab.training.series import is_series, spread
from cnnlab.training.session import same_device

_FORMAT = "cnnlab reproduction 1"
_SCHEMA = {
    "format": (_FORMAT,), "recipes": {"*": dict}, "seeds": Number(1, 100_000, whole=True), "methods": [str],
    "limit": COUNT, "data_dir": str, "device": str, "threads": COUNT,
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """The plan of a reproduction. seconds: the estimated time of each experiment on this machine.

    methods: of the classical baseline; their time is not estimated.
    """

    recipes: dict[str, Recipe]
    seeds: int
    seconds: dict[str, float]
    methods: tuple[str, ...] = ()
    limit: int = 0

    @property
    def total(self) -> float:
        """The estimated seconds of all experiments."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Reproduction:
    """A folder of trained experiments. rows: one dict of plain values per experiment, in the chapter's order."""

    path: Path
    rows: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"folder": str(self.path), "rows": self.rows}


def reproduce(
    names: Sequence[str] = (),
    *,
    seeds: int = 1,
    epochs: int | None = None,
    limit: int | None = None,
    name: str | None = None,
    confirm: Callable[[Plan], bool] = lambda _: True,
    runs_dir: str | Path = "runs",
    device: str = "auto",
    threads: int | None = None,
    data_dir: str | Path | None = None,
    progress: str = "auto",
) -> Reproduction | None:
    """Train the named experiments with the manual's recipes into a new folder. Default: all of EXPERIMENTS.

    `classical`, or a name in `cnnlab.chapter.classical.METHODS`, adds the classical baseline on the same images, with
    one seed.

    epochs, limit: for a quick try, the number of epochs and the largest number of images per split; such rows are
    marked as limited. confirm: gets the plan with the estimated time and returns whether to train; if not, the result
    is None. An experiment that fails becomes a row with the reason, and the others are trained.

    Raise CnnlabError for bad input, TrainingInterrupted on Ctrl-C; `resume_reproduction` continues it.
    """
    for experiment in names:
        if experiment not in (*EXPERIMENTS, *CLASSICAL, "classical"):
            raise unknown("experiment", experiment, [*EXPERIMENTS, *CLASSICAL, "classical"])
    if seeds < 1:
        raise CnnlabError(f"seeds={seeds}: must be at least 1")
    display, target = make_display(progress), pick_device(device)
    check_threads(threads)
    if name is not None:  # before the time is estimated
        check_name(name)
        if (Path(runs_dir) / name).exists():
            make_folder(Path(runs_dir) / name)  # raises the error that says how to resume it
    changes = {k: v for k, v in (("epochs", epochs), ("limit", limit)) if v is not None}
    chosen = [n for n in EXPERIMENTS if n in names or not names]  # in the chapter's order
    recipes = {n: find_recipe(EXPERIMENTS[n].recipe).changed(**changes) for n in chosen}
    if recipes and progress != "none":
        display.message(f"timing a few steps of {len(recipes)} networks to estimate the duration")
    methods = tuple(m for m in CLASSICAL if m in names or "classical" in names)
    folder = data_folder(data_dir)
    plan = Plan(recipes, seeds, _estimate(recipes, folder, seeds, target, threads), methods, limit or 0)
    if not confirm(plan):
        return None
    path = named_folder(Path(runs_dir), name, "reproduce")
    common = {"device": str(target), "threads": threads or available_cores()}
    content = {
        "format": _FORMAT,
        "recipes": {n: r.to_dict() for n, r in recipes.items()},
        "seeds": seeds,
        "methods": methods,
        "limit": plan.limit,
        "data_dir": str(Path(folder).absolute()),
        **common,
        "estimated_seconds": plan.seconds,
    }
    try:
        write_json(path / "reproduction.json", content)
    except OSError as error:
        raise CnnlabError(f"cannot write into {path}: {reason(error)}; name another folder with --runs-dir") from error
    return _run(path, plan, {**common, "data_dir": data_dir, "progress": progress})


def resume_reproduction(
    path: str | Path,
    *,
    runs_dir: str | Path = "runs",
    device: str = "auto",
    threads: int | None = None,
    data_dir: str | Path | None = None,
    progress: str = "auto",
) -> Reproduction:
    """Resume an interrupted reproduction: keep finished rows, and train failed rows again.

    device, threads, data_dir: Default: those it was started with, if they exist here. Raise the errors of `reproduce`.
    """
    make_display(progress)  # these raise for bad arguments
    check_threads(threads)
    pick_device(device)
    folder = next((f for f in (Path(path), Path(runs_dir) / path) if (f / "reproduction.json").is_file()), None)
    if folder is None:
        raise CnnlabError(f"{path} has no reproduction.json; name a folder that cnnlab reproduce created")
    content = read_json(folder / "reproduction.json")
    check(folder / "reproduction.json", content, _SCHEMA)
    try:
        recipes = {n: Recipe.from_dict(values) for n, values in content["recipes"].items()}
        plan = Plan(recipes, content["seeds"], {}, tuple(content["methods"]), content["limit"])
        if data_dir is None and Path(content["data_dir"]).is_dir():
            data_dir = content["data_dir"]
        if threads is None:
            threads = max(1, min(content["threads"], available_cores()))
        if device == "auto":
            device = same_device(content["device"])
        if not (recipes.keys() <= EXPERIMENTS.keys() and set(plan.methods) <= CLASSICAL.keys()):
            raise CnnlabError("unknown experiments; use the version of cnnlab that wrote it")
    except CnnlabError as error:
        raise CnnlabError(f"{folder / 'reproduction.json'} is damaged: {reason(error)}") from error
    return _run(folder, plan, {"device": device, "threads": threads, "data_dir": data_dir, "progress": progress})


def _run(path: Path, plan: Plan, common: dict[str, Any]) -> Reproduction:
    """Train what is not finished in `path`. common: device, threads, data_dir and progress."""
    names = [*plan.methods, *plan.recipes]  # the chapter starts with the classical methods
    done = _finished(path)
    for number, name in enumerate(names, 1):
        if name in done:
            continue
        section, title = heading(name)
        if common["progress"] != "none":
            make_display(common["progress"]).message(f"{title} ({number} of {len(names)})")
        try:
            if name in plan.methods:
                row = _classical_row(name, plan.limit, common)
            else:
                row = _row(name, plan.recipes[name], _train(path, name, plan, common))
        except KeyboardInterrupt as error:
            stopped = TrainingInterrupted(
                f"stopped at {name} (experiment {number} of {len(names)}); finished experiments are saved; continue "
                f"with: cnnlab reproduce --resume {shlex.quote(str(path))}"
            )
            stopped.code = getattr(error, "code", stopped.code)
            raise stopped from None
        except CnnlabError as error:
            row = {"failed": str(error)}
        done[name] = {"name": name, "section": section, "title": title, **row, "printed": printed_figures(name)}
        rows = [done[n] for n in names if n in done]
        try:
            write_json(path / "results.json", {"rows": rows})
            write_atomic(path / "table.md", markdown(rows))
        except OSError as error:
            raise CnnlabError(
                f"cannot write into {path}: {reason(error)}; fix that, then continue with: "
                f"cnnlab reproduce --resume {shlex.quote(str(path))}"
            ) from error
    return Reproduction(path, [done[n] for n in names])


def _finished(path: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of an earlier call that did not fail, by name; {} if their file is missing or damaged."""
    try:
        rows = [row for row in read_json(path / "results.json")["rows"] if "failed" not in row and row["test_acc"]["n"]]
        markdown(rows)  # raises if they are damaged
        return {row["name"]: row for row in rows}
    except (CnnlabError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return {}


def _train(path: Path, name: str, plan: Plan, common: dict[str, Any]) -> SeedsResult:
    """Train the seeds of an experiment that are not finished."""
    with contextlib.suppress(OSError):
        (path / name).rmdir()  # left empty by a process that was killed before it wrote anything
    if is_series(path / name):
        result = resume(path / name, **common)
    else:
        result = train_series.train_seeds(plan.recipes[name], plan.seeds, runs_dir=path, name=name, **common)
    assert isinstance(result, SeedsResult)
    return result


def _classical_row(name: str, limit: int, common: dict[str, Any]) -> dict[str, Any]:
    """Train a classical method; return its row."""
    data = find_recipe(EXPERIMENTS["lenet"].recipe).data  # the same for all experiments
    (result,) = classical(data, [name], limit=limit, data_dir=common["data_dir"], threads=common["threads"])
    assert result.test_acc is not None
    return {
        "recipe": f"classical/{name}",
        "limited": _limited_images(result.counts) if limit and limit in result.counts.values() else "",
        "images": {"train": result.counts["train"], "test": result.counts["test"]},
        "seeds": [result.seed],
        "loss": None,
        "train_acc": spread([result.train_acc]),
        "test_acc": spread([result.test_acc]),
        "val_acc": spread([result.val_acc]),
        "settings": result.settings,
        "examples_per_second": None,
        "images_per_second": spread([result.images_per_second]),
        "seconds": result.seconds["all"],
        "seconds_of": result.seconds,
        "cached": result.cached,
        "hardware": {"threads": result.threads, "versions": result.versions},
    }


def _row(name: str, recipe: Recipe, result: SeedsResult) -> dict[str, Any]:
    first, summary = result.results[0], result.summary
    full = find_recipe(EXPERIMENTS[name].recipe)
    limits = []
    if recipe.epochs < full.epochs:
        limits.append(f"{recipe.epochs} of {full.epochs} epochs")
    elif recipe.epochs > full.epochs:
        limits.append(f"{recipe.epochs} epochs, printed {full.epochs}")
    images = first.summary["images"]
    if recipe.limit and recipe.limit in images.values():
        limits.append(_limited_images(images))
    environment = runs.first_session(first.run)
    figures = ("seeds", "loss", "train_acc", "test_acc", "examples_per_second", "images_per_second")
    return {
        "recipe": EXPERIMENTS[name].recipe,
        "limited": ", ".join(limits),  # empty for a full run
        "epochs": recipe.epochs,
        "images": images,
        **{key: summary[key] for key in figures},
        "seconds": sum(r.summary["total_seconds"] for r in result.results),
        "hardware": {k: environment.get(k) for k in ("device_name", "threads", "versions", "date")},
        **_first_batch_norm(first.run),
    }


def _limited_images(counts: dict[str, int]) -> str:
    return f"{counts['train']:,} training and {counts['test']:,} test images"


def _first_batch_norm(run: runs.Run) -> dict[str, Any]:
    """Return gamma and beta of a LeNet's first batch norm layer, as the manual prints; {} for other networks."""
    if not run.recipe.model.startswith("lenet-bn"):
        return {}
    for layer in load_network(run).modules():
        if isinstance(layer, BatchNorm):
            return {"gamma": layer.gamma.tolist(), "beta": layer.beta.tolist()}
        if isinstance(layer, nn.BatchNorm2d):
            return {"gamma": layer.weight.tolist(), "beta": layer.bias.tolist()}
    return {}


def _estimate(
    recipes: dict[str, Recipe], folder: Path, seeds: int, device: torch.device, threads: int | None
) -> dict[str, float]:
    """Return the estimated seconds of each experiment, from a few real steps on random images.

    Raise CnnlabError if the data are missing or damaged.
    """
    counts: dict[tuple[str, str], int] = {}  # (source, split) -> images
    seconds = {}
    for name, recipe in recipes.items():
        for split in ("train", "test"):
            if (recipe.data, split) not in counts:
                images = load_images(recipe.data, split, SourceOptions(data_dir=folder))
                counts[recipe.data, split] = 0 if images is None else len(images)
        train, test = (min(counts[recipe.data, s], recipe.limit or 1 << 30) for s in ("train", "test"))
        # An evaluation is the forward pass alone, a third of a step.
        epoch = (train + test / 3) * _seconds_per_image(recipe, device, threads)
        seconds[name] = seeds * recipe.epochs * epoch
    return seconds


def _seconds_per_image(recipe: Recipe, device: torch.device, threads: int | None) -> float:
    """Return the seconds per image of a training step. On the CPU, large images are timed in a smaller batch."""
    size = recipe.image_size or 28
    large = size >= 64 and device.type == "cpu"
    batch = min(64, recipe.batch_size) if large else recipe.batch_size
    # The layout that autotuning chooses on a CPU for all of the chapter's networks with such image sizes.
    layout = torch.channels_last if large else torch.contiguous_format
    plan = StepPlan(threads=threads or available_cores(), memory_format=layout)
    build = partial(build_model, recipe.model, num_classes=10, in_channels=1, image_size=size)
    work = Workload(recipe.changed(batch_size=batch), build, (1, size, size), 10, device, threads=threads)
    return time_step(work, plan, min_steps=1, seconds=1.0, max_steps=20) / batch
