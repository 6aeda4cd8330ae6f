"""The chapter's experiments: their recipes, the figures printed in the manual, and a table of ours beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cnnlab.chapter.classical import METHODS
from cnnlab.io.errors import unknown
from cnnlab.io.text import markdown as escaped


@dataclass(frozen=True)
class Experiment:
    """One experiment: its recipe and the printed figures, from the manual or else from the book that it is based on."""

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


# The best published result of this kind, from the data set's own list of benchmarks; the manual prints none.
PUBLISHED_CLASSICAL = 0.926
CLASSICAL = {name: f"{kind.upper()}, {classifier} SVM" for name, (kind, classifier) in METHODS.items()}


def printed_figures(name: str) -> dict[str, float | None]:
    """Return the printed loss, train_acc, test_acc and examples_per_second; None for figures that are not printed."""
    if name in EXPERIMENTS:
        e = EXPERIMENTS[name]
        figures: tuple[float | None, ...] = (e.loss, e.train_acc, e.test_acc, e.examples_per_second)
    else:
        figures = (None, None, PUBLISHED_CLASSICAL if name == "hog-kernel" else None, None)
    return dict(zip(("loss", "train_acc", "test_acc", "examples_per_second"), figures, strict=True))


def heading(name: str) -> tuple[str, str]:
    """Return the section and title of an experiment or classical method. Raise CnnlabError for an unknown name."""
    if name in CLASSICAL:
        return "start", CLASSICAL[name]  # the chapter starts with them
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, [*EXPERIMENTS, *CLASSICAL])
    return EXPERIMENTS[name].section, EXPERIMENTS[name].title


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table of `rows` and the printed figures. Rows without figures failed or were not run."""
    lines = [
        "| section | network | run | loss | train acc | test acc | examples/s, compute only | "
        "images/s, wall-clock with data |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "test_acc" in row:
            n = row["test_acc"]["n"]
            run, figures = f"{how(row)}, {n} seed{'s' if n > 1 else ''}", cells(row)
        else:
            run = f"failed: {escaped(row['failed'])}" if "failed" in row else "not run here"
            figures = [""] * 5
        lines.append(f"| {row['section']} | {row['title']} | {run} | {' | '.join(figures)} |")
        printed = printed_cells(row)
        if any(printed):
            source = "published" if row["name"] in CLASSICAL else "printed"
            lines.append(f"| | | {source} | {' | '.join(printed)} | |")
    return "\n".join(lines) + "\n"


def how(row: dict[str, Any]) -> str:
    """Return a row's limits, else "as printed", or "all images" for a classical method, which is not printed."""
    return str(row["limited"]) or ("all images" if row["name"] in CLASSICAL else "as printed")


def cells(row: dict[str, Any]) -> list[str]:
    """Return our figures as text: loss, train acc, test acc, examples/s (compute only), images/s (including data)."""
    figures = [_mean_and_std(row[k]) for k in ("loss", "train_acc", "test_acc")]
    speeds = (row["examples_per_second"], row["images_per_second"])
    return [*figures, *("" if speed is None else f"{speed['mean']:,.0f}" for speed in speeds)]


def printed_cells(row: dict[str, Any]) -> list[str]:
    """Return the printed figures as text: loss, train acc, test acc, examples/s; "" if not printed."""
    printed = row["printed"]
    figures = ["" if printed[k] is None else f"{printed[k]:.3f}" for k in ("loss", "train_acc", "test_acc")]
    speed = printed["examples_per_second"]
    return [*figures, "" if speed is None else f"{speed:,.0f}"]


def _mean_and_std(value: dict[str, Any] | None) -> str:
    """Return `mean ± std` over the seeds, or the value of a single seed."""
    if value is None:
        return ""
    mean = f"{value['mean']:.3f}"
    return mean if value["std"] is None else f"{mean} ± {value['std']:.3f}"
