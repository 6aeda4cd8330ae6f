"""The chapter's figures: the filters of a trained run, sample images, and diagrams of networks and blocks.

Diagrams are traced from the modules that are trained (`cnnlab.chapter.graphs`). No label is written by hand, so a
change to a network shows in its figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cnnlab.chapter.diagrams import DPI, Panel, drawing, render
from cnnlab.chapter.graphs import Graph, collapsed, merged, shape_text, trace
from cnnlab.data import load_images
from cnnlab.data.imageset import sample_rows
from cnnlab.inspect.filters import filters
from cnnlab.io import figures as plots
from cnnlab.io.errors import CnnlabError, expand, reason, unknown
from cnnlab.io.files import write_atomic
from cnnlab.models import build_model
from cnnlab.models.nin import nin_block
from cnnlab.models.own import Network
from cnnlab.models.resnet import Residual
from cnnlab.models.vgg import vgg_block
from cnnlab.training.runs import open_run

FORMATS = ("svg", "png")
_REMEDIES = {
    "run": "--run RUN, a trained run; to train one: cnnlab train --data fashion-mnist --recipe manual/alexnet",
    "data": "--data SOURCE; for the competition's images: cnnlab kaggle show",
}


@dataclass(frozen=True)
class Figure:
    """One figure of the chapter. draw: returns its panels; None for a figure that `needs` a "run" or "data"."""

    title: str
    draw: Callable[[], list[Panel]] | None
    needs: str = ""


def figures(
    names: Sequence[str] | None = None,
    *,
    out_dir: str | Path = "figures",
    run: str | Path | None = None,
    data: str | None = None,
    model: Network | None = None,
    runs_dir: str | Path = "runs",
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Draw figures into `out_dir`, as figure-1.2.svg, figure-1.2.png, ... Return the files, in the chapter's order.

    names: keys of FIGURES. Default: all; 1.1 only with `run`, whose filters it shows, and 1.8 only with `data`, a
    source of images. model: your own network, if the run trained one. Existing files are replaced.

    Raise CnnlabError for an unknown name or format, for a missing `run` or `data`, and if the folder
    cannot be written.
    """
    given = {"": True, "run": run is not None, "data": data is not None}
    chosen = list(names) if names else [n for n, f in FIGURES.items() if given[f.needs]]
    for name in chosen:
        if name not in FIGURES:
            raise unknown("figure", name, FIGURES)
        if not given[FIGURES[name].needs]:
            raise CnnlabError(f"figure {name} needs {_REMEDIES[FIGURES[name].needs]}")
    for suffix in formats:
        if suffix not in FORMATS:
            raise unknown("format", suffix, FORMATS)
    folder = expand(out_dir)
    # All are drawn before the first is written, so that an error leaves no incomplete set.
    contents = {
        folder / f"figure-{name}.{suffix}": content
        for name in FIGURES
        if name in chosen
        for suffix, content in _draw(name, run, data, model, runs_dir, formats)
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in contents.items():
            write_atomic(path, content)
    except OSError as error:
        raise CnnlabError(f"cannot write into {folder}: {reason(error)}; name another folder") from error
    return list(contents)


def left_out(names: Sequence[str] | None = None, run: str | Path | None = None, data: str | None = None) -> str:
    """Return one line on the figures that `figures` skips with these arguments, and the remedy; "" if none."""
    absent = {"run": run is None, "data": data is None}
    skipped = [
        f"{n}, which needs {_REMEDIES[f.needs]}" for n, f in FIGURES.items() if not names and absent.get(f.needs)
    ]
    return f"skipped: {'; '.join(skipped)}" if skipped else ""


def _draw(
    name: str,
    run: str | Path | None,
    data: str | None,
    model: Network | None,
    runs_dir: str | Path,
    formats: Sequence[str],
) -> list[tuple[str, bytes]]:
    """Return (format, content of the file) for each format."""
    figure = FIGURES[name]
    title = f"Figure {name}: {figure.title}"
    if figure.draw is not None:
        page = drawing(figure.draw(), title)
        return [(suffix, render(page, suffix)) for suffix in formats]
    if figure.needs == "data":
        assert data is not None
        images = load_images(data, "train")
        assert images is not None
        picture = plots.samples(sample_rows(images.images, images.labels, len(images.classes)), images.classes)
    else:
        assert run is not None
        picture = filters(open_run(run, runs_dir), model=model)
    return [(suffix, _save(picture, suffix, title)) for suffix in formats]


# 1.1 and 1.8


def _save(picture: Any, format: str, title: str) -> bytes:
    from matplotlib import rc_context

    # Without the date and with a fixed salt, so that the same weights give the same file.
    metadata = {"Title": title, **({"Date": None} if format == "svg" else {})}
    with rc_context({"svg.hashsalt": "cnnlab"}):
        return plots.file(picture, format=format, dpi=DPI, metadata=metadata)


# 1.2 to 1.7


def lenet_alexnet() -> list[Panel]:
    """Return both networks, layer by layer, with each layer's output shape."""
    return [
        Panel("LeNet", merged(_network("lenet", 28)), every_shape=True),
        Panel("AlexNet", merged(_network("alexnet", 224)), every_shape=True),
    ]


def alexnet_vgg() -> list[Panel]:
    """Return AlexNet layer by layer, the inside of a VGG block, and VGG-11 block by block."""
    return [
        Panel("AlexNet", merged(_network("alexnet", 224)), short=True),
        Panel("VGG block", _block(lambda: vgg_block(2, 256, 512), (256, 28, 28)), short=True, output="output"),
        Panel("VGG-11", _blocks("vgg11", 224), short=True),
    ]


def vgg_nin() -> list[Panel]:
    """Return a VGG block and a NiN block layer by layer, and both networks block by block."""
    return [
        Panel("VGG block", _block(lambda: vgg_block(2, 256, 512), (256, 28, 28)), short=True, output="output"),
        Panel("VGG-11", _blocks("vgg11", 224), short=True),
        Panel("NiN block", _block(lambda: nin_block(1, 96, 11, 4, 0), (1, 224, 224)), short=True, output="output"),
        Panel("NiN", _blocks("nin", 224), short=True),
    ]


def normal_residual() -> list[Panel]:
    """Return the layers of a residual block without and with its shortcut."""
    block = trace(_build_on_meta(lambda: Residual(64, 64, manual=True)), (64, 56, 56), name="x")
    main = block.main_path()
    plus = next(n for n, box in block.boxes.items() if box.kind == "join")
    inside = main[1 : main.index(plus)]
    normal = block.without(plus, keep=inside[-1])
    return [
        Panel("normal block", normal, output="output", frame=inside, frame_title="f(x)"),
        Panel("residual block", block, output="output", frame=inside, frame_title="f(x) − x"),
    ]


def with_and_without_projection() -> list[Panel]:
    """Return a residual block that preserves the shape, and one that changes it."""
    same = trace(_build_on_meta(lambda: Residual(64, 64, manual=True)), (64, 56, 56), name="x")
    other = trace(_build_on_meta(lambda: Residual(64, 128, 2, manual=True)), (64, 56, 56), name="x")
    return [
        Panel("without 1×1 conv", same, output=_last_shape(same)),
        Panel("with 1×1 conv", other, output=_last_shape(other)),
    ]


def resnet18() -> list[Panel]:
    """Return the whole network in two halves, with a background behind each module."""
    graph = merged(_network("resnet18-manual", 224))
    third = next(name for name, box in graph.boxes.items() if box.scope[:1] == ("3",))
    halves = graph.split(third, "after module 2")
    titles = ("the manual's ResNet-18", "continued")
    return [Panel(title, half, short=True, frame_blocks=True) for title, half in zip(titles, halves, strict=True)]


FIGURES: dict[str, Figure] = {
    "1.1": Figure("Learned filters of the first layer", None, needs="run"),
    "1.2": Figure("LeNet and AlexNet", lenet_alexnet),
    "1.3": Figure("From AlexNet to VGG", alexnet_vgg),
    "1.4": Figure("Blocks and networks of VGG and NiN compared", vgg_nin),
    "1.5": Figure("A normal block and a residual block", normal_residual),
    "1.6": Figure("A residual block without and with the 1×1 convolution", with_and_without_projection),
    "1.7": Figure("ResNet-18", resnet18),
    "1.8": Figure("Sample images of the competition", None, needs="data"),
}


def _build_on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """Build the module on the meta device, without using memory or drawing random numbers."""
    with torch.device("meta"):
        return build()


def _network(name: str, side: int) -> Graph:
    model = _build_on_meta(lambda: build_model(name, num_classes=10, in_channels=1, image_size=side))
    return trace(model, (1, side, side))


def _blocks(name: str, side: int) -> Graph:
    return collapsed(merged(_network(name, side)))


def _block(build: Callable[[], nn.Module], shape: tuple[int, int, int]) -> Graph:
    return merged(trace(_build_on_meta(build), shape, name="x"))


def _last_shape(graph: Graph) -> str:
    return shape_text(graph.boxes[graph.main_path()[-1]].shape)
