"""The pictures of an inspection: filters, feature maps, class activation, occlusion, neighbours and prototypes."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from cnnlab.data.imageset import viewable
from cnnlab.inspect.filters import draw_filters
from cnnlab.inspect.layers import first_convolution
from cnnlab.io import figures as plots
from cnnlab.io.errors import CnnlabError, expand, reason
from cnnlab.io.files import write_atomic
from cnnlab.io.fonts import drawable, shorten, width, wrap
from cnnlab.io.text import plural

if TYPE_CHECKING:
    from cnnlab.inspect.inspection import ImageInspection, Inspection
    from cnnlab.inspect.neighbours import Neighbour

NAMES = ("filters", "feature-maps", "class-activation", "occlusion", "neighbours", "prototypes")
_CLASSES = 60  # prototypes in a picture
_FAINT = 0.05  # change of a probability that is drawn in full colour, unless a larger one occurs
_MAPS = 12  # feature maps of a layer
_WRONG = plots.EVAL_COLOR
_FONT, _LINE, _SIDE = 8, 0.15, 1.25  # points; inches: of a line of text, of a tile


@dataclass(frozen=True)
class _Tile:
    """A small picture, (H, W, 1) or (H, W, 3) in 0..1 or uint8, with lines of text above it."""

    pixels: np.ndarray
    lines: tuple[str, ...] = ()
    color: str = "black"


def all_figures(found: Inspection) -> dict[str, Figure]:
    """Return the pictures that the network and the images allow, by name."""
    figures = {}
    if first_convolution(found.classifier.network) is not None:
        figures["filters"] = draw_filters(found.run, found.weights, found.classifier.network)
    if found.images:
        if maps := _feature_maps(found):
            figures["feature-maps"] = maps
        if not found.without_activation:
            figures["class-activation"] = _activation(found)
        figures["occlusion"] = _occlusion(found)
        if found.images[0].neighbours:
            figures["neighbours"] = _neighbours(found)
    if any(found.prototypes):
        figures["prototypes"] = _prototypes(found)
    return figures


def check_folder(folder: Path) -> None:
    """Raise CnnlabError if one of the pictures exists in the folder, or if the folder is a file."""
    folder = expand(folder)
    if folder.exists() and not folder.is_dir():
        raise CnnlabError(f"{folder} is a file; name a folder")
    for name in NAMES:
        if (folder / f"{name}.png").exists():
            raise CnnlabError(f"{folder / name}.png exists; name another folder, or remove it first")


def save_figures(figures: dict[str, Figure], folder: Path) -> list[Path]:
    """Write each picture as NAME.png into the folder; return the files. Raise CnnlabError if one of them exists."""
    check_folder(folder)
    folder = expand(folder)
    files = [folder / f"{name}.png" for name in figures]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, figure in zip(files, figures.values(), strict=True):
            write_atomic(file, plots.png(figure))
    except OSError as error:
        raise CnnlabError(f"cannot write into {folder}: {reason(error)}; name another folder") from error
    return files


def as_html(found: Inspection) -> str:
    """Return text and pictures for a notebook."""
    parts = [f"<pre>{html.escape(str(found))}</pre>"]
    for name, figure in found.figures.items():
        uri = base64.b64encode(plots.png(figure, dpi=110)).decode()
        parts.append(f'<p><img alt="{name}" style="max-width:100%" src="data:image/png;base64,{uri}"></p>')
    return "\n".join(parts)


def overlay(image: Tensor, cam: Tensor) -> np.ndarray:
    """Return the image (C, H, W) in 0..1, in grey, with a map (H, W) in -1..1 over it, as (H, W, 3) in 0..1.

    Yellow where the map is 1, blue where it is -1, the image itself where it is 0.
    """
    grey = image.float().mean(0).numpy()[..., None].repeat(3, 2)
    value = cam.numpy()
    positive = colormaps["inferno"](0.25 + 0.65 * value.clip(0, 1))[..., :3]
    negative = np.array([0.15, 0.4, 0.95]) * np.ones_like(grey)
    colour = np.where(value[..., None] >= 0, positive, negative)
    alpha = (0.75 * np.abs(value).clip(0, 1))[..., None]
    blended: np.ndarray = (1 - alpha) * grey + alpha * colour
    return blended.clip(0, 1)


def _shown(image: Tensor) -> np.ndarray:
    """Return an image (C, H, W) in 0..1 as (H, W, 1) or (H, W, 3)."""
    return viewable((image * 255).round().byte())


def _activation(found: Inspection) -> Figure:
    layer = found.activation_layer
    rows = _beside(found, found.activation)
    caption = [
        "what raises the logit of the class, by Grad-CAM: "
        f"layer {layer.path}, {layer.channels} maps of {layer.height}×{layer.width}",
        *_more(found),
    ]
    return _grid(rows, [_title(found), *caption])


def _occlusion(found: Inspection) -> Figure:
    drops = found.occlusion
    # Small changes are not shown as large ones.
    largest = drops.abs().amax((1, 2), keepdim=True).clamp_min(_FAINT)
    notes = [
        f"up to {-value:+.2f}".replace("-", "−") if abs(value) >= 0.005 else "hardly at all"
        for value in _extreme(drops).tolist()
    ]
    caption = [
        "where hiding a part changes the probability of the class: yellow lowers it, blue raises it",
        *_more(found),
    ]
    return _grid(_beside(found, drops / largest, notes), [_title(found), *caption])


def _extreme(drops: Tensor) -> np.ndarray:
    """Return the drop of largest magnitude for each image."""
    flat = drops.flatten(1)
    found: np.ndarray = flat.gather(1, flat.abs().argmax(1, keepdim=True))[:, 0].numpy()
    return found


def _beside(found: Inspection, maps: Tensor, notes: Sequence[str] = ()) -> list[list[_Tile]]:
    """Return rows of pairs of tiles: an image, and the same image under its map."""
    tiles = []
    for i, (image, x, cam) in enumerate(zip(found.images, found.shown, maps, strict=False)):
        note = notes[i] if notes else ""
        tiles.append([_Tile(_shown(x), *_heading(image)), _Tile(overlay(x, cam), (f"for {image.explained}", note))])
    across = 3 if len(tiles) > 4 else 2 if len(tiles) > 1 else 1
    return [[tile for pair in tiles[i : i + across] for tile in pair] for i in range(0, len(tiles), across)]


def _heading(image: ImageInspection) -> tuple[tuple[str, ...], str]:
    """Return two lines, the true class or file and the predicted class, and their colour: red for a mistake."""
    label, p = image.top[0]
    end = f" {p:.0%}"
    room = _SIDE - width(end, _FONT)
    predicted = f"{shorten(drawable(label), room, _FONT)}{end}" if not image.none_of_these else "none of these"
    if not image.label:
        return (Path(image.id).name, predicted), "black"
    return (f"true: {image.label}", predicted), "black" if image.label == label else _WRONG


def _feature_maps(found: Inspection) -> Figure | None:
    image = found.images[0]
    rows, titles = [], []
    for layer, maps in found.feature_maps():
        titles.append(f"layer {layer.path}: {plural(layer.channels, 'map')} of {layer.height}×{layer.width}")
        order = maps.flatten(1).std(1, correction=0).argsort(descending=True, stable=True)[:_MAPS].tolist()
        tiles = [_Tile(_shown(found.shown[0]))]
        for channel in order:
            values = maps[channel].numpy()
            low, high = values.min(), values.max()
            tiles.append(_Tile(((values - low) / ((high - low) or 1))[..., None], (str(channel),)))
        rows.append(tiles)
    if not rows:
        return None
    caption = [
        f"feature maps of {image.id}, from the first layer to the last",
        f"of each layer at most {_MAPS}, those that vary most; each from its own minimum, black, to its maximum, white",
    ]
    return _grid(rows, [_title(found), *caption], side=0.72, titles=titles)


def _neighbours(found: Inspection) -> Figure:
    rows = []
    for image, x in zip(found.images, found.shown, strict=False):
        tiles = [_Tile(_shown(x), *_heading(image))]
        for n in image.neighbours:
            color = "black" if n.label == image.top[0][0] else _WRONG
            tiles.append(_Tile(_training_image(found, n), (n.label, f"{n.distance:.3f}"), color))
        rows.append(tiles)
    among = plural(found.training_images, "training image")
    among = among if found.searched == found.training_images else f"{found.searched:,} of {among}"
    caption = [
        "left: the image with its prediction; then the nearest training images with their cosine distance",
        f"between the centred inputs of the last layer, among {among}; red: of another class than the predicted one",
        *_more(found),
    ]
    return _grid(rows, [_title(found), *caption], gap=0.35)


def _prototypes(found: Inspection) -> Figure:
    named = [(name, n) for name, n in zip(found.run.classes, found.prototypes, strict=True) if n is not None]
    tiles = [_Tile(_training_image(found, n), (name,)) for name, n in named[:_CLASSES]]
    across = min(len(tiles), 5 if len(tiles) <= 20 else 10)
    caption = ["prototypes: of each class the training image nearest to the mean of its features"]
    if len(named) > len(tiles):
        caption.append(f"the first {len(tiles)} of {len(named):,} classes")
    return _grid([tiles[i : i + across] for i in range(0, len(tiles), across)], [_title(found), *caption])


def _training_image(found: Inspection, n: Neighbour) -> np.ndarray:
    """Return a training image as the network gets it."""
    assert found.gallery is not None
    images = found.gallery.images.images[n.index : n.index + 1]
    return _shown(found.classifier.preprocessing.resized(images)[0])


def _title(found: Inspection) -> str:
    return f"{found.run.path.name}, {found.weights.name}: {found.run.recipe.model} on {found.run.recipe.data}"


def _more(found: Inspection) -> list[str]:
    count = len(found.shown)
    return [f"the first {count} of {len(found.images):,} images"] if count < len(found.images) else []


def _grid(
    rows: Sequence[Sequence[_Tile]],
    caption: Sequence[str],
    side: float = _SIDE,
    gap: float = 0.0,
    titles: Sequence[str] = (),
) -> Figure:
    """Draw rows of tiles, `side` inches wide, under a caption. gap: after the first tile. titles: one per row."""
    columns = max(map(len, rows))
    lines = max(sum(map(bool, tile.lines)) for row in rows for tile in row)
    size, between = _FONT if side > 1 else 7, 0.1
    head = _LINE * (lines + bool(titles)) + 0.04
    wide = max(columns * (side + between) + gap + 0.1, 5.2)
    text = [part for line in caption for part in wrap(drawable(line), wide - 0.2, _FONT).split("\n")]
    above = _LINE * len(text) + 0.14
    tall = above + len(rows) * (side + head + between)
    figure = Figure(figsize=(wide, tall))
    page = figure.add_axes((0, 0, 1, 1))  # in inches; axes for each tile would take ten times as long
    page.set_axis_off()

    def write(text: str, left: float, y: float, room: float, color: str, size: float = size) -> None:
        line = shorten(drawable(text), room, size)
        page.text(left, y, line, fontsize=size, va="bottom", color=color)

    for i, line in enumerate(text):
        write(line, 0.1, tall - 0.06 - _LINE * (i + 1), wide, "black" if i == 0 else "0.35", _FONT)
    for i, row in enumerate(rows):
        top = tall - above - i * (side + head + between) - head  # of the pictures
        if titles:
            write(titles[i], 0.1, top + 0.02 + _LINE * lines, wide - 0.2, "0.35")
        for j, tile in enumerate(row):
            left = 0.1 + j * (side + between) + (gap if j else 0)
            page.imshow(tile.pixels.squeeze(2) if tile.pixels.shape[2] == 1 else tile.pixels, cmap="gray", vmin=0,
                        vmax=255 if tile.pixels.dtype == np.uint8 else 1, interpolation="nearest",
                        extent=(left, left + side, top - side, top), aspect="auto")  # fmt: skip
            for n, line in enumerate(reversed([line for line in tile.lines if line])):
                write(line, left, top + 0.02 + _LINE * n, side, tile.color)
    page.set_xlim(0, wide)
    page.set_ylim(0, tall)
    return figure
