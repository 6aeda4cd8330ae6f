"""The chapter's experiments, trained again, beside the figures that the manual prints."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cnnlab import runs, training
from cnnlab.data import SourceOptions, data_folder, load_images
from cnnlab.device import available_cores, pick_device, reproducible, synchronize
from cnnlab.display import make_display
from cnnlab.errors import CnnlabError, TrainingInterrupted, reason, unknown
from cnnlab.files import read_json, write_atomic, write_json
from cnnlab.inference import load_model
from cnnlab.models import build_model
from cnnlab.models.batch_norm import BatchNorm
from cnnlab.optim import initialize, make_optimizer
from cnnlab.recipe import Recipe
from cnnlab.recipes import find_recipe
from cnnlab.results import SeedsResult

_FORMAT = "cnnlab reproduction 1"


@dataclass(frozen=True)
class Experiment:
    """One row of the chapter: its recipe, and what the manual (or, where it prints nothing, its source) prints."""

    section: str
    title: str
    recipe: str
    loss: float
    train_acc: float
    test_acc: float
    examples_per_second: float | None = None


EXPERIMENTS: dict[str, Experiment] = {
    "lenet": Experiment("source", "LeNet", "manual/lenet", 0.469, 0.823, 0.779),
    "alexnet": Experiment("1.1", "AlexNet", "manual/alexnet", 0.326, 0.881, 0.879, 4187.6),
    "vgg11": Experiment("1.2", "VGG-11, channels / 4", "manual/vgg11", 0.220, 0.918, 0.900, 2578.4),
    "nin": Experiment("1.3", "NiN", "manual/nin", 0.322, 0.881, 0.865, 3226.1),
    "lenet-bn-scratch": Experiment(
        "1.4", "LeNet + batch norm, from scratch", "manual/lenet-bn-scratch", 0.267, 0.900, 0.860, 40878.1
    ),
    "lenet-bn": Experiment(
        "1.4", "LeNet + batch norm, framework layer", "manual/lenet-bn", 0.263, 0.902, 0.862, 71480.6
    ),
    "resnet18": Experiment("1.5", "ResNet-18", "manual/resnet18", 0.008, 0.999, 0.898, 4650.1),
    "googlenet": Experiment("source", "GoogLeNet", "manual/googlenet", 0.262, 0.900, 0.886),
    "densenet": Experiment("source", "DenseNet", "manual/densenet", 0.140, 0.948, 0.885),
}


@dataclass(frozen=True)
class Plan:
    """What a reproduction will train and how long that may take: seconds by experiment, estimated on this machine."""

    recipes: dict[str, Recipe]
    seeds: int
    seconds: dict[str, float]

    @property
    def total(self) -> float:
        """All seconds together."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Reproduction:
    """A folder of trained experiments; `rows`: one dict of plain values an experiment, in the chapter's order."""

    path: Path
    rows: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
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
    """Train the named experiments (unsaid, all of EXPERIMENTS) by the manual's recipes into a new folder.

    epochs, limit: fewer epochs, or at most that many images of each split, for a quick look; such rows are marked as
    limited. confirm: is shown the plan with the time that it may take, and answers whether to go on; None is returned
    where it does not. An experiment that fails becomes a row that says why, and the others go on.

    Raises: CnnlabError for bad input, TrainingInterrupted on Ctrl-C; `resume_reproduction` goes on.
    """
    for wanted in names:
        if wanted not in EXPERIMENTS:
            raise unknown("experiment", wanted, EXPERIMENTS)
    if seeds < 1:
        raise CnnlabError(f"seeds={seeds}: must be at least 1")
    chosen = [n for n in EXPERIMENTS if n in names or not names]
    recipes = {n: _recipe(n, epochs, limit) for n in chosen}
    options = SourceOptions(data_dir=data_folder(data_dir))
    sizes = {n: {s: _count(r, s, options) for s in ("train", "test")} for n, r in recipes.items()}
    plan = Plan(recipes, seeds, _estimate(recipes, sizes, seeds, device, threads))
    if not confirm(plan):
        return None
    path = runs.named_folder(Path(runs_dir), name, "reproduce")
    content = {
        "format": _FORMAT,
        "recipes": {n: r.to_dict() for n, r in recipes.items()},
        "seeds": seeds,
        "data_dir": str(Path(options.data_dir).absolute()),
        "estimated_seconds": plan.seconds,
    }
    try:
        write_json(path / "reproduction.json", content)
    except OSError as error:
        raise CnnlabError(f"cannot write into {path}: {reason(error)}; name another folder with --runs-dir") from error
    return _run(path, recipes, seeds, device=device, threads=threads, data_dir=data_dir, progress=progress)


def resume_reproduction(
    path: str | Path,
    *,
    runs_dir: str | Path = "runs",
    device: str = "auto",
    threads: int | None = None,
    data_dir: str | Path | None = None,
    progress: str = "auto",
) -> Reproduction:
    """Go on with an interrupted reproduction; what is finished is kept. Raises: as `reproduce`."""
    folder = next((f for f in (Path(path), Path(runs_dir) / path) if (f / "reproduction.json").is_file()), None)
    if folder is None:
        raise CnnlabError(f"{path} is no reproduction's folder (no reproduction.json)")
    content = read_json(folder / "reproduction.json")
    try:
        if content["format"] != _FORMAT:
            raise CnnlabError(f"format {content['format']!r}, not {_FORMAT!r}")
        recipes = {n: Recipe.from_dict(values) for n, values in content["recipes"].items()}
        seeds = int(content["seeds"])
        began = Path(content["data_dir"])
        if not recipes.keys() <= EXPERIMENTS.keys():
            raise CnnlabError("it has experiments that this cnnlab does not know")
    except (CnnlabError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CnnlabError(f"{folder / 'reproduction.json'} is damaged: {reason(error)}") from error
    if data_dir is None and began.is_dir():
        data_dir = began
    return _run(folder, recipes, seeds, device=device, threads=threads, data_dir=data_dir, progress=progress)


def _recipe(name: str, epochs: int | None, limit: int | None) -> Recipe:
    recipe = find_recipe(EXPERIMENTS[name].recipe)
    changes = {k: v for k, v in (("epochs", epochs), ("limit", limit)) if v is not None}
    return recipe.changed(**changes)


def _count(recipe: Recipe, split: str, options: SourceOptions) -> int:
    images = load_images(recipe.data, split, options)
    count = 0 if images is None else len(images)
    return min(count, recipe.limit) if recipe.limit else count


def _run(path: Path, recipes: dict[str, Recipe], seeds: int, **common: Any) -> Reproduction:
    rows: list[dict[str, Any]] = []
    for number, (name, recipe) in enumerate(recipes.items(), 1):
        if common["progress"] != "none":
            make_display(common["progress"]).message(f"{EXPERIMENTS[name].title} ({number} of {len(recipes)})")
        try:
            if (path / name / "seeds.json").exists():
                result = training.resume(path / name, **common)
            else:
                result = training.train_seeds(recipe, seeds, runs_dir=path, name=name, **common)
            assert isinstance(result, SeedsResult)
            row = _row(name, recipe, result)
        except TrainingInterrupted as error:
            raise TrainingInterrupted(
                f"stopped at {name}, {number} of {len(recipes)} experiments; what is finished is kept. Go on with: "
                f"cnnlab reproduce --resume {path}"
            ) from error
        except CnnlabError as error:
            row = {"name": name, **asdict(EXPERIMENTS[name]), "failed": str(error)}
        rows.append(row)
        _save(path, rows)
    return Reproduction(path, rows)


def _row(name: str, recipe: Recipe, result: SeedsResult) -> dict[str, Any]:
    experiment, first = EXPERIMENTS[name], result.results[0]
    full = find_recipe(experiment.recipe)
    limits = []
    if recipe.epochs != full.epochs:
        limits.append(f"{recipe.epochs} of {full.epochs} epochs")
    images = first.summary["images"]
    if recipe.limit:
        limits.append(f"{images['train']:,} training and {images['test']:,} test images")
    environment = runs.first_session(first.run)
    return {
        "name": name,
        "section": experiment.section,
        "title": experiment.title,
        "recipe": experiment.recipe,
        "limited": ", ".join(limits),  # empty where the row ran in full
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
        "printed": {
            "loss": experiment.loss,
            "train_acc": experiment.train_acc,
            "test_acc": experiment.test_acc,
            "examples_per_second": experiment.examples_per_second,
        },
        **_first_batch_norm(first.run),
    }


def _first_batch_norm(run: runs.Run) -> dict[str, Any]:
    """What the first batch norm has learned, as the manual prints it for its own layer; nothing for the others."""
    if not run.recipe.model.startswith("lenet-bn"):
        return {}
    for layer in load_model(run, run.weights()).modules():
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
            f"cannot write into {path}: {reason(error)}; then go on with: cnnlab reproduce --resume {path}"
        ) from error


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table for a page: ours beside the manual's."""
    head = (
        "| section | network | run | loss | train acc | test acc | examples/s, compute only | "
        "images/s, wall-clock with data |\n|---|---|---|---|---|---|---|---|\n"
    )
    lines = []
    for row in rows:
        printed = row.get("printed") or row
        speed = printed["examples_per_second"]
        if "failed" in row:
            lines.append(f"| {row['section']} | {row['title']} | failed: {row['failed']} | | | | | |")
        else:
            n = row["loss"]["n"]
            how = f"{row['limited'] or 'in full'}, {n} seed{'s' if n > 1 else ''}"
            figures = " | ".join(told(row[k], 3) for k in ("loss", "train_acc", "test_acc"))
            speeds = f"{row['examples_per_second']['mean']:,.0f} | {row['images_per_second']['mean']:,.0f}"
            lines.append(f"| {row['section']} | {row['title']} | {how} | {figures} | {speeds} |")
        figures = " | ".join(f"{printed[k]:.3f}" for k in ("loss", "train_acc", "test_acc"))
        lines.append(f"| | | printed | {figures} | {f'{speed:,.0f}' if speed else ''} | |")
    return head + "\n".join(lines) + "\n"


def told(value: dict[str, Any], digits: int) -> str:
    """`mean ± std` of a figure of several seeds, or the one value."""
    mean = f"{value['mean']:.{digits}f}"
    return mean if value["std"] is None else f"{mean} ± {value['std']:.{digits}f}"


# How long will it take?


def _estimate(
    recipes: dict[str, Recipe],
    sizes: dict[str, dict[str, int]],
    seeds: int,
    device: str,
    threads: int | None,
) -> dict[str, float]:
    """Seconds of each experiment, from a few real steps on random images."""
    here = pick_device(device)
    seconds = {}
    with reproducible(0, threads or available_cores()):
        for name, recipe in recipes.items():
            step, forward = _seconds_per_image(recipe, here)
            epoch = sizes[name]["train"] * step + sizes[name]["test"] * forward
            seconds[name] = seeds * recipe.epochs * epoch
    return seconds


def _seconds_per_image(recipe: Recipe, device: torch.device) -> tuple[float, float]:
    """Of a training step and of an evaluation. On the CPU large images are tried in a small batch."""
    size = recipe.image_size or 28
    batch = recipe.batch_size if size < 64 or device.type != "cpu" else 8
    model = build_model(recipe.model, num_classes=10, in_channels=1, image_size=size)
    initialize(model, recipe.init)
    model.to(device)
    optimizer = make_optimizer(model, recipe)
    x, y = torch.rand(batch, 1, size, size, device=device), torch.randint(0, 10, (batch,), device=device)

    def timed(step: Callable[[], object]) -> float:
        step()  # the first is slower: memory, kernels
        synchronize(device)
        began, steps = time.perf_counter(), 0
        while steps < 20 and (steps == 0 or time.perf_counter() - began < 1.0):
            step()
            synchronize(device)
            steps += 1
        return (time.perf_counter() - began) / steps / batch

    training_step = timed(lambda: training.train_step(model, optimizer, x, y))
    with torch.inference_mode():
        forward = timed(lambda: model.eval()(x))
    return training_step, forward
