"""Train the chapter's experiments and the classical baseline; compare them with the figures that the manual prints."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cnnlab.chapter.classical import classical
from cnnlab.chapter.experiments import CLASSICAL, EXPERIMENTS, markdown, printed_figures
from cnnlab.data import SourceOptions, data_folder, load_images
from cnnlab.device.hardware import available_cores, check_threads, pick_device
from cnnlab.inference import load_network
from cnnlab.io.errors import CnnlabError, TrainingInterrupted, reason, unknown
from cnnlab.io.files import read_json, write_atomic, write_json
from cnnlab.io.schema import COUNT, Number, check
from cnnlab.io.text import truncate
from cnnlab.models import build_model
from cnnlab.models.batch_norm import BatchNorm
from cnnlab.recipe import Recipe
from cnnlab.recipes import find_recipe
from cnnlab.training import runs
from cnnlab.training import train as training
from cnnlab.training.autotune import time_step
from cnnlab.training.display import make_display
from cnnlab.training.folders import check_name, make_folder, named_folder
from cnnlab.training.plan import Plan as StepPlan
from cnnlab.training.plan import Workload
from cnnlab.training.results import SeedsResult
from cnnlab.training.session import same_device

_FORMAT = "cnnlab reproduction 1"
_START = "start"  # the section of the classical pipeline, with which the chapter starts
_FORM = {
    "recipes": dict, "seeds": Number(1, 100_000, whole=True), "methods": [str], "limit": COUNT, "data_dir": str,
    "device": str, "threads": COUNT,
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What a reproduction will train. seconds: the estimated time of each experiment on this machine.

    methods: those of the classical baseline; their time is not estimated.
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

    `classical`, or a name in `cnnlab.chapter.classical.METHODS`, adds the classical baseline on the same images, once.

    epochs, limit: for a quick try, fewer epochs, or at most that many images per split; such rows are marked as
    limited. confirm: gets the plan with the estimated time and returns whether to train; if not, None is returned. An
    experiment that fails becomes a row with the reason, and the others are trained.

    Raises: CnnlabError for bad input, TrainingInterrupted on Ctrl-C; `resume_reproduction` continues.
    """
    target = _check_arguments(names, seeds, name, Path(runs_dir), device, threads, progress)
    changes = {k: v for k, v in (("epochs", epochs), ("limit", limit)) if v is not None}
    chosen = [n for n in EXPERIMENTS if n in names or not names]  # in the chapter's order
    recipes = {n: find_recipe(EXPERIMENTS[n].recipe).changed(**changes) for n in chosen}
    options = SourceOptions(data_dir=data_folder(data_dir))
    sizes = _sizes(recipes, options)
    if recipes and progress != "none":
        make_display(progress).message(f"timing a few steps of {len(recipes)} networks to estimate the duration")
    methods = tuple(m for m in CLASSICAL if m in names or "classical" in names)
    plan = Plan(recipes, seeds, _estimate(recipes, sizes, seeds, device, threads), methods, limit or 0)
    if not confirm(plan):
        return None
    path = named_folder(Path(runs_dir), name, "reproduce")
    content = {
        "format": _FORMAT,
        "recipes": {n: r.to_dict() for n, r in recipes.items()},
        "seeds": seeds,
        "methods": methods,
        "limit": limit or 0,
        "data_dir": str(Path(options.data_dir).absolute()),
        "device": str(target),
        "threads": threads or available_cores(),
        "estimated_seconds": plan.seconds,
    }
    try:
        write_json(path / "reproduction.json", content)
    except OSError as error:
        raise CnnlabError(f"cannot write into {path}: {reason(error)}; name another folder with --runs-dir") from error
    common = {"device": str(target), "threads": content["threads"], "data_dir": data_dir, "progress": progress}
    return _run(path, recipes, seeds, methods, limit or 0, common)


def _check_arguments(
    names: Sequence[str], seeds: int, name: str | None, runs_dir: Path, device: str, threads: int | None, progress: str
) -> torch.device:
    """Return the device; check the other arguments before the time is estimated."""
    for experiment in names:
        if experiment not in EXPERIMENTS and experiment not in CLASSICAL and experiment != "classical":
            raise unknown("experiment", experiment, [*EXPERIMENTS, *CLASSICAL, "classical"])
    if seeds < 1:
        raise CnnlabError(f"seeds={seeds}: must be at least 1")
    target = _check_options(device, threads, progress)
    if name is not None:
        check_name(name)
        if (runs_dir / name).exists():
            make_folder(runs_dir / name)  # raises the error that says how to resume it
    return target


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

    Device, threads and data folder: Default: those of its start. Raises: as `reproduce`.
    """
    _check_options(device, threads, progress)
    folder = next((f for f in (Path(path), Path(runs_dir) / path) if (f / "reproduction.json").is_file()), None)
    if folder is None:
        raise CnnlabError(f"{path} has no reproduction.json; name a folder that cnnlab reproduce created")
    content = read_json(folder / "reproduction.json")
    try:
        if content["format"] != _FORMAT:
            raise CnnlabError(f"format {truncate(repr(content['format']), 60)}, not {_FORMAT!r}")
        check(folder / "reproduction.json", content, _FORM)
        recipes = {n: Recipe.from_dict(values) for n, values in content["recipes"].items()}
        seeds = content["seeds"]
        first_data_dir = Path(content["data_dir"])
        methods, limit = tuple(content["methods"]), content["limit"]
        if threads is None:
            threads = max(1, min(content["threads"], available_cores()))
        if device == "auto":
            device = same_device(content["device"])
        if not (recipes.keys() <= EXPERIMENTS.keys() and set(methods) <= CLASSICAL.keys()):
            raise CnnlabError("unknown experiments; use the version of cnnlab that wrote it")
    except (CnnlabError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CnnlabError(f"{folder / 'reproduction.json'} is damaged: {reason(error)}") from error
    if data_dir is None and first_data_dir.is_dir():
        data_dir = first_data_dir
    common = {"device": device, "threads": threads, "data_dir": data_dir, "progress": progress}
    return _run(folder, recipes, seeds, methods, limit, common)


def _sizes(recipes: dict[str, Recipe], options: SourceOptions) -> dict[str, dict[str, int]]:
    """Return the number of images per split of each experiment; missing or damaged data is found here, early."""
    whole: dict[tuple[str, str], int] = {}
    sizes: dict[str, dict[str, int]] = {}
    for name, recipe in recipes.items():
        sizes[name] = {}
        for split in ("train", "test"):
            if (recipe.data, split) not in whole:
                images = load_images(recipe.data, split, options)
                whole[recipe.data, split] = 0 if images is None else len(images)
            count = whole[recipe.data, split]
            sizes[name][split] = min(count, recipe.limit) if recipe.limit else count
    return sizes


def _run(
    path: Path, recipes: dict[str, Recipe], seeds: int, methods: Sequence[str], limit: int, common: dict[str, Any]
) -> Reproduction:
    names = [*methods, *recipes]  # the chapter starts with the classical methods
    done = _finished(path)
    for number, name in enumerate(names, 1):
        if name in done:
            continue
        title = CLASSICAL[name] if name in methods else EXPERIMENTS[name].title
        if common["progress"] != "none":
            make_display(common["progress"]).message(f"{title} ({number} of {len(names)})")
        try:
            if name in methods:
                row = _classical_row(path, name, limit, common)
            else:
                row = _row(name, recipes[name], _train(path, name, recipes[name], seeds, common))
        except KeyboardInterrupt as error:
            stopped = TrainingInterrupted(
                f"stopped at {name}, {number} of {len(names)} experiments; finished ones are kept; continue with: "
                f"cnnlab reproduce --resume {path}"
            )
            stopped.code = getattr(error, "code", stopped.code)
            raise stopped from None
        except CnnlabError as error:
            section = _START if name in methods else EXPERIMENTS[name].section
            row = {"name": name, "section": section, "title": title, "failed": str(error)}
            row["printed"] = printed_figures(name)
        done[name] = row
        _save(path, [done[n] for n in names if n in done])
    return Reproduction(path, [done[n] for n in names])


def _check_options(device: str, threads: int | None, progress: str) -> torch.device:
    """Return the device; check the other two."""
    check_threads(threads)
    make_display(progress)
    return pick_device(device)


def _finished(path: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of an earlier call that did not fail; none if their file is missing or damaged."""
    try:
        rows = [row for row in read_json(path / "results.json")["rows"] if "failed" not in row and row["test_acc"]["n"]]
        markdown(rows)  # raises if they are damaged
        return {row["name"]: row for row in rows}
    except (CnnlabError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return {}


def _train(path: Path, name: str, recipe: Recipe, seeds: int, common: dict[str, Any]) -> SeedsResult:
    """Train the seeds of an experiment that are not finished."""
    with contextlib.suppress(OSError):
        (path / name).rmdir()  # empty if the process was killed before it wrote anything
    if (path / name / "seeds.json").exists():
        result = training.resume(path / name, **common)
    else:
        result = training.train_seeds(recipe, seeds, runs_dir=path, name=name, **common)
    assert isinstance(result, SeedsResult)
    return result


def _classical_row(path: Path, name: str, limit: int, common: dict[str, Any]) -> dict[str, Any]:
    """Return a classical method's row; its result is saved in its own file."""
    file = path / f"{name}.json"
    if file.exists():
        result = read_json(file)
    else:
        data = find_recipe(EXPERIMENTS["lenet"].recipe).data  # the same for all experiments
        options = {"data_dir": common["data_dir"], "threads": common["threads"]}
        result = classical(data, [name], limit=limit, **options)[0].to_dict()
        write_json(file, result)
    try:
        counts, limited = result["counts"], ""
        if limit and limit in counts.values():
            limited = f"{counts['train']:,} training and {counts['test']:,} test images"
        return {
            "name": name,
            "section": _START,
            "title": CLASSICAL[name],
            "recipe": f"classical/{name}",
            "limited": limited,
            "images": {"train": counts["train"], "test": counts["test"]},
            "seeds": [result["seed"]],
            "loss": None,
            "train_acc": runs.spread([result["train_acc"]]),
            "test_acc": runs.spread([result["test_acc"]]),
            "val_acc": runs.spread([result["val_acc"]]),
            "settings": result["settings"],
            "examples_per_second": None,
            "images_per_second": runs.spread([result["images_per_second"]]),
            "seconds": result["seconds"]["all"],
            "seconds_of": result["seconds"],
            "cached": result["cached"],
            "hardware": {"threads": result["threads"], "versions": result["versions"]},
            "printed": printed_figures(name),
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise CnnlabError(f"{file} is damaged: {reason(error)}; delete it and resume") from error


def _row(name: str, recipe: Recipe, result: SeedsResult) -> dict[str, Any]:
    experiment, first = EXPERIMENTS[name], result.results[0]
    full = find_recipe(experiment.recipe)
    limits = []
    if recipe.epochs < full.epochs:
        limits.append(f"{recipe.epochs} of {full.epochs} epochs")
    elif recipe.epochs > full.epochs:
        limits.append(f"{recipe.epochs} epochs, printed {full.epochs}")
    images = first.summary["images"]
    if recipe.limit and recipe.limit in images.values():
        limits.append(f"{images['train']:,} training and {images['test']:,} test images")
    environment = runs.first_session(first.run)
    return {
        "name": name,
        "section": experiment.section,
        "title": experiment.title,
        "recipe": experiment.recipe,
        "limited": ", ".join(limits),  # empty for a full run
        "epochs": recipe.epochs,
        "images": images,
        "seeds": result.summary["seeds"],
        "loss": result.summary["loss"],
        "train_acc": result.summary["train_acc"],
        "test_acc": result.summary["test_acc"],
        "examples_per_second": result.summary["examples_per_second"],
        "images_per_second": result.summary["images_per_second"],
        "seconds": sum(r.summary["total_seconds"] for r in result.results),
        "hardware": {k: environment.get(k) for k in ("device_name", "threads", "versions", "date")},
        "printed": printed_figures(name),
        **_first_batch_norm(first.run),
    }


def _first_batch_norm(run: runs.Run) -> dict[str, Any]:
    """Return gamma and beta of a LeNet's first batch norm, which the manual prints; {} for other networks."""
    if not run.recipe.model.startswith("lenet-bn"):
        return {}
    for layer in load_network(run).modules():
        if isinstance(layer, BatchNorm):
            return {"gamma": layer.gamma.tolist(), "beta": layer.beta.tolist()}
        if isinstance(layer, nn.BatchNorm2d):
            return {"gamma": layer.weight.tolist(), "beta": layer.bias.tolist()}
    return {}


def _save(path: Path, rows: list[dict[str, Any]]) -> None:
    try:
        write_json(path / "results.json", {"rows": rows})
        write_atomic(path / "table.md", markdown(rows))
    except OSError as error:
        raise CnnlabError(
            f"cannot write into {path}: {reason(error)}; then continue with: cnnlab reproduce --resume {path}"
        ) from error


def _estimate(
    recipes: dict[str, Recipe], sizes: dict[str, dict[str, int]], seeds: int, device: str, threads: int | None
) -> dict[str, float]:
    """Return the estimated seconds of each experiment, from a few real steps on random images."""
    target = pick_device(device)
    seconds = {}
    for name, recipe in recipes.items():
        step = _seconds_per_image(recipe, target, threads)
        # An evaluation is the forward pass alone, a third of a step.
        epoch = (sizes[name]["train"] + sizes[name]["test"] / 3) * step
        seconds[name] = seeds * recipe.epochs * epoch
    return seconds


def _seconds_per_image(recipe: Recipe, device: torch.device, threads: int | None) -> float:
    """Return the seconds of a training step per image. On the CPU large images are timed in a smaller batch."""
    size = recipe.image_size or 28
    large = size >= 64 and device.type == "cpu"
    batch = min(64, recipe.batch_size) if large else recipe.batch_size
    # The layout that autotuning finds for all of the chapter's networks of such sizes on a CPU.
    layout = torch.channels_last if large else torch.contiguous_format
    plan = StepPlan(threads=threads or available_cores(), memory_format=layout)
    build = partial(build_model, recipe.model, num_classes=10, in_channels=1, image_size=size)
    work = Workload(recipe.changed(batch_size=batch), build, (1, size, size), 10, device, threads=threads)
    return time_step(work, plan, least=1, seconds=1.0, most=20) / batch
