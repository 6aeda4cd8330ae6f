"""The content of a report about a run as plain values, from which page, model card and pictures are made."""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnnlab.data.imageset import ImageSet
from cnnlab.data.own import MEMORY
from cnnlab.device.hardware import check_threads, pick_device
from cnnlab.inference.evaluation import RunEvaluation, evaluate_run
from cnnlab.inference.split_table import image_root
from cnnlab.inference.suspects import confident_disagreements, find_suspects
from cnnlab.inspect.report.inside import look_inside
from cnnlab.inspect.report.settings import command, named_recipe, settings_table
from cnnlab.inspect.report.thumbnails import Thumbnails
from cnnlab.io.errors import CnnlabError
from cnnlab.io.text import cell, escape, truncate
from cnnlab.models.own import Network
from cnnlab.training.evaluate import BINS, calibration_error, confidence_bins, probabilities
from cnnlab.training.locks import training_pid
from cnnlab.training.own import check_own
from cnnlab.training.runs import Run, first_session
from cnnlab.training.series import OUT_OF_FOLD, is_series, open_series

MOST_ROWS = 20_000  # images that the page lists
_LONGEST = 300  # characters of a name
_SAMPLE = 2000  # correct images in all, at most 24 of a class
_LISTED = 48  # most confident mistakes, least certain correct ones, suspects
_TOP = 3
_MAPS = 6  # class-activation maps of mistakes, and of correct predictions
_INSIDE = 250_000  # bytes reserved for pictures of the inside, however many images there are


@dataclass(frozen=True)
class Options:
    """The arguments of `report`.

    folder: folder of the page, to which paths of files are relative. most_rows: number of mistakes that the page lists
    for a run, besides the correct images. lenient: leave out what cannot be evaluated, whatever options are given.
    """

    split: str | None = None
    weights: str | None = None
    data: Any = None
    model: Network | None = None
    data_dir: str | Path | None = None
    device: str = "auto"
    threads: int | None = None
    skip_bad: bool = False
    folder: Path | None = None
    most_rows: int = MOST_ROWS
    lenient: bool = False


@dataclass(frozen=True)
class Measured:
    """A run and its evaluation, which is None if its weights or images are missing. missing: messages that say so.

    model: the caller's own network, if the run trained one.
    """

    run: Run
    evaluation: RunEvaluation | None
    missing: list[str]
    model: Network | None = None

    @property
    def probabilities(self) -> Tensor:
        """The probabilities (N, K) float32, calibrated as in `predict`."""
        assert self.evaluation is not None
        assert self.evaluation.result.logits is not None
        return probabilities(self.evaluation.result.logits, self.evaluation.temperature)


def measure(run: Run, options: Options) -> Measured:
    """Evaluate a run. Default split: the one that was evaluated during training.

    Raise CnnlabError for options that do not fit. Without options, a failed evaluation only leaves parts out.
    """
    check_threads(options.threads)
    pick_device(options.device)
    if not options.lenient:
        check_own(run.path, run.recipe, builder=run.builder, model=options.model)
    if not run.weights(options.weights).exists() and run.summary() is None:
        state = "is being trained" if training_pid(run.path) else "is not finished"
        return Measured(run, None, [f"{run.path} {state}: there are no weights to evaluate yet"])
    try:
        evaluation = evaluate_run(
            run, model=options.model, data=options.data, split=options.split, own_split=run.recipe.eval_split,
            weights=options.weights, data_dir=options.data_dir, device=options.device, threads=options.threads,
            skip_bad=options.skip_bad, keep_logits=True,
        )  # fmt: skip
    except CnnlabError as error:
        given = (options.split, options.weights, options.data, options.data_dir)
        if not options.lenient and any(value is not None for value in given):
            raise
        return Measured(run, None, [str(error)])
    return Measured(run, evaluation, [], options.model)


def run_payload(measured: Measured, thumbnails: Thumbnails, options: Options) -> dict[str, Any]:
    """Return what a report says about one run."""
    run, evaluation = measured.run, measured.evaluation
    recipe, info = run.recipe, run.info
    summary = run.summary()
    rows = run.metrics()
    key = recipe.key
    model, data = info["model"], info["data"]
    base = named_recipe(recipe)
    test_rows = [row for row in run.evaluations() if row.get("split") == "test" and not row.get("other_data")]
    found, inside = None, None
    if evaluation is not None:
        found, order = evaluation_payload(measured, thumbnails, options)
        shown = [*found["mistakes"][:_MAPS], *found["uncertain"][:_MAPS]]
        thumbnails.budget = max(thumbnails.budget, _INSIDE)
        chosen = [(row, order[row]) for row in shown]
        inside = look_inside(evaluation, measured.model, chosen, thumbnails, options.threads)
    return {
        "name": run_name(run),
        "recipe": recipe.name,
        "base": base.name if base else None,
        "model": recipe.model,
        "parameters": model["parameters"],
        "input": [model["in_channels"], model["image_size"], model["image_size"]],
        "native": info["preprocessing"]["native_size"],
        "published": (model.get("weights") or {}).get("origin"),
        "from": (info.get("from") or {}).get("run"),
        "data": recipe.data,
        "classes": [truncate(name, _LONGEST) for name in run.classes],
        "counts": data["counts"],
        "seed": recipe.seed,
        "split_seed": recipe.split_seed,
        "fold": [recipe.fold, recipe.folds] if recipe.folds else None,
        "eval_split": recipe.eval_split,
        "epochs": len(rows),
        "of": recipe.epochs,
        "finished": summary is not None,
        "running": summary is None and training_pid(run.path) is not None,
        "stopped_by": summary["stopped_by"] if summary else None,
        "best_epoch": summary["best_epoch"] if summary and recipe.eval_split == "validation" else None,
        "best_by": recipe.best_by,
        "test_evaluations": {"times": len(test_rows), "each_epoch": recipe.eval_split == "test"},
        "history": {
            "epoch": [row["epoch"] for row in rows],
            "train_loss": [row["loss"] for row in rows],
            "eval_loss": [row[f"{key}_loss"] for row in rows],
            "train_acc": [row["train_acc"] for row in rows],
            "eval_acc": [row[f"{key}_acc"] for row in rows],
            "learning_rate": [row["learning_rate"] for row in rows],
        },
        "evaluation": found,
        "recorded": _recorded(summary),
        "inside": inside,
        "speed": _speed(summary, rows),
        "findings": [f["text"] + "; try " + f["remedy"] for f in (summary or {}).get("findings", [])],
        "checks": _checks(run, summary),
        "settings": settings_table(recipe),
        "command": command(run),
        "environment": _environment(run),
        "missing": measured.missing,
    }


def _recorded(summary: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the accuracy that training itself recorded for the weights that the run predicts with."""
    figures = (summary or {}).get("figures")
    if figures is None:
        return None
    images = sum(row["support"] for row in figures["classes"])
    return {"accuracy": figures["accuracy"], "interval": figures["intervals"]["accuracy"], "images": images,
            "weights": figures["weights"]}  # fmt: skip


def run_name(run: Run) -> str:
    """Return the name of a run's folder; for a member of a series, SERIES/NAME."""
    path = run.path.resolve()
    return f"{path.parent.name}/{path.name}" if is_series(path.parent) else path.name


def evaluation_payload(
    measured: Measured, thumbnails: Thumbnails, options: Options
) -> tuple[dict[str, Any], list[int]]:
    """Return the results of the evaluation, and the indices of the images that the page lists, in its order."""
    evaluation = measured.evaluation
    assert evaluation is not None
    assert evaluation.images is not None
    assert evaluation.result.logits is not None
    found = evaluation.to_dict()
    images, p = evaluation.images, measured.probabilities
    suspects, origin = _suspects(measured, p)
    listed = _rows(images, p, found["confusion"], [row for row, *_ in suspects], options.most_rows)
    kept = ("split", "images", "correct", "loss", "accuracy", "balanced_accuracy", "macro_f1", "intervals", "classes",
            "temperature", "threshold", "accepted", "accepted_correct", "never_predicted", "other_data",
            "seconds")  # fmt: skip
    values = {
        **{name: found[name] for name in kept},
        "weights": evaluation.weights.stem,
        "data": evaluation.data if evaluation.data != measured.run.recipe.data else None,
        "recorded": evaluation.recorded,
        "skipped": len(evaluation.skipped),
        "confusion": [[i, j, n] for i, row in enumerate(found["confusion"]) for j, n in enumerate(row) if n],
        "calibration": calibration(probabilities(evaluation.result.logits, 1.0), p, images.labels),
        "rows": _row_values(listed, images, p, thumbnails, evaluation, options),
        "mistakes": [listed.index[i] for i in listed.mistakes[:_LISTED]],
        "uncertain": [listed.index[i] for i in listed.uncertain],
        "suspects": [[listed.index[i], k, p[i, k].item(), p[i, images.labels[i]].item()]
                     for i, k in suspects if i in listed.index],
        "suspects_from": origin,
        "all_suspects": len(suspects),
    }  # fmt: skip
    return values, listed.order


def calibration(before: Tensor, after: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return the reliability of probabilities (N, K) before and after temperature scaling. labels: (N,) int64."""
    (sure_before, _), (sure, guess) = before.max(1), after.max(1)
    correct = guess == labels
    return {
        "bins": BINS,
        "before": _reliability(sure_before, correct),
        "after": _reliability(sure, correct),
        "ece_before": calibration_error(sure_before, correct),
        "ece": calibration_error(sure, correct),
    }


@dataclass(frozen=True)
class _Listed:
    """The images that the page lists. mistakes: the most confident first; uncertain: correct, least confident first."""

    order: list[int]
    index: dict[int, int]  # image -> its row
    mistakes: list[int]
    uncertain: list[int]


def _rows(images: ImageSet, p: Tensor, confusion: list[list[int]], more: Sequence[int], most: int) -> _Listed:
    """Choose images: up to `most` mistakes, the least certain correct ones, some correct ones per class, and `more`.

    Those that come first get a picture while there is room. The mistakes are ordered so that each cell of the confusion
    matrix gets some.
    """
    confidence, predicted = (t.tolist() for t in p.max(1))
    labels = images.labels.tolist()
    each = max(2, min(24, _SAMPLE // len(confusion)))
    cells: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i in sorted(range(len(labels)), key=lambda i: -confidence[i]):
        cells[labels[i], predicted[i]].append(i)
    wrong = [i for (true, guess), members in cells.items() if true != guess for i in members]
    wrong.sort(key=lambda i: (-confidence[i], i))
    right = [i for (true, guess), members in cells.items() if true == guess for i in members]
    uncertain = sorted(right, key=lambda i: (confidence[i], i))[:_LISTED]
    sample = [i for (true, guess), members in cells.items() if true == guess for i in _spread(sorted(members), each)]
    rank = {i: n for members in cells.values() for n, i in enumerate(members)}
    by_cell = sorted(wrong, key=lambda i: (rank[i], -confidence[i]))[:most]
    order = list(dict.fromkeys([*wrong[:_LISTED], *more[:_LISTED], *uncertain, *sample, *by_cell]))
    return _Listed(order, {i: n for n, i in enumerate(order)}, wrong, uncertain)


def _spread(members: Sequence[int], most: int) -> list[int]:
    """Return at most `most` of the members, evenly spaced."""
    n = min(most, len(members))
    return [members[(2 * k + 1) * len(members) // (2 * n)] for k in range(n)]


def _row_values(
    listed: _Listed, images: ImageSet, p: Tensor, thumbnails: Thumbnails, evaluation: RunEvaluation, options: Options
) -> dict[str, Any]:
    """Return the listed images, a list for each column. picture: index or -1; file: 1 if `folder`/id can be linked."""
    k = min(_TOP, p.shape[1])
    order = torch.tensor(listed.order, dtype=torch.int64)
    top_p, top_k = p[order].topk(k)
    source = evaluation.data
    root = None if source.startswith(MEMORY) else image_root(source)
    ids = [images.ids[i] for i in listed.order]
    return {
        "id": [truncate(name, _LONGEST) for name in ids],
        "label": images.labels[order].tolist(),
        "top": top_k.tolist(),
        "p": [[round(value, 6) for value in row] for row in top_p.tolist()],
        "picture": [thumbnails.add(images.images[i]) for i in listed.order],
        "folder": None if root is None else _relative(root, options.folder),
        "file": [] if root is None else [int(_is_plain_file(root, name)) for name in ids],
    }


def _relative(root: Path, folder: Path | None) -> str | None:
    """Return the relative path from the page's folder to the images; None if they are on another drive."""
    try:
        return Path(os.path.relpath(root, (folder or Path()).absolute())).as_posix()
    except ValueError:
        return None


def _is_plain_file(root: Path, name: str) -> bool:
    """Return whether an image is a file whose name can be shown, copied and linked as it is."""
    try:
        return escape(name) == name and len(name) <= _LONGEST and (root / name).is_file()
    except (OSError, ValueError):
        return False


def _suspects(measured: Measured, p: Tensor) -> tuple[list[tuple[int, int]], str]:
    """Return (image, class that contradicts its label) of the suspects, and their source.

    `out_of_fold`: for a fold of a finished cross-validation, the suspects of all folds among the images that this fold
    held out. `train`: none, since the network knows the labels of its training images. `split`: otherwise, found by
    this evaluation.
    """
    evaluation = measured.evaluation
    assert evaluation is not None
    assert evaluation.images is not None
    images, folder = evaluation.images, measured.run.path.parent
    out_of_fold = is_series(folder) and open_series(folder).kind == "folds" and (folder / OUT_OF_FOLD).is_file()
    if out_of_fold and evaluation.split == "validation" and not evaluation.other:
        place = {cell(name): i for i, name in enumerate(images.ids)}
        classes = {cell(name): k for k, name in enumerate(images.classes)}
        found = [(place.get(s.path), classes[cell(s.predicted)]) for s in find_suspects(folder).suspects]
        return [(i, k) for i, k in found if i is not None], "out_of_fold"
    if evaluation.split == "train" and not evaluation.other:
        return [], "train"
    return confident_disagreements(p, images.labels), "split"


def _reliability(confidence: Tensor, correct: Tensor) -> list[list[Any]]:
    """Return (number of images, mean probability, accuracy) of each bin, see `confidence_bins`."""
    p = confidence.double()
    place = confidence_bins(p)
    count = torch.bincount(place, minlength=BINS)
    sums = [torch.bincount(place, weights=w, minlength=BINS) for w in (p, correct.double())]
    means = [(s / count.clamp(min=1)).tolist() for s in sums]
    return [[n, a if n else None, b if n else None] for n, a, b in zip(count.tolist(), *means, strict=True)]


def _speed(summary: dict[str, Any] | None, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if not rows:
        return {}
    seen = sum(row["images"] for row in rows)
    return {
        "images_per_second": seen / sum(row["train_seconds"] for row in rows),
        "examples_per_second": seen / sum(row["compute_seconds"] for row in rows),
        "total_seconds": sum(row["seconds"] for row in rows),
        "skipped_updates": sum(row.get("skipped_updates", 0) for row in rows),
        "device": summary["device"] if summary else None,
    }


def _checks(run: Run, summary: dict[str, Any] | None) -> dict[str, Any]:
    """Return facts about the images: their numbers, what was left out, duplicates, groups, warnings."""
    data = run.info["data"]
    groups = data.get("split") or {}
    return {
        "images": summary["images"] if summary else {k: data[k] for k in ("train", "validation", "test") if k in data},
        "shared": summary["shared"] if summary else {},
        "skipped": len(data["skipped"]),
        "passed_over": data["passed_over"],
        "warnings": data["warnings"],
        "groups": {k: groups[k] for k in ("by", "groups", "held_out") if k in groups},
        "fingerprint": data["fingerprint"],
    }


def _environment(run: Run) -> list[list[str]]:
    """Return versions, hardware and plan of the run's first session, as (name, value)."""
    session = first_session(run)
    flat: list[list[str]] = []
    for name, value in session.items():
        pairs = value.items() if isinstance(value, dict) else [(name, value)]
        flat += [[str(key), str(item)] for key, item in pairs if item is not None]
    return flat


def plain(value: Any) -> Any:
    """Return `value` as plain JSON values. NaN and Inf become None, floats are rounded to eight significant digits."""
    if isinstance(value, float):
        return float(f"{value:.8g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def file_name(name: str) -> str:
    """Return `name` as the stem of a file name: letters and digits of any script, dots, hyphens and underscores."""
    return re.sub(r"[^\w.\-]+", "-", name)[:100].strip(".-") or "report"
