"""The filters of a network's first convolution as a picture: the manual's figure 1.1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.inference import load_network
from cnnlab.inspect.layers import first_convolution
from cnnlab.io.errors import CnnlabError
from cnnlab.models.airbench import Whitening
from cnnlab.models.own import Network
from cnnlab.training.progress import ranking
from cnnlab.training.runs import Run


def filters(run: Run, weights: str | None = None, model: Network | None = None) -> Any:
    """Draw the filters of the first convolution of a trained run, row by row, as a matplotlib figure.

    weights: "best" or "last". Default: as for `cnnlab predict`. Each filter is scaled separately, see `filter_pixels`;
    unless there are one or three channels, their mean is drawn. The caption says so if the filters are not learned but
    whiten the images. Raise CnnlabError if the network has no convolution.
    """
    file = run.weights(weights)
    return draw_filters(run, file, load_network(run, file, model))


def draw_filters(run: Run, file: Path, network: nn.Module) -> Any:
    """Draw the filters of the run's `network`, which has the weights from `file`; see `filters`."""
    from matplotlib.figure import Figure as Picture

    from cnnlab.io import figures as plots
    from cnnlab.io.fonts import drawable, wrap

    name = run.info["model"]["name"]
    found = first_convolution(network)
    if found is None:
        raise CnnlabError(f"{run.path}: {name} has no convolution, so no filters to draw")
    layer, first = found
    pixels = list(filter_pixels(first.weight.detach()).numpy())
    height, width, _ = pixels[0].shape
    columns = filter_columns(len(pixels))
    channels = {1: "", 3: ", in colour"}.get(first.in_channels, f", mean over {first.in_channels} channels")
    caption = [
        f"{len(pixels)} filters {height}×{width}{channels}: {drawable(name)}, layer {layer}",
        f"{drawable(run.path.name)}, {_epoch(run, file)}",
        "each scaled on its own: black −a, grey 0, white a, where a is its largest absolute weight",
    ]
    if isinstance(first, Whitening):
        caption.insert(1, "whitening: computed from the training images before the first epoch, not learned")
    grid = plots.mosaic([pixels[i : i + columns] for i in range(0, len(pixels), columns)], white=1)
    page = max(columns * (0.42 if columns > 8 else 0.7), 4.6)  # inches
    lines = "\n".join(wrap(line, page - 0.1, 8) for line in caption).split("\n")
    head, tall = 0.15 * len(lines) + 0.12, page * grid.shape[0] / grid.shape[1]
    picture = Picture(figsize=(page, head + tall + 0.05))
    total = picture.get_figheight()
    axes = picture.add_axes((0.01, 0.04 / total, 0.98, tall / total))
    axes.imshow(grid, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    picture.text(0.5, 1 - 0.06 / total, "\n".join(lines), ha="center", va="top", fontsize=8, linespacing=1.25)
    return picture


def filter_pixels(weight: Tensor) -> Tensor:
    """Return weights (N, C, H, W) as pixels in 0..1: (N, H, W, 3) for three channels, else their mean (N, H, W, 1).

    In each filter, 0 becomes 0.5 and the largest absolute weight 0 or 1. A filter of zeros becomes grey.
    """
    if weight.shape[1] != 3:
        weight = weight.mean(1, keepdim=True)
    largest = weight.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    return (weight / largest / 2 + 0.5).permute(0, 2, 3, 1)


def filter_columns(count: int) -> int:
    """Return the number of columns of a grid of `count` filters, with full rows if possible: 16 for 96, 6 for 6."""
    return next((n for n in range(16, 5, -1) if count % n == 0), min(count, 16))


def _epoch(run: Run, file: Path) -> str:
    rows, summary = run.metrics(), run.summary()
    if not rows:
        return file.name
    if file.stem != "best":
        epoch = rows[-1]["epoch"]
    elif summary is not None:
        epoch = summary["best_epoch"]
    else:  # an unfinished run
        epoch = max(rows, key=lambda row: ranking(row, run.recipe))["epoch"]
    return f"{file.name} (epoch {epoch})"
