"""The chapter's experiments: which recipe each is, what the manual prints for it, and the table of ours beside that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cnnlab.chapter.classical import METHODS
from cnnlab.io.text import markdown as escaped


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


# The best published figure of the kind, from the data set's own list of benchmarks; nothing is printed in the manual.
PUBLISHED_CLASSICAL = 0.926
CLASSICAL = {name: f"{kind.upper()}, {classifier} SVM" for name, (kind, classifier) in METHODS.items()}


def printed_figures(name: str) -> dict[str, float | None]:
    """What is printed for an experiment: loss, train_acc, test_acc, examples_per_second; None where nothing is."""
    if name in EXPERIMENTS:
        e = EXPERIMENTS[name]
        figures: tuple[float | None, ...] = (e.loss, e.train_acc, e.test_acc, e.examples_per_second)
    else:
        figures = (None, None, PUBLISHED_CLASSICAL if name == "hog-kernel" else None, None)
    return dict(zip(("loss", "train_acc", "test_acc", "examples_per_second"), figures, strict=True))


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table for a page: ours beside the manual's."""
    head = (
        "| section | network | run | loss | train acc | test acc | examples/s, compute only | "
        "images/s, wall-clock with data |\n|---|---|---|---|---|---|---|---|\n"
    )
    lines = []
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['section']} | {row['title']} | failed: {escaped(row['failed'])} | | | | | |")
        else:
            n = row["test_acc"]["n"]
            how = f"{row['limited'] or 'in full'}, {n} seed{'s' if n > 1 else ''}"
            lines.append(f"| {row['section']} | {row['title']} | {how} | {' | '.join(cells(row))} |")
        printed = printed_cells(row)
        if any(printed):
            source = "published" if row["name"] in CLASSICAL else "printed"
            lines.append(f"| | | {source} | {' | '.join(printed)} | |")
    return head + "\n".join(lines) + "\n"


def cells(row: dict[str, Any]) -> list[str]:
    """Ours, as texts: loss, train acc, test acc, examples/s (compute only), images/s (with data)."""
    figures = [_told(row[k], 3) for k in ("loss", "train_acc", "test_acc")]
    return [*figures, *("" if row[k] is None else f"{row[k]['mean']:,.0f}" for k in _SPEEDS)]


def printed_cells(row: dict[str, Any]) -> list[str]:
    """The manual's, as texts: loss, train acc, test acc, examples/s; empty where it prints none."""
    printed = row["printed"]
    figures = ["" if printed[k] is None else f"{printed[k]:.3f}" for k in ("loss", "train_acc", "test_acc")]
    speed = printed["examples_per_second"]
    return [*figures, "" if speed is None else f"{speed:,.0f}"]


_SPEEDS = ("examples_per_second", "images_per_second")


def _told(value: dict[str, Any] | None, digits: int) -> str:
    """`mean ± std` of a figure of several seeds, or the one value."""
    if value is None:
        return ""
    mean = f"{value['mean']:.{digits}f}"
    return mean if value["std"] is None else f"{mean} ± {value['std']:.{digits}f}"
