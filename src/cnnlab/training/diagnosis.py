"""A diagnosis of a finished training from its figures: findings in plain language, each with one remedy.

Only trainings with validation images are diagnosed: nothing should be changed because of the test set. The thresholds
leave room for chance: a healthy training has no finding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.io.text import escape, truncate
from cnnlab.recipe import Recipe
from cnnlab.training.intervals import wilson

Rows = Sequence[dict[str, Any]]
_RARE = 5  # a class is rare if the largest has at least this many times as many images
_GAP = 0.1  # least difference between training and validation accuracy that is called overfitting
_DEAD = 0.3  # least fraction of dead units that is reported
DEAD_REMEDY = "a lower learning_rate, init=he-normal, or a smaller network"
RELU = (nn.ReLU, nn.ReLU6)
_POOR = 0.8  # accuracy below which a training may be underfitting
_TINY = 0.01  # losses below this count as equal; a loss may even be 0
_MIXING = ("mixup", "cutmix")  # with these, training accuracy is measured on mixed images


@dataclass(frozen=True)
class Finding:
    """A problem. figure: the number that shows it; text: the finding with its figures; remedy: what to try.

    name: leak, learning rate, nothing learned, dead units, overfitting, underfitting, still improving or imbalance.
    """

    name: str
    figure: float
    text: str
    remedy: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for summary.json."""
        return asdict(self)


def diagnose(summary: dict[str, Any], rows: Rows, recipe: Recipe, counts: Sequence[int], dead: float) -> list[Finding]:
    """Return the findings on a finished training, the most serious first.

    summary: as in summary.json; rows: of all epochs; counts: training images of each class, (K,); dead: the fraction of
    dead units, see `active_units`.
    """
    rows = rows[recipe.freeze_epochs :] or rows  # fine-tuning starts anew when all layers are trained
    found = [
        _leak(summary),
        _high_rate(summary, rows),
        _nothing_learned(summary, rows, counts),
        _dead(dead),
        _overfitting(summary, rows, recipe),
        _underfitting(rows, recipe),
        _improving(summary, rows, recipe),
        _imbalance(summary, recipe, counts),
    ]
    findings = [f for f in found if f is not None]
    if any(f.name == "nothing learned" for f in findings):  # this explains the others
        findings = [f for f in findings if f.name in ("leak", "learning rate", "nothing learned", "dead units")]
    return findings


def _leak(summary: dict[str, Any]) -> Finding | None:
    copies, images = summary["shared"].get("validation", 0), summary["images"]["validation"]
    if not copies:
        return None
    text = f"{copies:,} of the {images:,} validation images are among the training images, pixel for pixel, which "
    remedy = "group_duplicates=true, or removing the copies if the validation images are a folder or split of their own"
    return Finding("leak", copies / images, f"{text}inflates the accuracy", remedy)


def skipped_text(count: int) -> str:
    """Return the note on the updates that `on_nan=skip` skipped."""
    if count == 1:
        return "1 update was skipped, because its loss or a gradient was NaN or Inf"
    return f"{count:,} updates were skipped, because their loss or a gradient was NaN or Inf"


def _high_rate(summary: dict[str, Any], rows: Rows) -> Finding | None:
    remedy = "a lower learning_rate (cnnlab lr-find suggests one), or clip_norm=1"
    losses = [row["loss"] for row in rows]
    skipped = summary["skipped_updates"]
    if skipped:
        return Finding("learning rate", skipped, skipped_text(skipped), remedy)
    if losses[-1] > max(1.05 * losses[0], _TINY):
        text = f"the training loss ended at {losses[-1]:.3f}, above the {losses[0]:.3f} of epoch {rows[0]['epoch']}"
        return Finding("learning rate", losses[-1] / max(losses[0], _TINY), text, remedy)
    jumps = [(b["loss"] - a["loss"], a["loss"], b["loss"], b["epoch"]) for a, b in pairwise(rows)]
    jumps = [jump for jump in jumps if jump[2] > 1.5 * jump[1] and jump[0] > max(0.25 * losses[0], _TINY)]
    if not jumps:
        return None
    _, before, after, epoch = max(jumps)
    text = f"the training loss jumped from {before:.3f} to {after:.3f} in epoch {epoch}"
    return Finding("learning rate", after / max(before, _TINY), text, remedy)


def _nothing_learned(summary: dict[str, Any], rows: Rows, counts: Sequence[int]) -> Finding | None:
    chance, best = max(counts) / sum(counts), max(row["val_acc"] for row in rows)
    images = summary["images"]["validation"]
    if sum(n > 0 for n in counts) < 2 or best > chance + 0.5 / images or rows[-1]["train_acc"] > chance + 0.05:
        return None
    text = f"val acc {best:.3f} is no better than always predicting the largest class ({chance:.3f})"
    return Finding("nothing learned", best, text, "another learning_rate (cnnlab lr-find suggests one)")


def _dead(dead: float) -> Finding | None:
    if dead < _DEAD:
        return None
    text = f"{dead:.0%} of the units behind a ReLU are 0 for all validation images"
    return Finding("dead units", dead, text, DEAD_REMEDY)


def _overfitting(summary: dict[str, Any], rows: Rows, recipe: Recipe) -> Finding | None:
    last, images = rows[-1], summary["images"]["validation"]
    gap = last["train_acc"] - last["val_acc"]
    highest = wilson(round(last["val_acc"] * images), images)[1]
    if gap < _GAP or highest > last["train_acc"]:
        return None
    text = f"train acc {last['train_acc']:.3f}, but val acc {last['val_acc']:.3f}: overfitting"
    augmented = recipe.shift or recipe.flip or recipe.randaugment or recipe.cutout or recipe.crop_scale < 1
    more = "more images, stronger augmentation" if augmented else "augmentation (shift=2, flip=true where it fits)"
    return Finding("overfitting", gap, text, f"{more} or weight_decay")


def _underfitting(rows: Rows, recipe: Recipe) -> Finding | None:
    last, before = rows[-1], rows[-1 - max(1, len(rows) // 4)] if len(rows) > 2 else None
    if before is None or any(getattr(recipe, name) for name in _MIXING):
        return None
    best = max(last["train_acc"], last["val_acc"])
    if best >= _POOR or last["loss"] < 0.97 * before["loss"] or last["train_acc"] - last["val_acc"] >= _GAP:
        return None
    text = (
        f"train acc {last['train_acc']:.3f}, and the loss no longer falls ({before['loss']:.3f} to {last['loss']:.3f})"
    )
    return Finding("underfitting", last["train_acc"], f"{text}: underfitting", "a larger network or image_size")


def _improving(summary: dict[str, Any], rows: Rows, recipe: Recipe) -> Finding | None:
    late = max(1, len(rows) // 4)
    if summary["stopped"] or len(rows) < 2:
        return None
    earlier, last, images = rows[:-late], rows[-1], summary["images"]["validation"]
    rise = last["val_acc"] - max(row["val_acc"] for row in earlier)
    lower = last["val_loss"] < 0.95 * min(row["val_loss"] for row in earlier)
    if rise < max(0.01, 2 / images) - 1e-9 or not lower:
        return None
    epochs = "epoch" if late == 1 else f"{late} epochs"
    text = f"val acc still rose by {rise:.3f} in the last {epochs}"
    return Finding("still improving", rise, text, f"more epochs: --resume RUN --epochs {2 * recipe.epochs}")


def _imbalance(summary: dict[str, Any], recipe: Recipe, counts: Sequence[int]) -> Finding | None:
    classes = (summary["figures"] or {}).get("classes", [])
    rare = [
        (c["class"], c["support"], round(c["recall"] * c["support"]))
        for c, n in zip(classes, counts, strict=False)
        if n * _RARE <= max(counts) and c["support"]
    ]
    support, correct = sum(n for _, n, _ in rare), sum(right for _, _, right in rare)
    everything = [(c["support"], round(c["recall"] * c["support"])) for c in classes if c["support"]]
    others = sum(n for n, _ in everything) - support
    if not support or not others:
        return None
    accuracy = (sum(right for _, right in everything) - correct) / others
    if wilson(correct, support)[1] > accuracy - 0.05:
        return None
    names = ", ".join(truncate(escape(name), 40) for name, _, _ in rare[:3]) + (", ..." if len(rare) > 3 else "")
    text = (
        f"rare classes ({names}): {correct} of {support} validation images are correct; accuracy on the other classes "
        f"is {accuracy:.3f}"
    )
    remedy = "balance=weights" if recipe.balance == "none" else "more images of them"
    return Finding("imbalance", correct / support, text, remedy)


@contextmanager
def active_units(model: nn.Module) -> Iterator[Callable[[], float]]:
    """Watch the ReLU modules of `model`. Yield a function that returns the fraction of dead units so far.

    It returns 0.0 if there are no such modules. Units: see `watched_units`.
    """
    with watched_units(model) as active:
        yield lambda: 1 - torch.cat([mask.cpu() for mask in active.values()]).double().mean().item() if active else 0.0


@contextmanager
def watched_units(model: nn.Module) -> Iterator[dict[tuple[int, str], Tensor]]:
    """Watch the ReLU modules of `model`. Yield {(call in the forward pass, path): mask of active units, bool}.

    A unit is a channel of (B, C, H, W) or a value of (B, D). It is dead if it was 0 for all images at all positions.
    """
    active: dict[tuple[int, str], Tensor] = {}  # the call is in the key because a module may be used twice
    call = 0

    def start(*_: Any) -> None:
        nonlocal call
        call = 0

    def record(path: str) -> Callable[..., None]:
        def after(_module: nn.Module, _args: Any, output: Tensor) -> None:
            nonlocal call
            call += 1
            if output.ndim in (2, 4):
                seen = output.amax([0, *range(2, output.ndim)]) > 0
                before = active.get((call, path))
                active[call, path] = seen if before is None or before.shape != seen.shape else before | seen

        return after

    hooks = [model.register_forward_pre_hook(start)]
    hooks += [m.register_forward_hook(record(path)) for path, m in model.named_modules() if isinstance(m, RELU)]
    try:
        yield active
    finally:
        for hook in hooks:
            hook.remove()
