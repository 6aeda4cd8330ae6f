"""Diagrams of networks, side by side, each from top to bottom with right-angled arrows.

`drawing` lays several graphs out as shapes, in points; `render` writes them as PNG, or SVG in light and dark colours.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Polygon

from cnnlab.chapter.graphs import Box, Graph, shape_text
from cnnlab.io import figures as plots
from cnnlab.io.fonts import width as inches

DPI = 200  # of the PNGs; the SVGs have no pixels


@dataclass(frozen=True)
class _Style:
    """The look of a kind of box. Kinds differ for colour-blind readers, and in greyscale by lightness and outline."""

    fill: str
    rounded: bool = False
    pen: float = 1.0
    double: bool = False


_STYLES = {
    "conv": _Style("#b9d7ee"),
    "pool": _Style("#fde6bd", rounded=True),
    "linear": _Style("#bda4d3", pen=2.0),
    "block": _Style("#b9d7ee", double=True),
    "other": _Style("#ffffff", rounded=True),
    "join": _Style("#ffffff", rounded=True),
}
_INK, _PALE, _PALE_EDGE = "#333333", "#f1f1f1", "#c8c8c8"
_DARK = f"""<style>@media (prefers-color-scheme: dark) {{
.ink {{ fill: #e2e4e9 }} .edge path, .frame {{ stroke: #c9ccd3 }} .edge polygon {{ fill: #c9ccd3; stroke: none }}
.node rect, .node circle {{ stroke: {_INK} }} .back {{ fill: #2f323b; stroke: #50545f }}
}}</style>"""
_FONTS = "DejaVu Sans, Verdana, Arial, sans-serif"
_SIZE, _SMALL, _TITLE = 11, 9, 13
_LINE, _SMALL_LINE = 14.5, 12.5  # heights
_MARGIN = 6.0  # inside a box
_GAP, _BRANCH_GAP, _FRAME_GAP = 18.0, 26.0, 18.0  # between boxes; with shortcuts; in addition between frames
_BETWEEN = 18.0  # between panels
_HEAD = 6.0  # an arrow's head


@dataclass(frozen=True)
class Panel:
    """One graph in a drawing, under its title."""

    title: str
    graph: Graph
    every_shape: bool = False  # write the shape of every layer, not only of those that change it
    short: bool = False  # write stride 2 as /2
    output: str = ""  # label at the end of an arrow out of the last box; "": no arrow
    frame: Sequence[str] = ()  # boxes inside a dashed frame
    frame_title: str = ""
    frame_blocks: bool = False  # a pale background behind each top-level block


@dataclass(frozen=True)
class _Words:
    """A line of text. x: its start, middle or end, whichever `anchor` names; y: its baseline."""

    text: str
    x: float
    y: float
    size: int = _SIZE
    anchor: str = "middle"
    bold: bool = False


@dataclass(frozen=True)
class _Node:
    """A box with its words; kind "text" has no outline."""

    name: str
    kind: str
    left: float
    top: float
    width: float
    height: float
    words: tuple[_Words, ...]

    @property
    def middle(self) -> tuple[float, float]:
        return self.left + self.width / 2, self.top + self.height / 2

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def bottom(self) -> float:
        return self.top + self.height


@dataclass(frozen=True)
class _Frame:
    """A rectangle behind boxes, dashed or pale."""

    left: float
    top: float
    width: float
    height: float
    dashed: bool


@dataclass
class Drawing:
    """Shapes on a page, and the points of each arrow, the last one its tip."""

    title: str
    width: float = 0.0
    height: float = 0.0
    frames: list[_Frame] = field(default_factory=list)
    nodes: list[_Node] = field(default_factory=list)
    arrows: list[list[tuple[float, float]]] = field(default_factory=list)
    words: list[_Words] = field(default_factory=list)


def drawing(panels: Sequence[Panel], title: str) -> Drawing:
    """Return the panels side by side."""
    page, x = Drawing(title), 10.0
    layouts = [_Layout(page, panel, f"p{i}") for i, panel in enumerate(panels)]
    gap = _BRANCH_GAP if any(layout.shortcuts for layout in layouts) else _GAP  # the same arrow length in all panels
    for layout in layouts:
        x = layout.draw(x, gap) + _BETWEEN
    page.width = x - _BETWEEN + 10
    notes = []
    if any("/" in line for p in panels if p.short for b in p.graph.boxes.values() for line in (b.short, *b.lines)):
        notes.append("/2: stride 2")
    if any(b.kind == "block" for p in panels for b in p.graph.boxes.values()):
        notes.append("double frame: a block")
    if notes:
        page.height += 22
        page.words.append(_Words("; ".join(notes), page.width / 2, page.height - 2, _SMALL))
    page.height += 10
    return page


class _Layout:
    """The layout of one panel: the longest path in a column, and the boxes on shortcuts to its right."""

    def __init__(self, page: Drawing, panel: Panel, prefix: str) -> None:
        self.page, self.panel, self.prefix = page, panel, prefix
        self.graph = _shortened(panel.graph) if panel.short else panel.graph
        self.main = self.graph.main_path()
        self.side = [name for name in self.graph.boxes if name not in self.main]
        self.labels = {name: _shape_label(panel, self.graph, name) for name in self.graph.boxes}
        self.shortcuts = [(a, b) for a, b in self.graph.arrows if (a, b) not in set(pairwise(self.main))]
        self.nodes: dict[str, _Node] = {}

    def draw(self, x: float, gap: float) -> float:
        """Draw the panel to the right of `x`, with boxes `gap` apart. Return its right end."""
        texts, boxes = list[float](), list[float]()
        for name in self.main:
            box = self.graph.boxes[name]
            (texts if box.kind == "text" else boxes).append(_width(box, self.labels[name]))
        column = max(boxes)
        title = max(*texts, 72 * inches(self.panel.title, _TITLE) * 1.1)  # bold
        pad = 10.0 if self.panel.frame or self.panel.frame_blocks else 0.0
        left = x + max(pad, (title - column) / 2)
        middle = left + column / 2
        widths = [_width(self.graph.boxes[n], self.labels[n]) for n in self.side]
        lane = left + column + max([14 + pad, *(14 + wide / 2 for wide in widths)])
        heading = _Words(self.panel.title, middle, 22, _TITLE, bold=True)
        self.page.nodes.append(_Node(f"{self.prefix}_title", "text", middle, 10, 0, _LINE, (heading,)))
        self._column(middle, column, gap)
        self._sides(lane)
        right = lane + max([*widths, 0]) / 2 if self.shortcuts else left + column
        frames_right = right + pad if self.panel.frame_blocks else left + column + pad
        self._frames(left - pad, frames_right)
        self._arrows(middle, lane)
        self.page.nodes += self.nodes.values()
        return max(right, frames_right if pad else 0.0, middle + title / 2)

    def _column(self, middle: float, column: float, gap: float) -> None:
        bottom = 20.0
        for before, name in pairwise(["", *self.main]):
            box = self.graph.boxes[name]
            changes = self._background(before) != self._background(name) if before else False
            top = bottom + (14 if not before else gap + _FRAME_GAP * changes)
            wide = column if box.kind not in ("text", "join") else _width(box, "")
            self._place(name, middle - wide / 2, top, wide)
            bottom = self.nodes[name].bottom
        if self.panel.output:
            changes = bool(self._background(self.main[-1]))
            end = Box((self.panel.output,), "text", ())
            self.nodes["out"] = _node(f"{self.prefix}_out", end, "", middle, bottom + gap + _FRAME_GAP * changes, 0)
            bottom = self.nodes["out"].bottom
        last_frame = 12 if self._background(self.main[-1]) and not self.panel.output else 0
        self.page.height = max(self.page.height, bottom + last_frame)

    def _sides(self, lane: float) -> None:
        """Place the boxes on shortcuts at mid-height of the boxes that they bypass."""
        for name in self.side:
            (before,), (after,) = self.graph.before(name), self.graph.after(name)
            passed = self.main[self.main.index(before) + 1 : self.main.index(after)]
            wide = _width(self.graph.boxes[name], self.labels[name])
            self._place(name, lane - wide / 2, 0, wide)
            middle = (self.nodes[passed[0]].top + self.nodes[passed[-1]].bottom) / 2
            self._place(name, lane - wide / 2, middle - self.nodes[name].height / 2, wide)

    def _place(self, name: str, left: float, top: float, wide: float) -> None:
        box = self.graph.boxes[name]
        self.nodes[name] = _node(f"{self.prefix}_{name}", box, self.labels[name], left, top, wide)

    def _background(self, name: str) -> str:
        if name in self.panel.frame:
            return "frame"
        return "".join(self.graph.boxes[name].scope[:1]) if self.panel.frame_blocks else ""

    def _frames(self, left: float, right: float) -> None:
        for back, names in groupby(self.main, key=self._background):
            if back:
                inside = [self.nodes[name] for name in names]
                # The branch of a shortcut over the frame's first box is inside a background, above a dashed frame.
                above = 12 if self.panel.frame else 22
                top, bottom = inside[0].top - above, inside[-1].bottom + 10
                self.page.frames.append(_Frame(left, top, right - left, bottom - top, back == "frame"))
                if back == "frame":
                    self.page.words.append(_Words(self.panel.frame_title, left, top - 4, _SIZE, "start"))

    def _arrows(self, middle: float, lane: float) -> None:
        path = [self.nodes[name] for name in (*self.main, *(["out"] if self.panel.output else []))]
        self.page.arrows += [[(middle, a.bottom), (middle, b.top)] for a, b in pairwise(path)]
        for a, b in self.shortcuts:
            start, end = self.nodes[a], self.nodes[b]
            points = [(lane, start.bottom)]
            if a in self.main:
                following = self.nodes[self.main[self.main.index(a) + 1]]
                # Just below the box, or inside the background of the block that the shortcut bypasses.
                y = following.top - 14 if self.panel.frame_blocks else start.bottom + 8
                points = [(middle, y), (lane, y)]
            points += [(lane, end.middle[1]), (end.right, end.middle[1])] if b in self.main else [(lane, end.top)]
            self.page.arrows.append(points)


def render(page: Drawing, format: str) -> bytes:
    """Return a drawing as an SVG or PNG file."""
    return "\n".join(_svg(page)).encode() if format == "svg" else _png(page)


def _svg(page: Drawing) -> Iterator[str]:
    size = f'width="{page.width:.0f}pt" height="{page.height:.0f}pt" viewBox="0 0 {page.width:.2f} {page.height:.2f}"'
    yield f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{_FONTS}">'
    yield f"<title>{html.escape(page.title)}</title>"
    yield _DARK
    for frame in page.frames:
        place = f'x="{frame.left:.2f}" y="{frame.top:.2f}" width="{frame.width:.2f}" height="{frame.height:.2f}"'
        if frame.dashed:
            yield f'<rect class="frame" {place} fill="none" stroke="{_INK}" stroke-dasharray="5,3"/>'
        else:
            yield f'<rect class="back" {place} fill="{_PALE}" stroke="{_PALE_EDGE}"/>'
    for points in page.arrows:
        path = "M" + " L".join(f"{x:.2f},{y:.2f}" for x, y in [*points[:-1], _base(points)])
        head = " ".join(f"{x:.2f},{y:.2f}" for x, y in _head(points))
        yield f'<g class="edge"><path d="{path}" fill="none" stroke="{_INK}"/>'
        yield f'<polygon points="{head}" fill="{_INK}"/></g>'
    for node in page.nodes:
        yield f'<g class="node"><title>{html.escape(node.name)}</title>'
        for left, top, wide, high, corner in _outlines(node):
            style = _STYLES[node.kind]
            yield (
                f'<rect x="{left:.2f}" y="{top:.2f}" width="{wide:.2f}" height="{high:.2f}" rx="{corner:.2f}" '
                f'fill="{style.fill}" stroke="{_INK}" stroke-width="{style.pen:g}"/>'
            )
        yield from (_svg_words(words, node.kind == "text") for words in node.words)
        yield "</g>"
    yield from (_svg_words(words, True) for words in page.words)
    yield "</svg>\n"


def _svg_words(words: _Words, outside: bool) -> str:
    look = (' class="ink"' if outside else "") + (' font-weight="bold"' if words.bold else "")
    place = f'x="{words.x:.2f}" y="{words.y:.2f}" font-size="{words.size}" text-anchor="{words.anchor}"'
    return f"<text{look} {place}>{html.escape(words.text)}</text>"


def _png(page: Drawing) -> bytes:
    figure = Figure(figsize=(page.width / 72, page.height / 72))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, page.width), ylim=(page.height, 0))
    axes.set_axis_off()

    def rectangle(left: float, top: float, wide: float, high: float, corner: float, style: dict[str, Any]) -> None:
        shape = f"round,pad=0,rounding_size={corner}" if corner else "square,pad=0"
        axes.add_patch(FancyBboxPatch((left, top), wide, high, boxstyle=shape, **style))

    for frame in page.frames:
        style = {"fc": "none", "ec": _INK, "ls": (0, (5, 3))} if frame.dashed else {"fc": _PALE, "ec": _PALE_EDGE}
        rectangle(frame.left, frame.top, frame.width, frame.height, 0, style)
    for points in page.arrows:
        xs, ys = zip(*[*points[:-1], _base(points)], strict=True)
        axes.plot(xs, ys, color=_INK, lw=1, solid_joinstyle="miter", solid_capstyle="butt")
        axes.add_patch(Polygon(_head(points), closed=True, fc=_INK, ec="none"))
    for node in page.nodes:
        for left, top, wide, high, corner in _outlines(node):
            look: dict[str, Any] = {
                "fc": _STYLES[node.kind].fill,
                "ec": _INK,
                "lw": _STYLES[node.kind].pen,
                "zorder": 3,
            }
            if node.width == node.height == 2 * corner:
                axes.add_patch(Circle(node.middle, corner, **look))
            else:
                rectangle(left, top, wide, high, corner, look)
    side = {"start": "left", "middle": "center", "end": "right"}
    for words in [*page.words, *(words for node in page.nodes for words in node.words)]:
        axes.text(words.x, words.y, words.text, size=words.size, ha=side[words.anchor], va="baseline", zorder=4,
                  weight="bold" if words.bold else "normal")  # fmt: skip
    return plots.file(figure, format="png", dpi=DPI, metadata={"Title": page.title})


def _outlines(node: _Node) -> list[tuple[float, float, float, float, float]]:
    """Return (left, top, width, height, radius of the corners) of a node's rectangles, the outer one first."""
    if node.kind == "text":
        return []
    style = _STYLES[node.kind]
    corner = (node.height / 2 if node.kind == "join" else 6.0) if style.rounded else 0.0
    outlines = [(node.left, node.top, node.width, node.height, corner)]
    if style.double:
        outlines.append((node.left + 3, node.top + 3, node.width - 6, node.height - 6, 0.0))
    return outlines


def _base(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the point where an arrow's line ends and its head begins."""
    (x0, y0), (x, y) = points[-2:]
    far = math.dist((x0, y0), (x, y)) or 1.0
    return x - (x - x0) / far * _HEAD, y - (y - y0) / far * _HEAD


def _head(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the corners of an arrow's head, its tip first."""
    x, y = points[-1]
    bx, by = _base(points)
    across, along = (by - y) * 0.4, (x - bx) * 0.4
    return [(x, y), (bx + across, by + along), (bx - across, by - along)]


def _node(name: str, box: Box, shape: str, left: float, top: float, width: float) -> _Node:
    """Return a box with its lines of text, and below them in small print: merged layers left, the shape right."""
    if box.kind == "text":
        (text,) = box.lines
        return _Node(name, "text", left, top, width, _LINE, (_Words(text, left + width / 2, top + 11),))
    pad = 4.0 + 3 * _STYLES[box.kind].double
    y, words = top + pad, []
    for line in box.lines:
        words.append(_Words(line, left + width / 2, y + 11))
        y += _LINE
    then = ", ".join(box.then)
    if then or shape:
        if then:
            words.append(_Words(then, left + _MARGIN, y + 9, _SMALL, "start"))
        if shape:
            words.append(_Words(shape, left + width - _MARGIN, y + 9, _SMALL, "end"))
        y += _SMALL_LINE
    return _Node(name, box.kind, left, top, width, y + pad - top, tuple(words))


def _shortened(graph: Graph) -> Graph:
    boxes = {n: b if b.kind in ("text", "join", "block") or not b.short else replace(b, lines=(b.short,))
             for n, b in graph.boxes.items()}  # fmt: skip
    return replace(graph, boxes=boxes)


def _shape_label(panel: Panel, graph: Graph, name: str) -> str:
    """Return the shape to write on a box; "" for linear layers, whose label has it, and for unchanged shapes."""
    box = graph.boxes[name]
    if box.kind in ("text", "join") or len(box.shape) < 3:
        return ""
    if box.flattened:
        return shape_text(box.shape) + (f" = {math.prod(box.shape)}" if math.prod(box.shape[1:]) > 1 else "")
    changed = [graph.boxes[b].shape for b in graph.before(name)] != [box.shape]
    return shape_text(box.shape) if changed or (panel.every_shape and box.kind in ("conv", "pool")) else ""


def _width(box: Box, shape: str) -> float:
    """Return the width that a box needs for its words."""
    lines = [72 * inches(line, _SIZE) for line in box.lines]
    if box.kind == "text":
        return max(lines)
    small = [72 * inches(text, _SMALL) for text in (", ".join(box.then), shape) if text]
    inside = max(*lines, sum(small) + 10 * (len(small) - 1)) if small else max(lines)
    if box.kind == "join" and len(box.lines[0]) == 1:
        return _LINE + 8  # equal to its height, for a circle
    return inside + 2 * _MARGIN + 6 * _STYLES[box.kind].double
