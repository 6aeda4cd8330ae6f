"""How far a training has come: finished epochs and the position inside the next one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnnlab.data.loader import Batches
from cnnlab.device.timing import Stopwatch
from cnnlab.io.errors import CnnlabError
from cnnlab.io.schema import COUNT, NUMBER, POSITIVE, Number, check
from cnnlab.io.text import plural
from cnnlab.recipe import Recipe
from cnnlab.training.runs import Run, row_schema

SCHEMA = {
    "best": (None, [NUMBER]),
    "best_epoch": COUNT,
    "stopped": bool,
    "position": (None, {
        "steps": COUNT, "skipped": COUNT, "images": COUNT, "sums": [NUMBER], "train_seconds": Number(0),
        "compute_seconds": Number(0), "batches": {"done": COUNT, "kind": str, "host": str, "here": str},
    }),
    "scaler": (None, {"scale": POSITIVE, "growth_factor": POSITIVE, "backoff_factor": POSITIVE,
                      "growth_interval": COUNT, "_growth_tracker": COUNT}),
}  # fmt: skip


@dataclass(frozen=True)
class Position:
    """A place inside an epoch: `steps` done, `skipped` of them without an update; the others used `images` images.

    sums: summed losses, and number of correct predictions. batches: see `Batches.state`.
    """

    steps: int = 0
    skipped: int = 0
    images: int = 0
    sums: Sequence[float] = (0.0, 0.0)
    train_seconds: float = 0.0
    compute_seconds: float = 0.0
    batches: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """Everything besides tensors that a resumed training needs.

    rows: one per finished epoch. best: the figures of the best epoch, larger is better; None before the first epoch.
    stopped: whether `on_epoch`, `patience` or `overfit` ended the training early. position: inside the epoch
    after the finished ones. scaler: the state of float16's loss scaler.
    """

    rows: Sequence[dict[str, Any]] = ()
    best: list[float] | None = None
    best_epoch: int = 0
    stopped: bool = False
    position: Position | None = None
    scaler: dict[str, Any] | None = None

    def finish(self, row: dict[str, Any], recipe: Recipe) -> Progress:
        """Return the progress after another epoch, whose figures are `row`."""
        figures = ranking(row, recipe)
        after = replace(self, rows=[*self.rows, row], position=None)
        if self.best is None or figures > self.best:
            after = replace(after, best=figures, best_epoch=row["epoch"])
        return after

    def __str__(self) -> str:
        inside = f" and {plural(self.position.steps, 'step')} of the next" if self.position else ""
        verb = "is" if len(self.rows) == 1 and not inside else "are"
        return f"{plural(len(self.rows), 'finished epoch')}{inside} {verb} saved"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any], recipe: Recipe, images: int, path: Path) -> Progress:
        """Return the progress that `to_dict` saved. images: the number of training images. path: named in errors.

        Raise CnnlabError if no training with this recipe can produce these values: the file may come from anyone.
        """
        check(path, values, {**SCHEMA, "rows": [row_schema(recipe)]}, "train again")
        position = values["position"]
        if position is not None:
            position = Position(**{f.name: position[f.name] for f in fields(Position)})
        progress = cls(**{f.name: values[f.name] for f in fields(cls)} | {"position": position})
        if error := progress._error(recipe, images):
            raise CnnlabError(f"{path} is damaged: {error}; train again")
        return progress

    def _error(self, recipe: Recipe, images: int) -> str:
        position, at_end = self.position, self.stopped or len(self.rows) == recipe.epochs
        if [row["epoch"] for row in self.rows] != [*range(1, len(self.rows) + 1)] or len(self.rows) > recipe.epochs:
            return f"its epochs are not 1, 2, ... up to {recipe.epochs}"
        if self.best is not None and len(self.best) != ranking_size(recipe):
            return "its best figures do not fit the recipe"
        if at_end and (not self.rows or self.best is None or position is not None):
            return "it is at the end of the training, but incomplete"
        if position is not None:
            most = recipe.passes * -(-images // recipe.batch_size)
            consistent = position.skipped <= position.steps == position.batches["done"] <= most
            if not consistent or position.images > recipe.passes * images or len(position.sums) != 2:
                return "its position in the epoch is impossible"
        return ""


def ranking(row: dict[str, Any], recipe: Recipe) -> list[float]:
    """Return the figures that decide which epoch is best; larger is better.

    The first is the figure that the recipe selects by. Ties are frequent on small sets, and the lower validation loss
    breaks them. Without validation images the training loss decides: nothing is chosen by the test set.
    """
    figure = -row[recipe.best_by] if recipe.best_by.endswith("loss") else row[recipe.best_by]
    return [figure, -row["val_loss"]] if recipe.eval_split == "validation" else [figure]


def ranking_size(recipe: Recipe) -> int:
    """Return the number of figures that `ranking` returns."""
    return 2 if recipe.eval_split == "validation" else 1


def learned(rows: Sequence[dict[str, Any]], recipe: Recipe) -> bool:
    """Return whether a training with `overfit` can stop early because all its images are predicted correctly."""
    return recipe.overfit > 0 and len(rows) < recipe.epochs and rows[-1][f"{recipe.key}_acc"] == 1


def out_of_patience(rows: Sequence[dict[str, Any]], run: Run) -> bool:
    """Return whether the figure that chooses the best epoch has not improved for the recipe's `patience`.

    rows: one per finished epoch. Patience begins after the epochs of a run that this one continues, and after the
    `freeze_epochs`, since most of the learning follows them.
    """
    frozen = run.recipe.freeze_epochs if run.recipe.freeze_epochs < run.recipe.epochs else 0
    figures = [ranking(row, run.recipe)[0] for row in rows]
    best = max(figures.index(max(figures)) + 1, run.info.get("from", {}).get("epochs", 0), frozen)
    return 0 < run.recipe.patience <= len(rows) - best and len(rows) < run.recipe.epochs


class Meter:
    """The sums of one epoch: loss and correct predictions on the device; steps, images and seconds on the host."""

    def __init__(self, device: torch.device, position: Position | None = None) -> None:
        start = position or Position()
        self.sums = torch.tensor(start.sums, dtype=torch.float32, device=device)
        self._loss, self._correct = self.sums.unbind()  # views
        self.steps, self.skipped, self.images = start.steps, start.skipped, start.images
        self.compute = Stopwatch(device, start.compute_seconds)
        self.started = time.perf_counter() - start.train_seconds
        self.train_seconds = 0.0

    def add(self, loss: Tensor, correct: Tensor, images: int) -> None:
        """Count an update on `images` images."""
        self._loss.add_(loss, alpha=images)
        self._correct.add_(correct)
        self.images += images
        self.steps += 1

    def skip(self) -> None:
        """Count a step without an update."""
        self.skipped += 1
        self.steps += 1

    def stop(self) -> None:
        """Stop the clock: training has ended, evaluation follows. Call it after waiting for the device."""
        self.train_seconds = time.perf_counter() - self.started

    def position(self, batches: Batches) -> Position:
        """Return where the epoch stands. Wait for the device."""
        seconds = self.train_seconds or time.perf_counter() - self.started
        sums = self.sums.tolist()
        return Position(
            self.steps, self.skipped, self.images, sums, seconds, self.compute.seconds(), batches.state()
        )  # fmt: skip

    def means(self) -> tuple[float, float]:
        """Return mean loss and accuracy over the images of the updates."""
        loss, correct = self.sums.tolist()
        return loss / self.images, correct / self.images
