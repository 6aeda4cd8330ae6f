"""The chapter's figures: a trained run's filters, and diagrams of the networks and blocks as they really are.

Every diagram is traced from the module that is trained (`cnnlab.chapter.graphs`): no label is written here by hand,
so that a network that changes changes its figure.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.chapter.diagrams import DPI, Panel, drawing, render
from cnnlab.chapter.graphs import Graph, collapsed, merged, shape_text, trace
from cnnlab.data import load_images
from cnnlab.data.imageset import sample_rows
from cnnlab.inference import load_network
from cnnlab.io import figures as plots
from cnnlab.io.errors import CnnlabError, expand, reason, unknown
from cnnlab.io.files import write_atomic
from cnnlab.models import build_model
from cnnlab.models.nin import nin_block
from cnnlab.models.resnet import Residual
from cnnlab.models.vgg import vgg_block
from cnnlab.training.runs import Run, open_run

FORMATS = ("svg", "png")
_REMEDIES = {
    "run": "--run RUN, a trained run; to make one: cnnlab train --data fashion-mnist --recipe manual/alexnet",
    "data": "--data SOURCE, images; those of the competition: cnnlab kaggle show",
}


@dataclass(frozen=True)
class Figure:
    """One figure of the chapter: its title, and how its diagram is drawn; None: from what it needs, a run or images."""

    title: str
    draw: Callable[[], list[Panel]] | None
    needs: str = ""


def figures(
    names: Sequence[str] | None = None,
    *,
    out_dir: str | Path = "figures",
    run: str | Path | None = None,
    data: str | None = None,
    runs_dir: str | Path = "runs",
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Draw the figures called `names`, keys of FIGURES, into `out_dir`: figure-1.2.svg, figure-1.2.png, ...

    Unsaid: all of them, but 1.1 only where a run is given, whose filters it shows, and 1.8 only where a source of
    images is. Files of the same name are replaced. Returns: the files, in the order of the figures. Raises:
    CnnlabError for an unknown name or format, for 1.1 without a run or 1.8 without data, and where graphviz is
    missing or the folder cannot be written to.
    """
    given = {"": True, "run": run is not None, "data": data is not None}
    chosen = list(names) if names else [n for n, f in FIGURES.items() if given[f.needs]]
    for name in chosen:
        if name not in FIGURES:
            raise unknown("figure", name, FIGURES)
    for name in chosen:
        if not given[FIGURES[name].needs]:
            raise CnnlabError(f"figure {name} needs {_REMEDIES[FIGURES[name].needs]}")
    for form in formats:
        if form not in FORMATS:
            raise unknown("format", form, FORMATS)
    folder = expand(out_dir)
    # All are drawn before the first is written: what fails leaves no half set.
    pictures = {n: _contents(n, run, data, runs_dir, formats) for n in FIGURES if n in chosen}
    files: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, contents in pictures.items():
            for form, content in contents:
                files.append(folder / f"figure-{name}.{form}")
                write_atomic(files[-1], content)
    except OSError as error:
        raise CnnlabError(f"cannot write into {folder}: {reason(error)}; name another folder") from error
    return files


def left_out(names: Sequence[str] | None = None, run: str | Path | None = None, data: str | None = None) -> str:
    """One line on what `figures` leaves out when it is called like this, and the remedy; empty where nothing."""
    absent = {"run": run is None, "data": data is None}
    missing = [
        f"{n}, which needs {_REMEDIES[f.needs]}" for n, f in FIGURES.items() if not names and absent.get(f.needs)
    ]
    return f"left out: {'; '.join(missing)}" if missing else ""


def _contents(
    name: str, run: str | Path | None, data: str | None, runs_dir: str | Path, formats: Sequence[str]
) -> list[tuple[str, bytes]]:
    figure = FIGURES[name]
    title = f"Figure {name}: {figure.title}"
    if figure.draw is not None:
        dot = drawing(figure.draw(), title)
        return [(form, render(dot, form)) for form in formats]
    if figure.needs == "data":
        assert data is not None
        images = load_images(data, "train")
        assert images is not None
        picture = plots.samples(sample_rows(images.images, images.labels, len(images.classes)), images.classes)
    else:
        assert run is not None
        picture = filters(open_run(run, runs_dir))
    return [(form, _saved(picture, form, title)) for form in formats]


# 1.1


def filters(run: Run, weights: str | None = None) -> Any:
    """The filters of the first convolution of a trained run, as a matplotlib figure, in their order, row by row.

    Each filter is scaled on its own, or the strongest would leave the others grey: for one channel black to white is
    -a to a with a its largest absolute weight, so that middle grey is 0 in all; for three channels the same in each of
    red, green and blue; of other counts the mean over the channels is shown. Raises: CnnlabError for a run without a
    convolution.
    """
    from matplotlib.figure import Figure as Picture

    file = run.weights(weights)
    model = load_network(run, file)
    name, first = next(((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)), ("", None))
    if first is None:
        raise CnnlabError(f"{run.path}: {run.info['model']['name']} has no convolution, so no filters to show")
    pixels = filter_pixels(first.weight.detach())
    channels = first.in_channels
    count, height, width = pixels.shape[:3]
    across = filter_columns(count)
    down = math.ceil(count / across)
    what = {1: "", 3: ", in colour"}.get(channels, f", mean over {channels} channels")
    caption = [
        f"{count} filters {height}×{width}{what}: {run.info['model']['name']}, layer {name}",
        f"{run.path.name}, {_epoch(run, file)}",
        "each scaled on its own: black −a, grey 0, white a, its largest weight",
    ]
    cell = 0.42 if across > 8 else 0.7  # inches, with the gap
    page = max(across * cell + 0.1, 4.6)
    lines = [part for line in caption for part in textwrap.wrap(line, int(page * 15), break_long_words=True)]
    head, row = 0.15 * len(lines) + 0.12, cell * height / width
    picture = Picture(figsize=(page, down * row + head + 0.03))
    wide, high = picture.get_size_inches()
    left = (wide - across * cell + 0.08 * cell) / 2
    for i in range(count):
        x, y = left + i % across * cell, high - head - (i // across + 1) * row + 0.08 * row
        axes = picture.add_axes((x / wide, y / high, 0.92 * cell / wide, 0.92 * row / high))
        axes.imshow(pixels[i].numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_axis_off()
    text = "\n".join(lines).replace("$", r"\$")
    picture.text(0.5, 1 - 0.06 / high, text, ha="center", va="top", fontsize=8, linespacing=1.25)
    return picture


def filter_pixels(weight: Tensor) -> Tensor:
    """Weights (N, C, H, W) as pixels in 0..1: (N, H, W, 3) for three channels, else (N, H, W, 1) of their mean.

    Each filter on its own: 0 becomes 0.5, its largest absolute weight 0 or 1. A filter of zeros is grey.
    """
    shown = weight if weight.shape[1] == 3 else weight.mean(1, keepdim=True)
    largest = shown.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(shown.dtype).tiny)
    return (shown / largest / 2 + 0.5).permute(0, 2, 3, 1)


def filter_columns(count: int) -> int:
    """Columns of a grid of `count` filters, without an unfinished row where there is one: 16 for 96, 6 for 6."""
    return next((n for n in range(16, 5, -1) if count % n == 0), min(count, 16))


def _epoch(run: Run, file: Path) -> str:
    rows = run.metrics()
    key = f"{run.recipe.key}_acc"
    if not rows:
        return file.name
    summary = run.summary()
    if file.stem == "best" and summary is not None:
        return f"{file.name} (epoch {summary['best_epoch']})"
    # Not finished yet. As in training: of equal accuracies the lower loss, of those the first.
    best = max(rows, key=lambda row: (row[key], -row.get(f"{run.recipe.key}_loss", 0.0)))["epoch"]
    return f"{file.name} (epoch {best if file.stem == 'best' else rows[-1]['epoch']})"


def _saved(picture: Any, format: str, title: str) -> bytes:
    from matplotlib import rc_context

    buffer = io.BytesIO()
    # Without the date, so that the same weights give the same file.
    metadata = {"Title": title, **({"Date": None} if format == "svg" else {})}
    with rc_context({"svg.hashsalt": "cnnlab"}):
        picture.savefig(buffer, format=format, dpi=DPI, metadata=metadata)
    return buffer.getvalue()


# 1.2 to 1.7


def lenet_alexnet() -> list[Panel]:
    """Both layer by layer, with the shape that each layer makes."""
    return [
        Panel("LeNet", merged(_network("lenet", 28)), every_shape=True),
        Panel("AlexNet", merged(_network("alexnet", 224)), every_shape=True),
    ]


def alexnet_vgg() -> list[Panel]:
    """AlexNet layer by layer; a VGG block inside; VGG-11 block by block."""
    return [
        Panel("AlexNet", merged(_network("alexnet", 224)), short=True),
        Panel("VGG block", _block(lambda: vgg_block(2, 256, 512), (256, 28, 28)), short=True, output=" "),
        Panel("VGG-11", _blocks("vgg11", 224), short=True),
    ]


def vgg_nin() -> list[Panel]:
    """A block of each inside, and both networks block by block."""
    return [
        Panel("VGG block", _block(lambda: vgg_block(2, 256, 512), (256, 28, 28)), short=True, output=" "),
        Panel("VGG-11", _blocks("vgg11", 224), short=True),
        Panel("NiN block", _block(lambda: nin_block(1, 96, 11, 4, 0), (1, 224, 224)), short=True, output=" "),
        Panel("NiN", _blocks("nin", 224), short=True),
    ]


def normal_residual() -> list[Panel]:
    """The layers of a residual block without its shortcut, and with it."""
    block = trace(_built(lambda: Residual(64, 64, manual=True)), (64, 56, 56), name="x")
    main = block.main_path()
    plus = next(n for n, box in block.boxes.items() if box.kind == "join")
    inside = main[1 : main.index(plus)]
    normal = block.without(plus, keep=inside[-1])
    return [
        Panel("normal block", normal, output="output", frame=inside, frame_title="f(x)"),
        Panel("residual block", block, output="output", frame=inside, frame_title="f(x) − x"),
    ]


def with_and_without_projection() -> list[Panel]:
    """A residual block that keeps the shape, and one that changes it."""
    same = trace(_built(lambda: Residual(64, 64, manual=True)), (64, 56, 56), name="x")
    other = trace(_built(lambda: Residual(64, 128, 2, manual=True)), (64, 56, 56), name="x")
    return [
        Panel("without 1×1 conv", same, output=_last_shape(same)),
        Panel("with 1×1 conv", other, output=_last_shape(other)),
    ]


def resnet18() -> list[Panel]:
    """The whole network in two columns, a ground behind each module."""
    return [
        Panel(
            "ResNet-18 of the manual",
            merged(_network("resnet18-manual", 224)),
            columns=2,
            short=True,
            frame_blocks=True,
        ),
    ]


FIGURES: dict[str, Figure] = {
    "1.1": Figure("Filters that the first layer of a trained run has learned", None, needs="run"),
    "1.2": Figure("LeNet beside AlexNet", lenet_alexnet),
    "1.3": Figure("From AlexNet to VGG", alexnet_vgg),
    "1.4": Figure("Blocks and networks of VGG and NiN compared", vgg_nin),
    "1.5": Figure("A normal block and a residual block", normal_residual),
    "1.6": Figure("A residual block without and with the 1×1 convolution", with_and_without_projection),
    "1.7": Figure("ResNet-18", resnet18),
    "1.8": Figure("Sample images of the competition", None, needs="data"),
}


def _built(build: Callable[[], nn.Module]) -> nn.Module:
    """The module, without numbers: no memory, no draws from the random generator."""
    with torch.device("meta"):
        return build()


def _network(name: str, side: int) -> Graph:
    model = _built(lambda: build_model(name, num_classes=10, in_channels=1, image_size=side))
    return trace(model, (1, side, side))


def _blocks(name: str, side: int) -> Graph:
    return collapsed(merged(_network(name, side)))


def _block(build: Callable[[], nn.Module], shape: tuple[int, int, int]) -> Graph:
    return merged(trace(_built(build), shape, name="x"))


def _last_shape(graph: Graph) -> str:
    return shape_text(graph.boxes[graph.main_path()[-1]].shape)
