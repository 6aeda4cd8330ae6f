"""An inspection as text: what `cnnlab inspect` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cnnlab.inspect.statistics import LayerStatistics
from cnnlab.io.tables import Table, wrap
from cnnlab.io.text import escape, plural, truncate

if TYPE_CHECKING:
    from cnnlab.inspect.inspection import Inspection

_MOST_ROWS = 40  # layers
_MOST_ADVICE = 8
_LEGEND = (
    "zeros: outputs that are 0; dead: units behind a ReLU that are 0 for all images; gamma: median of the channels; "
    "gradient: its norm for one batch, relative to that of the weights"
)


def inspection_text(found: Inspection) -> str:
    """Return the table of statistics with advice, then a table of the images with their nearest training images."""
    recipe = found.run.recipe
    parts = [wrap(f"{found.run.path}, {found.weights.name}: {recipe.model} on {recipe.data}, seed {recipe.seed}")]
    if found.statistics:
        count = plural(found.statistics_images, f"{found.statistics_split} image".replace("train ", "training "))
        parts += [f"layers, on {count}:", statistics_table(found.statistics), wrap(_LEGEND), *_advice(found.statistics)]
    if found.images:
        split = found.split.replace("train", "training")
        parts += [f"{split} images:" if split else "images:", _images(found)]
    if found.searched:
        among = plural(found.training_images, "training image")
        among = among if found.searched == found.training_images else f"{found.searched:,} of {among}"
        parts.append(wrap(f"nearest: by cosine distance between the centred inputs of the last layer, among {among}"))
    parts += [wrap(f"missing: {text}", 2) for text in found.missing]
    if found.skipped:
        parts.append(wrap(f"{plural(len(found.skipped), 'damaged image')} skipped; the first: {found.skipped[0]}", 2))
    return "\n\n".join(parts)


def statistics_table(layers: Sequence[LayerStatistics]) -> str:
    """Return a table with a row for each layer. gradient: its norm relative to that of the weights.

    Of more than 40 layers, show those with advice and some with weights, and say how many are left out.
    """
    shown = list(layers)
    if len(shown) > _MOST_ROWS:
        shown = [layer for layer in layers if layer.advice or (layer.weight_norm and layer.gamma is None)]
    if len(shown) > _MOST_ROWS:
        advised = [layer for layer in shown if layer.advice][:_MOST_ROWS]
        others = [layer for layer in shown if not layer.advice]
        count = _MOST_ROWS - len(advised)
        kept = {*(layer.path for layer in advised), *(others[i * len(others) // count].path for i in range(count))}
        shown = [layer for layer in shown if layer.path in kept]
    table = Table("layer", "type", "mean", "std", "zeros", "dead", "gamma", "gradient", left=(1,))
    for layer in shown:
        table.add_row(
            layer.path,
            layer.type,
            f"{layer.mean:.3g}",
            f"{layer.std:.3g}",
            f"{layer.zeros:.0%}" if layer.zeros else "",
            f"{layer.dead}/{layer.units}" if layer.dead is not None else "",
            f"{layer.gamma[2]:.2f}" if layer.gamma else "",
            f"{layer.gradient_norm / layer.weight_norm:.1e}" if layer.gradient_norm and layer.weight_norm else "",
        )
    rest = len(layers) - len(shown)
    more = f"\nand {plural(rest, 'more layer')}; --json has all" if rest else ""
    return f"{table}{more}"


def _advice(layers: Sequence[LayerStatistics]) -> list[str]:
    """Return the advice as text, with a line for each of the first eight layers that have some."""
    advised = [layer for layer in layers if layer.advice]
    if not advised:
        return ["no layer stands out"]
    lines = [wrap(f"{layer.path} ({layer.type}): {layer.advice}", 2) for layer in advised[:_MOST_ADVICE]]
    if len(advised) > _MOST_ADVICE:
        lines.append(f"and {plural(len(advised) - _MOST_ADVICE, 'more layer')} with advice; --json has all")
    return ["\n".join(lines)]


def _images(found: Inspection) -> str:
    """Return the file, true class, most probable classes and nearest training images of each image."""
    blocks = []
    for image in found.images:
        likely = [(label, p) for i, (label, p) in enumerate(image.top) if i == 0 or p >= 0.0005]
        top = ", ".join(f"{_name(label)} {p:.1%}" for label, p in likely)
        top = f"none of these ({top})" if image.none_of_these else top
        label = _unless_in(image.id, image.label)
        lines = [wrap(f"{escape(image.id)}{f' ({label})' if label else ''}: {top}", 2)]
        near = [
            f"{escape(n.id)} ({', '.join(filter(None, (_unless_in(n.id, n.label), f'{n.distance:.3f}')))})"
            for n in image.neighbours
        ]
        if near:
            lines.append(f"  {wrap('nearest: ' + ', '.join(near), 4)}")
        blocks.append("\n".join(lines))
    return "\n".join(blocks)


def _unless_in(id_: str, label: str) -> str:
    """Return the class, or "" if the image's id begins with it as a folder."""
    return "" if id_.startswith(f"{label}/") else _name(label)


def _name(label: str) -> str:
    return truncate(escape(label), 40)
