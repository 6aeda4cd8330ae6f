"""Checks of pictures: texts are inside the canvas, do not overlap, and all their letters are drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from cnnlab.io.fonts import use_fonts


def pixels(figure: Figure) -> np.ndarray:
    """Return the figure as drawn, (H, W, 3) uint8. A letter that the font lacks is a warning, so the test fails."""
    use_fonts(figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def check_texts(figure: Figure) -> None:
    """Fail if a text leaves the canvas or two overlap."""
    pixels(figure)
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    width, height = figure.bbox.width, figure.bbox.height
    unseen = {id(text) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for text in _unseen(axes, axis)}
    boxes = []
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        box = text.get_window_extent(renderer)
        if text.get_text().strip() and text.get_visible() and box.width and id(text) not in unseen:
            boxes.append((text.get_text(), box))
    for i, (a, one) in enumerate(boxes):
        assert one.x0 >= -1, f"{a!r} leaves the canvas on the left"
        assert one.x1 <= width + 1, f"{a!r} leaves the canvas on the right"
        assert one.y0 >= -1, f"{a!r} leaves the canvas below"
        assert one.y1 <= height + 1, f"{a!r} leaves the canvas above"
        for b, two in boxes[i + 1 :]:
            apart = one.x1 <= two.x0 + 1 or two.x1 <= one.x0 + 1 or one.y1 <= two.y0 + 1 or two.y1 <= one.y0 + 1
            assert apart, f"{a!r} and {b!r} overlap"


def _unseen(axes: Any, axis: Any) -> list[Text]:
    """Return the tick labels that are not drawn: outside the limits, or of axes that are switched off."""
    low, high = sorted(axis.get_view_interval())
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    return [
        t for tick in ticks if not (axes.axison and low <= tick.get_loc() <= high) for t in (tick.label1, tick.label2)
    ]
