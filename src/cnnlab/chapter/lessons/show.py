"""Tables and pictures for the lessons, which a notebook displays. Needs IPython, which every notebook has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from IPython.display import Image, Markdown
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from cnnlab.chapter.experiments import heading, markdown, printed_figures
from cnnlab.chapter.lessons import committed
from cnnlab.chapter.lessons.committed import all_results, seeds_table
from cnnlab.data.loader import Preprocessing
from cnnlab.inference import load_network, probabilities, validation_images
from cnnlab.inspect.filters import filters as first_filters
from cnnlab.inspect.summary import summarize, summary_format
from cnnlab.io import figures as plots
from cnnlab.io.errors import CnnlabError
from cnnlab.io.fonts import drawable, shorten
from cnnlab.training.curves import comparison
from cnnlab.training.results import Result


def shapes(model: str | nn.Module, *, image_size: int | None = None, in_channels: int = 1, depth: int = 1) -> str:
    """Return the table of `cnnlab show`: output shape, parameters, multiply-adds and receptive field of each layer.

    model: a name in MODELS, or a module. image_size: Default: the manual's.
    """
    return summary_format("table")(summarize(model, image_size=image_size, in_channels=in_channels, depth=depth))


def compare(trained: Mapping[str, Result]) -> Image:
    """Draw the accuracy on the evaluation split over the epochs, one line per named training."""
    lines = [(name, result.run.recipe.eval_split, result.run.metrics()) for name, result in trained.items()]
    return _picture(comparison(lines), f"Accuracy over the epochs: {', '.join(trained)}")


def plot(x: Sequence[float], curves: Mapping[str, Sequence[float]], xlabel: str, ylabel: str) -> Image:
    """Draw a line over `x` for each of the named `curves`."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    plots.lines(axes, [(drawable(name), x, y) for name, y in curves.items()])
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=all(float(value).is_integer() for value in x)))
    axes.margins(y=0.08)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    plots.add_legend(figure)
    return _picture(figure, f"{ylabel} over {xlabel}: {', '.join(curves)}")


def grid(
    images: Tensor | Sequence[Tensor],
    titles: Sequence[str] = (),
    *,
    together: bool = False,
    columns: int = 8,
    alt: str = "",
) -> Image:
    """Draw small images in rows: (H, W), or (C, H, W) of one or three channels, with values of any range.

    Each image is scaled to its own range; together: scale all to their common range, so that they can be compared. alt:
    what they show, for readers who do not see them. Default: their number and titles.
    """
    tiles = [image.detach().float().cpu() for image in images]
    if not tiles:
        raise CnnlabError("images is empty; pass at least one")
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
    for place, text in zip(places, titles, strict=False):
        place.set_title(shorten(drawable(text), 0.88, 7), fontsize=7)
    return _picture(figure, alt or f"{len(tiles)} images: {', '.join(filter(None, titles)) or 'without titles'}")


def filters(result: Result) -> Image:
    """Draw the filters of the first convolution, as in the manual's figure 1.1."""
    return _picture(first_filters(result.run), f"Filters of the first convolution of {result.run.recipe.model}")


def held_out(result: Result, count: int) -> tuple[Tensor, Tensor]:
    """Return the first `count` validation images, preprocessed, (count, C, S, S) float, and their labels."""
    images = validation_images(result.run)
    return Preprocessing.from_dict(result.run.info["preprocessing"])(images.images[:count]), images.labels[:count]


def maps(result: Result, *layers: str, image: int = 0, count: int = 15) -> Image:
    """Draw a validation image and the first `count` feature maps of each layer. A count of 7 or 15 fills the rows.

    layers: paths, as in the table of `shapes`. image: index of the validation image. Raise CnnlabError if there is no
    such layer, or its output has no maps.
    """
    run = result.run
    model = load_network(run)
    pixels = validation_images(run).images[image : image + 1]
    x = Preprocessing.from_dict(run.info["preprocessing"])(pixels)
    tiles: list[Tensor] = []
    titles: list[str] = []
    for layer in layers:
        outputs: list[Tensor] = []
        try:
            part = model.get_submodule(layer)
        except AttributeError as error:
            names = ", ".join(name for name, _ in model.named_children())
            raise CnnlabError(f"{run.recipe.model} has no layer {layer!r}; its layers are {names}") from error
        with part.register_forward_hook(lambda _m, _i, output, to=outputs: to.append(output)), torch.inference_mode():
            model(x)
        if not outputs or outputs[0].ndim != 4:
            raise CnnlabError(f"layer {layer!r} of {run.recipe.model} has no feature maps; choose an earlier one")
        features = outputs[0][0, :count]
        tiles += [pixels[0], *features]
        titles += [f"layer {layer}", *map(str, range(len(features)))]
    return grid(tiles, titles, alt=f"An input image and its feature maps, layer {', '.join(layers)}")


def hardest(result: Result, count: int = 16) -> Image:
    """Draw the validation images whose true class has the lowest probability, mistakes first.

    Titles: `true → predicted` for mistakes, else the class and its probability.
    """
    run = result.run
    images = validation_images(run)
    p = probabilities([run], images.images)  # (N, K)
    true_probability = p.gather(1, images.labels[:, None])[:, 0]
    predicted = p.argmax(1)
    # The added 1 puts every mistake before every correct prediction.
    order = (true_probability + (predicted == images.labels)).argsort()[:count]
    titles = []
    for i in order.tolist():
        true, guess = run.classes[int(images.labels[i])], run.classes[int(predicted[i])]
        titles.append(f"{true} ({true_probability[i]:.2f})" if true == guess else f"{true} → {guess}")
    return grid(images.images[order], titles)


def results(*names: str) -> Markdown:
    """Return a table of experiments: the committed results, the printed figures, and `fast/NAME` if measured.

    names: keys of EXPERIMENTS or CLASSICAL.
    """
    rows, measured = _reproduced(), all_results("fashion-speed*")
    table = markdown([])  # the header
    for name in names:
        section, title = heading(name)
        missing = {"name": name, "section": section, "title": title, "printed": printed_figures(name)}
        table += "".join(markdown([rows.get(name, missing)]).splitlines(keepends=True)[2:])
        fast = next((result for result in measured if f"fast/{name}" in result["recipes"]), None)
        if fast:
            small = fast["recipes"][f"fast/{name}"]
            accuracy, epochs = small["final_acc"], small["recipe"]["epochs"]
            run = f"`fast/{name}`, {epochs} epoch{'s' * (epochs != 1)}, {fast['n']} seeds"
            table += f"| | | {run} | | | {accuracy['mean']:.3f} ± {accuracy['std']:.3f} | | |\n"
    return Markdown(table)


def seeds(lesson: str, figure: str = "val_acc", *, epoch: int = 0) -> Markdown:
    """Return the `seeds_table` of a lesson."""
    return Markdown(seeds_table(lesson, figure, epoch=epoch))


def competition() -> Markdown:
    """Return the committed results of `cnnlab kaggle all` on CIFAR-10."""
    lines = ["| command | minutes | val acc, 1 view | 6 views |", "|---|---|---|---|"]
    for label in ("10min", "1h"):
        for result in all_results(f"competition-{label}")[:1]:
            views = result["validation_accuracy_by_views"]
            command, minutes = result["shown_command"], result["seconds"] / 60
            lines.append(f"| `{command}` | {minutes:.1f} | {views['none']:.4f} | {views['shift']:.4f} |")
    return Markdown("\n".join(lines) + "\n")


def _reproduced() -> dict[str, dict[str, Any]]:
    """Return one row per experiment. Full ones take precedence over limited ones, then later labels over earlier."""
    labels = sorted({path.name.partition("_")[0] for path in committed.results_folder().glob("reproduce-*.json")})
    rows: dict[str, dict[str, Any]] = {}
    for label in labels:
        for row in all_results(label)[0]["rows"]:
            if "failed" in row:
                continue
            if row["name"] not in rows or not row["limited"] or rows[row["name"]]["limited"]:
                rows[row["name"]] = row
    return rows


def picture(file: str | Path, alt: str) -> Image:
    """Return an image file for display in a notebook. alt: what it shows, for readers who do not see it."""
    return Image(filename=str(file), alt=alt)


def _picture(figure: Figure, alt: str) -> Image:
    """Return the figure for display in a notebook. alt: what it shows, for readers who do not see it."""
    return Image(plots.png(figure, dpi=110), alt=alt)
