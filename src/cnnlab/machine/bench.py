"""Measure this machine: the speed of each network's real training step, beside the machine's peak.

The step is `step.train_step` on batches of the real `Loader`: Fashion-MNIST if it is there, otherwise random images of
the same shape. Its measured plans are not cached. Time to accuracy is a real training in a temporary folder.
"""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cnnlab.chapter.experiments import EXPERIMENTS
from cnnlab.data import SourceOptions, data_folder, load_images, named
from cnnlab.data.imageset import ImageSet, Report, no_report
from cnnlab.data.loader import Loader, Preprocessing
from cnnlab.device.determinism import reproducible
from cnnlab.device.hardware import (
    available_cores,
    check_threads,
    environment,
    has_bfloat16,
    physical_cores,
    pick_device,
)
from cnnlab.device.memory import PeakMemory
from cnnlab.device.timing import Stopwatch, synchronize
from cnnlab.io.errors import CnnlabError, out_of_memory, reason, unknown
from cnnlab.io.files import write_atomic, write_json
from cnnlab.machine.peak import peak
from cnnlab.models import build_model, default_image_size
from cnnlab.recipe import COMPILE, COMPILE_MODES, Recipe
from cnnlab.recipes import RECIPES
from cnnlab.training import runs
from cnnlab.training import train as training
from cnnlab.training.autotune import fastest_plan
from cnnlab.training.cuda_graph import make_step, uses_cuda_graph, warmup_steps
from cnnlab.training.optim import initialize, make_optimizer
from cnnlab.training.plan import Plan, Workload, check_compile, is_compile_error, operations, prepare_model
from cnnlab.training.step import train_step

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Recipes whose time to accuracy is measured, if their images are there.
TO_ACCURACY = ("digits", "speed/fashion-90")
COUNT = 60_000  # images, as in Fashion-MNIST
DEFINITIONS = {
    "images_per_second": "of the training step with data loading, wall-clock",
    "examples_per_second": "the same, compute only",
    "flops_per_image": "floating-point operations of convolutions and matrix products in a training step, per image: "
    "three times those of the forward pass",
    "fraction_of_peak": "flops_per_image x images_per_second / the measured peak of that precision",
    "peaks": "operations/s of the faster of a matrix product (torch.mm) and the same product as a 1x1 convolution in "
    "channels_last, at the fastest size; on CUDA float32 is PyTorch's default, tf32 in convolutions",
    "peak_memory_bytes": "CUDA: of tensors; CPU: of the whole process, with Python, PyTorch and the images; null if "
    "the system does not report it",
    "to_accuracy": "seconds of all epochs with evaluation and saving, without reading and start-up; accuracy of the "
    "last epoch on the named split",
}


@dataclass(frozen=True)
class BenchResult:
    """The measurements as plain values.

    environment: hardware, versions, date. images: `fashion-mnist` or `random`. peaks: by precision. rows: one per
    network and precision, with the reason as `failed` if it was not measured. to_accuracy: one per training. left_out:
    what was skipped, with reasons.
    """

    environment: dict[str, Any]
    images: str
    peaks: dict[str, dict[str, Any]]
    rows: list[dict[str, Any]]
    to_accuracy: list[dict[str, Any]]
    left_out: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields with DEFINITIONS."""
        return {**asdict(self), "definitions": DEFINITIONS}

    def save(self, folder: Path) -> None:
        """Write bench.json and, if any network was measured, bench.png. Raise CnnlabError."""
        from cnnlab.io import figures as plots  # imports matplotlib, which is slow

        try:
            write_json(folder / "bench.json", self.to_dict())
            drawn = [row for row in self.rows if "failed" not in row]
            if drawn:
                where = f"{self.environment['device_name']}, torch {self.environment['versions']['torch']}"
                write_atomic(folder / "bench.png", plots.png(plots.speeds(drawn, self.peaks, where)))
        except OSError as error:
            raise CnnlabError(f"cannot write into {folder}: {reason(error)}; name another folder with --out") from error


def bench(
    models: Sequence[str] = (),
    *,
    image_size: int = 0,
    batch_size: int = 0,
    device: str = "auto",
    threads: int | None = None,
    precision: str = "auto",
    memory_format: str = "auto",
    compile: str = "auto",
    seconds: float = 4.0,
    accuracy: bool = True,
    data_dir: str | Path | None = None,
    report: Report = no_report,
    peaks: dict[str, dict[str, Any]] | None = None,
) -> BenchResult:
    """Measure each network's training step, its fraction of the machine's peak, and the time to an accuracy.

    models: names. Default: the chapter's nine networks, with the book's batch and image sizes. Other networks run at
    their usual image size with batches of 128 and plain SGD. image_size, batch_size: for all networks; 0: as above.
    precision: float32, bfloat16, or auto: float32, and bfloat16 if the device supports it. memory_format: auto takes
    the faster one. compile: auto (record on CUDA, else off), off, record, or a mode of torch.compile; compile time is
    not in the speeds but in `first_step_seconds`. seconds: measured per row, at least two steps; before that, trying
    the candidate plans takes up to about twice as long. peaks: of an earlier result, to save measuring them again.

    Raise CnnlabError for invalid arguments. A network that runs out of memory becomes a row that says so.
    """
    check_threads(threads)
    if not 0.05 <= seconds <= 3600:
        raise CnnlabError(f"seconds={seconds:g}: must be between 0.05 and 3600")
    if precision not in ("auto", *DTYPES):
        raise CnnlabError(f"precision={precision!r}: choose one of auto, {', '.join(DTYPES)}")
    if compile not in ("auto", *COMPILE):
        raise unknown("compile", compile, ("auto", *COMPILE))
    target = pick_device(device)
    changes: dict[str, Any] = {"precision": precision, "memory_format": memory_format, "compile": compile}
    recipes = [replace(_recipe(n, image_size, batch_size), **changes) for n in dict.fromkeys(models or _manual())]
    for recipe in recipes:
        check_compile(recipe, target)
        with torch.device("meta"):  # reports a wrong size or name before minutes of measuring
            _build(recipe)
    folder = data_folder(data_dir)
    source, images = _images(folder, report)
    dtypes = [p for p in DTYPES if p == precision or (precision == "auto" and (p == "float32" or has_bfloat16(target)))]
    counts = {available_cores(), physical_cores()} if threads is None and target.type == "cpu" else {threads or 1}
    known = peaks if peaks and set(dtypes) <= peaks.keys() else None
    report("measuring", 0, 1 + len(recipes) * len(dtypes))
    peaks = known or {p: _peak(target, p, counts) for p in dtypes}
    rows: list[dict[str, Any]] = []
    for recipe, dtype in itertools.product(recipes, dtypes):
        report("measuring", 1 + len(rows), 1 + len(recipes) * len(dtypes))
        rows.append(_row(replace(recipe, precision=dtype), images, target, threads, seconds))
    if known is None:  # measure again: the machine may have been busy the first time
        peaks = {p: max(peaks[p], _peak(target, p, counts), key=_speed) for p in dtypes}
    for row in rows:
        if "failed" not in row:
            speed = row["flops_per_image"] * row["images_per_second"]
            row["fraction_of_peak"] = speed / _speed(peaks[row["precision"]])
    trained, left_out = _to_accuracy(target, threads, folder, report) if accuracy else ([], [])
    about = {**environment(target), "threads": threads or available_cores(), "deterministic": True}
    return BenchResult(about, source, peaks, rows, trained, left_out)


def _speed(peak: dict[str, Any]) -> float:
    return float(peak["flops_per_second"])


def _peak(device: torch.device, precision: str, counts: set[int]) -> dict[str, Any]:
    """Return the highest peak over these numbers of threads."""
    return max((peak(device, DTYPES[precision], n) for n in counts), key=_speed)


def _manual() -> dict[str, Recipe]:
    """Return the book's recipe for each network in the chapter."""
    recipes = (RECIPES[experiment.recipe] for experiment in EXPERIMENTS.values())
    return {recipe.model: recipe for recipe in recipes}


def _recipe(model: str, image_size: int, batch_size: int) -> Recipe:
    """Return the recipe that `model` is timed with; its image size is explicit."""
    known = _manual()
    recipe = known.get(model) or known["lenet"].changed(
        model=model, batch_size=128, image_size=default_image_size(model), init="pytorch"
    )
    recipe = recipe.changed(batch_size=batch_size or recipe.batch_size)
    if not 2 <= recipe.batch_size <= COUNT:  # batch norm cannot train on a single image
        raise CnnlabError(f"batch_size={batch_size}: must be between 2 and {COUNT}")
    usual = recipe.image_size or default_image_size(model)
    if image_size and image_size != usual:
        return recipe.changed(image_size=image_size)
    return replace(recipe, image_size=usual)


def _build(recipe: Recipe) -> nn.Module:
    """Build the network for one channel and ten classes."""
    return build_model(recipe.model, num_classes=10, in_channels=1, image_size=recipe.image_size)


def _images(folder: Path, report: Report) -> tuple[str, ImageSet]:
    """Return Fashion-MNIST's training images if they are there, otherwise random ones. Nothing is downloaded."""
    if named.is_there("fashion-mnist", folder):
        images = load_images("fashion-mnist", "train", SourceOptions(data_dir=folder, report=report))
        assert images is not None
        return "fashion-mnist", images
    host = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (COUNT, 1, 28, 28), dtype=torch.uint8, generator=host)
    labels = torch.randint(10, (COUNT,), generator=host)
    return "random", ImageSet(pixels, labels, [str(i) for i in range(COUNT)], [str(k) for k in range(10)])


def _row(recipe: Recipe, images: ImageSet, device: torch.device, threads: int | None, seconds: float) -> dict[str, Any]:
    """Measure one network in one precision."""
    row: dict[str, Any] = {
        "model": recipe.model,
        "recipe": recipe.name,
        "image_size": recipe.image_size,
        "batch_size": recipe.batch_size,
        "precision": recipe.precision,
    }
    no_memory = {**row, "failed": f"out of memory with batches of {recipe.batch_size}"}
    shape = (1, recipe.image_size, recipe.image_size)
    work = Workload(recipe, partial(_build, recipe), shape, 10, device, len(images), threads)
    plan, step = fastest_plan(work, 2 * seconds)
    if math.isinf(step):
        return no_memory
    if recipe.compile in COMPILE_MODES:
        plan = replace(plan, compile=recipe.compile)
    memory = PeakMemory(device)
    with reproducible(recipe.seed, plan.threads):
        try:
            count, wall, compute, first = _timed(recipe, plan, images, device, max(2, math.ceil(seconds / step)))
        except Exception as error:
            if is_compile_error(error):
                return {**row, "failed": f"cannot be compiled here: {reason(error, 200)}"}
            if not out_of_memory(error):
                raise
            return no_memory
    return {
        **row,
        "memory_format": plan.values["memory_format"],
        "compile": plan.compile,
        "threads": plan.threads,
        "chosen": plan.why,
        "images": count,
        "first_step_seconds": first,
        "seconds": wall,
        "compute_seconds": compute,
        "images_per_second": count / wall,
        "examples_per_second": count / compute,
        "flops_per_image": operations(work.build, shape),
        "peak_memory_bytes": memory.bytes(),
    }


def _timed(
    recipe: Recipe, plan: Plan, images: ImageSet, device: torch.device, steps: int
) -> tuple[int, float, float, float]:
    """Time that many training steps after a warm-up.

    Return the number of images, and the seconds with data loading, of compute only, and of the first step with its
    compilation.
    """
    model = _build(recipe)
    initialize(model, recipe.init)
    model.to(device).to(memory_format=plan.memory_format).train()
    optimizer = make_optimizer(model, recipe, plan.precision)
    preprocessing = Preprocessing.of(
        images.images, image_size=recipe.image_size, fit=recipe.fit, normalize=recipe.normalize
    )
    loader = Loader(images, preprocessing, recipe.batch_size, device, memory_format=plan.memory_format)
    batches = itertools.chain.from_iterable(loader.shuffled(recipe.seed, epoch) for epoch in itertools.count())
    forward = prepare_model(model, plan.compile)
    step = make_step(train_step, plan, device)
    start = time.perf_counter()
    step(forward, optimizer, *next(batches), precision=plan.precision)
    synchronize(device)
    first = time.perf_counter() - start
    # The last batch of an epoch is smaller: it runs uncompiled and is recorded separately.
    rest = len(images) % recipe.batch_size if uses_cuda_graph(plan, device) else 0
    for _ in range(warmup_steps(plan, device)):
        step(forward, optimizer, *next(batches), precision=plan.precision)
        if rest > 1:
            step(model, optimizer, *(part[:rest] for part in next(batches)), precision=plan.precision)
    synchronize(device)
    compute, count = Stopwatch(device), 0
    start = time.perf_counter()
    for x, y in itertools.islice(batches, steps):
        compute.start()
        step(forward if len(y) == recipe.batch_size else model, optimizer, x, y, precision=plan.precision)
        compute.stop()
        count += len(y)
    synchronize(device)
    return count, time.perf_counter() - start, compute.seconds(), first


def _to_accuracy(
    device: torch.device, threads: int | None, folder: Path, report: Report
) -> tuple[list[dict[str, Any]], list[str]]:
    """Train each recipe of TO_ACCURACY. Return a row for each, and the reasons for those left out."""
    rows, left_out = [], []
    for name in TO_ACCURACY:
        recipe = RECIPES[name]
        if recipe.data == "fashion-mnist" and not named.is_there("fashion-mnist", folder):
            left_out.append(f"{name}: Fashion-MNIST is not in {folder}; cnnlab train --data fashion-mnist downloads it")
            continue
        report(f"training {name}", 0, 0)
        with tempfile.TemporaryDirectory() as away:
            common: dict[str, Any] = {"device": str(device), "threads": threads, "data_dir": folder}
            try:
                result = training.train(recipe, runs_dir=away, progress="none", **common)
            except CnnlabError as error:
                left_out.append(f"{name}: {error}")
                continue
            except KeyboardInterrupt:  # keep what has been measured
                left_out.append(f"{name} and the recipes after it: stopped by Ctrl-C")
                break
            session = runs.first_session(result.run)
        rows.append(
            {
                "recipe": name,
                "model": recipe.model,
                "data": recipe.data,
                "epochs": recipe.epochs,
                "seconds": result.summary["total_seconds"],
                "train_seconds": result.summary["train_seconds"],
                "split": recipe.eval_split,
                "accuracy": result.summary[f"{recipe.key}_acc"],
                "precision": session["dtype"],
                "memory_format": session["memory_format"],
                "compile": session["compile"],
                "threads": session["threads"],
            }
        )
    return rows, left_out
