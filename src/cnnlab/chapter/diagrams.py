"""Diagrams of networks, side by side, from top to bottom; Graphviz does the layout.

`drawing` returns several graphs as a graphviz.Digraph, `render` returns that as SVG or PNG.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from cnnlab.chapter.graphs import Box, Graph, shape_text
from cnnlab.io.errors import CnnlabError, reason

DPI = 200  # of the PNGs; the SVGs have no pixels

# Distinct for colour-blind readers, and in greyscale by lightness, corners and frames.
_STYLES = {
    "conv": {"fillcolor": "#b9d7ee", "style": "filled"},
    "pool": {"fillcolor": "#fde6bd", "style": "filled,rounded"},
    "linear": {"fillcolor": "#bda4d3", "style": "filled", "penwidth": "1.8"},
    "block": {"fillcolor": "#b9d7ee", "style": "filled", "peripheries": "2"},
    "other": {"fillcolor": "#ffffff", "style": "filled,rounded"},
    "join": {"fillcolor": "#ffffff", "style": "filled,rounded"},
    "text": {"shape": "plaintext"},
}
_FONT, _SIZE, _SMALL = "Arial", 11, 9


@dataclass(frozen=True)
class Panel:
    """One graph in a drawing, under its title."""

    title: str
    graph: Graph
    every_shape: bool = False  # write the shape of every layer, not only of those that change it
    short: bool = False  # omit padding, and write stride 2 as /2
    output: str = ""  # label at the end of an arrow out of the last box; "": no arrow
    frame: Sequence[str] = ()  # boxes inside a dashed frame
    frame_title: str = ""
    frame_blocks: bool = False  # a pale background behind each top-level block


def drawing(panels: Sequence[Panel], title: str) -> Any:
    """Return the panels side by side as a `graphviz.Digraph`. Raise CnnlabError without the package graphviz."""
    try:
        import graphviz
    except ImportError as error:
        raise CnnlabError("drawing needs the Python package graphviz: pip install 'cnnlab[figures]'") from error
    font = {"fontname": _FONT, "fontsize": str(_SIZE)}
    dot = graphviz.Digraph(title, node_attr={"shape": "box", "margin": "0.06,0.04", "height": "0.3", **font})
    dot.attr("graph", nodesep="0.3", ranksep="0.22", pad="0.1", fontname=_FONT)
    dot.attr("graph", splines="spline", newrank="true", ordering="out")  # shortcuts on the right; aligned columns
    dot.attr("edge", arrowsize="0.6", color="#333333")
    for i, panel in enumerate(panels):
        _draw_panel(dot, panel, f"p{i}")
    notes = []
    if any(p.short for p in panels):
        notes.append("/2: stride 2; padding omitted")
    if any(b.kind == "block" for p in panels for b in p.graph.boxes.values()):
        notes.append("double frame: a block")
    if notes:
        dot.attr("graph", label="; ".join(notes), fontsize=str(_SMALL), labelloc="b")
    return dot


def render(dot: Any, format: str) -> bytes:
    """Return a drawing as an SVG or PNG file. Raise CnnlabError if `dot` is not installed or fails."""
    import graphviz

    dot = dot.copy()
    if format == "png":
        dot.attr("graph", dpi=str(DPI))
    try:
        content = dot.pipe(format=format)
    except graphviz.ExecutableNotFound as error:
        raise CnnlabError(
            "drawing needs the program `dot` of Graphviz: apt install graphviz, dnf install graphviz, "
            "brew install graphviz or conda install graphviz"
        ) from error
    except graphviz.CalledProcessError as error:
        raise CnnlabError(f"dot cannot draw {dot.name}: {reason(error)}") from error
    assert isinstance(content, bytes)
    return content


def _draw_panel(dot: Any, panel: Panel, prefix: str) -> None:
    graph = _shortened(panel.graph) if panel.short else panel.graph
    main = graph.main_path()
    labels = {name: _shape_label(panel, name) for name in graph.boxes}
    width = max(_width(box, labels[name]) for name, box in graph.boxes.items())
    group = f"{prefix}c"  # graphviz keeps a group on one straight line

    def background(name: str) -> str:
        if name in panel.frame:
            return "frame"
        return "".join(graph.boxes[name].scope[:1]) if panel.frame_blocks else ""

    with dot.subgraph(name=f"cluster_{group}") as part:
        part.attr(penwidth="0", margin="6")
        part.node(f"{group}_title", f"<<B>{html.escape(panel.title)}</B>>", shape="plaintext", group=group,
                  fontsize=str(_SIZE + 2), height="0.2")  # fmt: skip
        dot.edge(f"{group}_title", f"{prefix}_{main[0]}", style="invis", weight="20")
        for back, names in groupby(graph.boxes, key=background):
            with part.subgraph(name=f"cluster_{group}_{back}") if back else nullcontext(part) as place:
                if back == "frame":
                    style = {"label": panel.frame_title, "labeljust": "l", "style": "dashed", "color": "#333333"}
                    place.attr(penwidth="1", margin="8", fontsize=str(_SIZE), fontname=_FONT, **style)
                elif back:
                    style = {"style": "filled", "fillcolor": "#f1f1f1", "color": "#c8c8c8", "label": ""}
                    place.attr(penwidth="1", margin="8", **style)
                for name in names:
                    on_main = group if name in main else ""
                    _draw_box(place, f"{prefix}_{name}", graph.boxes[name], labels[name], width, on_main)
        if panel.output:
            part.node(f"{prefix}_out", panel.output, shape="plaintext", height="0.2", group=group)
            dot.edge(f"{prefix}_{main[-1]}", f"{prefix}_out", weight="20")
    # With several additions, shortcuts arrive and leave at different corners.
    arriving, leaving = ("ne", "se") if sum(b.kind == "join" for b in graph.boxes.values()) > 1 else ("e", "e")
    for a, b in graph.arrows:
        ends = f"{prefix}_{a}", f"{prefix}_{b}"
        if b in main[1:] and main[main.index(b) - 1] == a:
            dot.edge(*ends, weight="20")
        else:  # a shortcut leaves and returns at the side
            joins = {"headport": arriving} if graph.boxes[b].kind == "join" and len(graph.before(b)) == 2 else {}
            port = leaving if graph.boxes[a].kind == "join" else "e"
            side = a in main and graph.boxes[a].kind in ("text", "join")
            leaves = {"tailport": port} if side else {"tailport": "s"} if a not in main else {}
            dot.edge(*ends, weight="0", **joins, **leaves)


def _shortened(graph: Graph) -> Graph:
    boxes = {n: b if b.kind in ("text", "join", "block") or not b.short else replace(b, lines=(b.short,))
             for n, b in graph.boxes.items()}  # fmt: skip
    return replace(graph, boxes=boxes)


def _draw_box(part: Any, name: str, box: Box, shape: str, width: float, group: str) -> None:
    style = {**_STYLES[box.kind], "group": group}
    if box.kind == "text":
        part.node(name, box.lines[0], height="0.2", **style)
    elif box.kind == "join":
        if box.lines[0] == "+":
            style |= {"shape": "circle", "fixedsize": "true", "width": "0.27", "height": "0.27"}
        part.node(name, box.lines[0], **style)
    else:
        part.node(name, _table(box, shape, width if group else _width(box, shape)), **style)


def _table(box: Box, shape: str, width: float) -> str:
    """Return the lines, then a smaller one: what follows the layer on the left, the shape on the right."""
    rows = "".join(f'<TR><TD COLSPAN="2" WIDTH="{width:.0f}">{html.escape(line)}</TD></TR>' for line in box.lines)
    then = ", ".join(box.then)
    if then or shape:
        left = _text_width(then, _SMALL)
        rows += "<TR>"
        for text, align, wide in ((then, "LEFT", left), (shape, "RIGHT", width - left - 2)):
            inside = f'<FONT POINT-SIZE="{_SMALL}">{html.escape(text)}</FONT>' if text else ""
            rows += f'<TD ALIGN="{align}" WIDTH="{wide:.0f}">{inside}</TD>'
        rows += "</TR>"
    return f'<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="1">{rows}</TABLE>>'


def _shape_label(panel: Panel, name: str) -> str:
    """Return the shape to write on a box; "" for linear layers, whose label has it, and for unchanged shapes."""
    graph = panel.graph
    box = graph.boxes[name]
    if box.kind in ("text", "join") or len(box.shape) < 3:
        return ""
    if box.flattened:
        return shape_text(box.shape) + (f" = {math.prod(box.shape)}" if math.prod(box.shape[1:]) > 1 else "")
    changed = [graph.boxes[b].shape for b in graph.before(name)] != [box.shape]
    return shape_text(box.shape) if changed or (panel.every_shape and box.kind in ("conv", "pool")) else ""


def _width(box: Box, shape: str) -> float:
    """Estimate the width of the text in points; Graphviz widens a table that is too narrow."""
    if box.kind in ("text", "join"):
        return 0
    lines = [_text_width(line, _SIZE) for line in box.lines]
    last = ", ".join(box.then) + ("    " if box.then and shape else "") + shape
    return max(*lines, _text_width(last, _SMALL)) + 4


def _text_width(text: str, size: int) -> float:
    """Estimate the width in Arial, a little generously, so that columns stay equally wide."""
    ems = sum(0.3 if c in " ,.iljtf-" else 0.87 if c in "mw" else 0.74 if c.isupper() else 0.59 for c in text)
    return size * ems
