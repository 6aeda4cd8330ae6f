"""What a lesson shows: tables as text, pictures as PNG. Works in a notebook, and says nothing elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from cnnlab.chapter import figures
from cnnlab.chapter.experiments import CLASSICAL, EXPERIMENTS, markdown, printed_cells, printed_figures
from cnnlab.data.loader import Preprocessing
from cnnlab.inference import load_network, probabilities, validation_images
from cnnlab.inspect.summary import summarize, summary_format
from cnnlab.io import figures as plots
from cnnlab.io.errors import CnnlabError, unknown
from cnnlab.training.curves import comparison
from cnnlab.training.results import Result


class Picture:
    """A picture that a notebook shows where it stands at the end of a cell."""

    def __init__(self, png: bytes) -> None:
        self.png = png

    def _repr_png_(self) -> bytes:
        return self.png


class Markdown(str):
    """A text that a notebook shows as a table; elsewhere it shows as it is."""

    def __repr__(self) -> str:
        return str(self)

    def _repr_markdown_(self) -> str:
        return str(self)


def shapes(model: str | nn.Module, *, image_size: int | None = None, in_channels: int = 1, depth: int = 1) -> str:
    """The table that `cnnlab show` prints: output shape, parameters, multiply-adds and receptive field of each layer.

    model: a name in MODELS, or a module; image_size: unsaid, that at which the manual prints the network.
    """
    found = summarize(model, image_size=image_size, in_channels=in_channels, depth=depth)
    return summary_format("table")(found)


def compare(trained: Mapping[str, Result]) -> Picture:
    """Accuracy over the epochs on the images that were watched, a line for each of the named trainings."""
    lines = [(name, result.run.recipe.eval_split, result.run.metrics()) for name, result in trained.items()]
    return _picture(comparison(lines))


def plot(x: Sequence[float], curves: Mapping[str, Sequence[float]], xlabel: str, ylabel: str) -> Picture:
    """A line for each of the named `curves` over `x`."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for name, y in curves.items():
        axes.plot(x, y, marker=".", label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return _picture(figure)


def grid(
    images: Tensor | Sequence[Tensor], titles: Sequence[str] = (), *, together: bool = False, columns: int = 8
) -> Picture:
    """Small pictures in rows: each (H, W), or (C, H, W) of one or three channels, of whatever range.

    Each is scaled from its own darkest to its own brightest value; together: all from the darkest to the brightest of
    all, so that they can be compared.
    """
    tiles = [image.detach().float().cpu() for image in images]
    if not tiles:
        raise CnnlabError("images is empty: there is nothing to show")
    ends = [(float(tile.min()), float(tile.max())) for tile in tiles]
    if together:
        ends = [(min(low for low, _ in ends), max(high for _, high in ends))] * len(tiles)
    across = min(columns, len(tiles))
    down = math.ceil(len(tiles) / across)
    tall = max(tile.shape[-2] / tile.shape[-1] for tile in tiles)
    figure = Figure(figsize=(1.05 * across, (1.05 * tall + 0.25 * bool(titles)) * down), layout="constrained")
    places = list(figure.subplots(down, across, squeeze=False).flat)
    for place in places:
        place.set_axis_off()
    for place, tile, (low, high) in zip(places, tiles, ends, strict=False):
        pixels = tile if tile.ndim == 2 else tile.permute(1, 2, 0)
        place.imshow((pixels - low).numpy() / ((high - low) or 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    size = min(8.0, 150 / max([1, *map(len, titles)]))  # or long ones would run into each other
    for place, text in zip(places, titles, strict=False):
        place.set_title(text.replace("$", r"\$"), fontsize=size)
    return _picture(figure)


def filters(result: Result) -> Picture:
    """The filters of a training's first convolution: the manual's figure 1.1 for this network."""
    return _picture(figures.filters(result.run))


def held_out(result: Result, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` validation images as the network gets them, (count, C, S, S) float, and their labels."""
    images = validation_images(result.run)
    return Preprocessing.from_dict(result.run.info["preprocessing"])(images.images[:count]), images.labels[:count]


def maps(result: Result, layer: str, *, image: int = 0, count: int = 15) -> Picture:
    """A validation image, and the first `count` of the maps that the network's layer `layer` makes of it.

    layer: its path, as in the table of `shapes`; image: which of the validation images. Raises: CnnlabError where
    there is no such layer, or it does not give maps.
    """
    run = result.run
    model = load_network(run)
    pixels = validation_images(run).images[image : image + 1]
    found: list[Tensor] = []
    try:
        part = model.get_submodule(layer)
    except AttributeError as error:
        names = ", ".join(name for name, _ in model.named_children())
        raise CnnlabError(f"{run.recipe.model} has no layer {layer!r}; its rows are {names}") from error
    with part.register_forward_hook(lambda _module, _input, output: found.append(output)), torch.inference_mode():
        model(Preprocessing.from_dict(run.info["preprocessing"])(pixels))
    if not found or found[0].ndim != 4:
        raise CnnlabError(f"layer {layer!r} of {run.recipe.model} gives no maps; choose an earlier one")
    made = found[0][0, :count]
    return grid([pixels[0], *made], ["image", *(str(i) for i in range(len(made)))])


def hardest(result: Result, count: int = 16) -> Picture:
    """The validation images whose true class the network finds least probable, mistakes first.

    Above each, `true → predicted` for a mistake, else the class with the probability that it was given.
    """
    run = result.run
    images = validation_images(run)
    p = probabilities([run], images.images)  # (N, K)
    right = p.gather(1, images.labels[:, None])[:, 0]
    said = p.argmax(1)
    # Mistakes before all that is right, however unsure.
    order = (right + (said == images.labels)).argsort()[:count]
    titles = []
    for i in order.tolist():
        true, guess = run.classes[int(images.labels[i])], run.classes[int(said[i])]
        titles.append(f"{true} ({right[i]:.2f})" if true == guess else f"{true} → {guess}")
    return grid(images.images[order], titles)


def results(*names: str) -> Markdown:
    """What was measured in full for the experiments `names`, beside what the manual prints: from committed results.

    names: keys of EXPERIMENTS, and the classical methods. Also the network at the images' own size (`fast/NAME`),
    where that was measured.
    """
    rows, measured = _reproduced(), _every("fashion-speed*")
    lines = markdown([]).splitlines()[:2]  # the head
    for name in names:
        if name in rows:
            lines += markdown([rows[name]]).splitlines()[2:]
        else:
            section, what = _heading(name)
            lines.append(f"| {section} | {what} | not run in full here | | | | | |")
            printed = printed_cells({"printed": printed_figures(name)})
            if any(printed):
                lines.append(f"| | | printed | {' | '.join(printed)} | |")
        fast = next((found for found in measured if f"fast/{name}" in found["recipes"]), None)
        if fast:
            small = fast["recipes"][f"fast/{name}"]
            accuracy = small["final_acc"]
            epochs = small["recipe"]["epochs"]
            how = f"`fast/{name}`, {epochs} epoch{'s' * (epochs != 1)}, {fast['n']} seeds"
            lines.append(f"| | | {how} | | | {accuracy['mean']:.3f} ± {accuracy['std']:.3f} | | |")
    return Markdown("\n".join(lines) + "\n")


def competition() -> Markdown:
    """What `cnnlab kaggle all` reached on CIFAR-10: from committed results."""
    lines = ["| command | minutes | val acc, 1 look | 6 looks |", "|---|---|---|---|"]
    for label in ("10min", "1h"):
        found = _newest(f"competition-{label}")
        if found:
            looks = found["validation_accuracy_by_views"]
            lines.append(
                f"| `{found['shown_command']}` | {found['seconds'] / 60:.1f} | {looks['none']:.4f} | "
                f"{looks['shift']:.4f} |"
            )
    return Markdown("\n".join(lines) + "\n")


def results_folder() -> Path:
    """Where the committed results lie: in a package that was built, beside this file; else in the checkout."""
    inside = Path(__file__).parent / "results"
    return inside if inside.is_dir() else Path(__file__).parents[4] / "benchmarks" / "results"


def _reproduced() -> dict[str, dict[str, Any]]:
    """The row of each experiment that was run: one in full before a limited one, then the later label's."""
    labels = sorted({path.name.partition("_")[0] for path in results_folder().glob("reproduce-*.json")})
    rows: dict[str, dict[str, Any]] = {}
    for label in labels:
        for row in (_newest(label) or {})["rows"]:
            if "failed" in row:
                continue
            if row["name"] not in rows or not row["limited"] or rows[row["name"]]["limited"]:
                rows[row["name"]] = row
    return rows


def _heading(name: str) -> tuple[str, str]:
    """Section and title of an experiment or a classical method."""
    if name in CLASSICAL:
        return "start", CLASSICAL[name]
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, [*EXPERIMENTS, *CLASSICAL])
    return EXPERIMENTS[name].section, EXPERIMENTS[name].title


def _newest(label: str) -> dict[str, Any] | None:
    """The newest result with that label."""
    return next(iter(_every(label)), None)


def _every(label: str) -> list[dict[str, Any]]:
    """All results with that label, the newest first."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in results_folder().glob(f"{label}_*.json")]
    return sorted(found, key=lambda result: str(result["environment"]["date"]), reverse=True)


def _picture(figure: Figure) -> Picture:
    return Picture(plots.png(figure, dpi=110))
