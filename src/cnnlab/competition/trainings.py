"""Train for a competition: with a validation split, then on every labelled image."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cnnlab import inference
from cnnlab.competition.work import Competition, has_started
from cnnlab.defaults import choose_recipe
from cnnlab.device.hardware import check_threads
from cnnlab.inference import RunEvaluation
from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.files import read_json, write_json
from cnnlab.io.schema import COUNT, NUMBER, validation_error
from cnnlab.recipe import Recipe
from cnnlab.training import runs
from cnnlab.training import train as training
from cnnlab.training.display import reporting
from cnnlab.training.evaluate import VIEWS, Evaluation
from cnnlab.training.results import Result, SeedsResult
from cnnlab.training.resume import resume
from cnnlab.training.runs import Run
from cnnlab.training.series import is_series, open_series
from cnnlab.training.train_series import train_seeds


@dataclass(frozen=True)
class Trained:
    """The result of `train`, evaluated on all images.

    validation, train: the evaluation of each seed's run on that split; views: validation accuracy of the ensemble of
    all runs for each kind of test-time augmentation (see `cnnlab.training.evaluate.VIEWS`).
    """

    result: Result | SeedsResult
    validation: list[RunEvaluation]
    train: list[RunEvaluation]
    views: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "recipe": self.validation[0].run.recipe.to_dict(),
            "runs": [
                {"validation": v.to_dict(), "train": t.to_dict()}
                for v, t in zip(self.validation, self.train, strict=True)
            ],
            "validation_accuracy_by_views": self.views,
        }


def train(
    competition: Competition,
    recipe: Recipe | str | None = None,
    *,
    settings: Sequence[str] = (),
    seeds: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    progress: str = "auto",
) -> Trained:
    """Train with a validation split and evaluate on all images of both splits.

    recipe: Default: `cifar/10min`. settings: `key=value` texts that change the recipe. seeds: number of networks.
    Default: 1. A finished training is not repeated; an interrupted one continues. Raise CnnlabError, also if a
    training with another recipe was started before.
    """
    check_threads(threads)
    competition.open_store()
    chosen = None
    if recipe is not None or settings or not has_started(competition.path / "train"):
        source = f"store:{competition.store}"
        if isinstance(recipe, Recipe):
            chosen = replace(recipe, data=source).with_settings(settings)
        else:
            chosen = choose_recipe(data=source, recipe=recipe, settings=settings)
        if chosen.eval_split != "validation":
            raise CnnlabError(f"eval_split={chosen.eval_split}: this step trains with eval_split=validation")
        if chosen.data != source:
            raise CnnlabError(f"data={chosen.data}: this step trains on {source}; leave data out")
    result = _train_or_resume(competition.path / "train", chosen, seeds, device, threads, progress)
    models = [r.run for r in (result.results if isinstance(result, SeedsResult) else [result])]
    trained = _read_report(competition, result, models)
    if trained is None:
        on: dict[str, Any] = {"device": device, "threads": threads}
        measured = {
            split: [inference.evaluate_run(run.path, split=split, **on) for run in models]
            for split in ("validation", "train")
        }
        views = _by_views(models, device, threads, progress)
        trained = Trained(result, measured["validation"], measured["train"], views)
        content = {"weights": [weights_hash(run) for run in models], **trained.to_dict()}
        write_json(competition.path / "report.json", content)
    return trained


def retrain(
    competition: Competition,
    *,
    seeds: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    progress: str = "auto",
) -> Result | SeedsResult:
    """Train on all labelled images with the settings of `train`, which must have finished.

    seeds: number of networks in the ensemble. Default: 1. A `limit` in the settings applies here too. Raise
    CnnlabError.
    """
    check_threads(threads)
    competition.open_store()
    path = competition.path / "train"
    if not has_started(path):
        raise CnnlabError(
            f"{path} does not exist, and retraining uses its settings; first: cnnlab kaggle train --name "
            f"{competition.path.name}"
        )
    if not (path / "summary.json").exists():
        raise CnnlabError(
            f"{path} is not finished, and retraining uses its settings; continue it first: cnnlab kaggle train "
            f"--name {competition.path.name}"
        )
    recipe = open_series(path).recipe if is_series(path) else runs.open_run(path).recipe
    everything = recipe.changed(eval_split="train", val_fraction=0.0, folds=0, fold=0, select="accuracy", patience=0)
    return _train_or_resume(competition.path / "retrain", everything, seeds, device, threads, progress)


def _train_or_resume(
    path: Path, recipe: Recipe | None, seeds: int | None, device: str, threads: int | None, progress: str
) -> Result | SeedsResult:
    """Train into the folder `path`, or resume the training in it if it has the same recipe and number of seeds."""
    if seeds is not None and seeds < 1:
        raise CnnlabError(f"seeds={seeds}: must be at least 1")
    common: dict[str, Any] = {"device": device, "threads": threads, "progress": progress}
    if has_started(path):
        several = is_series(path)
        there = open_series(path).recipe if several else runs.open_run(path).recipe
        numbers = open_series(path).numbers if several else [0]
        if recipe is not None and there != recipe:
            raise CnnlabError(f"{path} holds a training of another recipe, {there.name}; choose another --name")
        if seeds is not None and len(numbers) != seeds:
            raise CnnlabError(
                f"{path} was started with {len(numbers)} seed{'s' * (len(numbers) > 1)}, not {seeds}; leave "
                "--seeds out to continue it, or choose another --name"
            )
        summary = None if several else runs.open_run(path).summary()
        if summary is not None:
            return Result(runs.open_run(path), summary)
        return resume(path, **common)
    assert recipe is not None
    with contextlib.suppress(OSError):
        path.rmdir()  # an empty folder of a process that was killed
    if seeds is None or seeds == 1:
        return training.train(recipe, runs_dir=path.parent, name=path.name, **common)
    return train_seeds(recipe, seeds, runs_dir=path.parent, name=path.name, **common)


def weights_hash(run: Run) -> str:
    """Return a hash of the weights that a run predicts with."""
    try:
        return hashlib.blake2b(run.weights().read_bytes(), digest_size=16).hexdigest()
    except OSError as error:
        raise CnnlabError(f"cannot read {run.weights()}: {reason(error)}; train again") from error


def _read_report(competition: Competition, result: Result | SeedsResult, models: list[Run]) -> Trained | None:
    """Return the evaluations in report.json; None if it is missing, damaged, or about other weights."""
    try:
        report = read_json(competition.path / "report.json")
        if report["weights"] != [weights_hash(run) for run in models]:
            return None
        parts: dict[str, list[RunEvaluation]] = {"validation": [], "train": []}
        for run, figures in zip(models, report["runs"], strict=True):
            for split, found in parts.items():
                k = len(run.classes)
                if validation_error(figures[split], {"loss": NUMBER, "confusion": [[COUNT]]}):
                    return None
                confusion = torch.tensor(figures[split]["confusion"], dtype=torch.int64)
                if confusion.shape != (k, k) or not 0 < int(confusion.sum()) < 2**40:
                    return None
                measured = Evaluation(figures[split]["loss"], confusion)
                found.append(RunEvaluation(run, split, run.weights(), measured, recorded=True))
        views = {name: float(report["validation_accuracy_by_views"][name]) for name in VIEWS}
    except (CnnlabError, KeyError, TypeError, ValueError, RuntimeError):
        return None
    return Trained(result, parts["validation"], parts["train"], views)


def _by_views(models: list[Run], device: str, threads: int | None, progress: str) -> dict[str, float]:
    """Return the validation accuracy of the averaged probabilities for each kind of test-time augmentation."""
    images = inference.validation_images(models[0])
    found = {}
    with reporting(progress) as report:
        for views in VIEWS:
            p = inference.probabilities(
                models, images.images, views=views, device=device, threads=threads, report=report
            )
            found[views] = float((p.argmax(1) == images.labels).double().mean())
    return found
