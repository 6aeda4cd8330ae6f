"""The pictures of a report as files, drawn by matplotlib, for papers and slides."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from cnnlab.inspect.report.payload import file_name
from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.figures import EVAL_COLOR, TRAIN_COLOR, add_legend, add_title, png, svg
from cnnlab.io.files import write_atomic
from cnnlab.io.fonts import drawable, shorten, width
from cnnlab.training.confusion import confusion_figure
from cnnlab.training.curves import comparison, curves
from cnnlab.training.runs import Run

_MISTAKES = 24
_CLASSES = 40  # in the picture of F1
_DRAWN = 400  # classes of a confusion matrix


def figures(runs: list[Run], payload: dict[str, Any]) -> dict[str, Figure]:
    """Return the pictures by name. With several runs, each name begins with the name of its run."""
    found: dict[str, Figure] = {}
    names = [file_name(part["name"]) for part in payload["runs"]]
    if len(set(names)) < len(names):  # such as for "a b" and "a-b"
        names = [f"{i}-{name}" for i, name in enumerate(names, 1)]
    for run, part, name in zip(runs, payload["runs"], names, strict=True):
        prefix = f"{name}-" if len(runs) > 1 else ""
        found |= {f"{prefix}{picture}": figure for picture, figure in _of_run(run, part, payload["pictures"]).items()}
    drawn = [
        (part["name"], run.recipe.eval_split, run.metrics()) for run, part in zip(runs, payload["runs"], strict=True)
    ]
    drawn = [d for d in drawn if d[2]]
    if len(drawn) > 1:
        found["comparison"] = comparison(drawn)
    return found


def save(found: dict[str, Figure], folder: Path, force: bool) -> list[Path]:
    """Write each picture as PNG and SVG into the folder. Raise CnnlabError if a file exists or cannot be written."""
    check(found, folder, force)
    files = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in found.items():
            for ending, content in ((".png", png(figure)), (".svg", svg(figure))):
                write_atomic(folder / f"{name}{ending}", content)
                files.append(folder / f"{name}{ending}")
    except OSError as error:
        raise CnnlabError(f"cannot write into {folder}: {reason(error)}; name another folder") from error
    return files


def check(names: Any, folder: Path, force: bool) -> None:
    """Raise CnnlabError if the folder is a file, or if it holds one of the pictures already, unless `force` is set."""
    if folder.exists() and not folder.is_dir():
        raise CnnlabError(f"{folder} is a file; name a folder")
    for file in () if force else (folder / f"{name}{ending}" for name in names for ending in (".png", ".svg")):
        if file.exists():
            raise CnnlabError(f"{file} exists; name another folder, or replace it with --force")


def _of_run(run: Run, part: dict[str, Any], pictures: list[str]) -> dict[str, Figure]:
    found = {}
    rows = run.metrics()
    if rows:
        found["curves"] = curves(rows, run.recipe, f"{part['name']}, seed {part['seed']}")
    e = part["evaluation"]
    if e is None:
        return found
    on = f"{part['name']}: {e['images']:,} {e['split']} images, {e['weights']} weights, seed {part['seed']}"
    k = len(part["classes"])
    if k <= _DRAWN:
        matrix = np.zeros((k, k), np.int64)
        for i, j, n in e["confusion"]:
            matrix[i, j] = n
        found["confusion"] = confusion_figure(matrix, part["classes"], f"{on}, accuracy {e['accuracy']:.4f}")
    found["classes"] = _classes(e, on)
    found["calibration"] = _reliability(e, on)
    if e["mistakes"]:
        found["mistakes"] = _mistakes(part, pictures, on)
    return found


def _classes(e: dict[str, Any], on: str) -> Figure:
    """Draw the F1 of each class with its interval; with many classes, only the lowest."""
    rows = sorted((row for row in e["classes"] if row["f1"] is not None), key=lambda row: row["f1"])
    shown = rows[:_CLASSES] if len(rows) > _CLASSES else [row for row in e["classes"] if row["f1"] is not None]
    names = [shorten(drawable(row["class"]), 2.2, 8) for row in shown]
    figure = Figure(
        figsize=(5 + max((width(name, 8) for name in names), default=0), 1.1 + 0.24 * len(shown)), layout="constrained"
    )
    axes = figure.subplots()
    for place, row in enumerate(shown):
        axes.plot(row["f1_interval"], (place, place), color=TRAIN_COLOR, lw=4, alpha=0.35, solid_capstyle="round")
        axes.plot(row["f1"], place, "o", color=TRAIN_COLOR, markersize=5)
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(
        "F1 with its 95% interval" + (f"; the lowest {len(shown)} of {len(rows)}" if len(shown) < len(rows) else "")
    )
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    add_title(figure, on)
    return figure


def _reliability(e: dict[str, Any], on: str) -> Figure:
    """Draw the reliability diagram, before and after calibration."""
    figure = Figure(figsize=(4.6, 4.9), layout="constrained")
    axes = figure.subplots()
    c = e["calibration"]
    axes.plot((0, 1), (0, 1), color="0.5", ls="--", lw=1, label="ideal")
    series = [("after", TRAIN_COLOR, "calibrated" if e["temperature"] != 1 else "measured", c["ece"])]
    if e["temperature"] != 1:
        series.insert(0, ("before", EVAL_COLOR, "before", c["ece_before"]))
    for key, color, name, error in series:
        bins = [row for row in c[key] if row[0]]
        n = np.array([row[0] for row in bins])
        fill = "none" if key == "before" else color
        axes.scatter([row[1] for row in bins], [row[2] for row in bins], 12 + 240 * n / n.sum(), edgecolors=color,
                     facecolors=fill, alpha=0.85, label=f"{name}, error {error:.3f}")  # fmt: skip
    axes.set(xlim=(-0.02, 1.04), ylim=(-0.02, 1.04), aspect="equal")
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    add_legend(figure)
    add_title(figure, on)
    return figure


def _mistakes(part: dict[str, Any], pictures: list[str], on: str) -> Figure:
    """Draw the most confident mistakes with their true and predicted class."""
    rows, names = part["evaluation"]["rows"], part["classes"]
    chosen = [row for row in part["evaluation"]["mistakes"] if rows["picture"][row] >= 0][:_MISTAKES]
    columns = min(6, max(1, len(chosen)))
    lines = -(-len(chosen) // columns)
    figure = Figure(figsize=(max(1.35 * columns, 3.2), 1.75 * lines + 0.5), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in grid:
        axes.set_axis_off()
    for axes, row in zip(grid, chosen, strict=False):
        file = base64.b64decode(pictures[rows["picture"][row]].partition(",")[2])
        axes.imshow(np.asarray(Image.open(io.BytesIO(file))), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        true, guess = (shorten(drawable(names[k]), 1.2, 7) for k in (rows["label"][row], rows["top"][row][0]))
        axes.set_title(f"{true}\n{guess} {rows['p'][row][0]:.0%}", fontsize=7, pad=2)
    add_title(figure, f"Most confident mistakes (true, predicted); {on}")
    return figure
