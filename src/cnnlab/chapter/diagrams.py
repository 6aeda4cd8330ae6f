"""Diagrams of networks, side by side, from top to bottom; Graphviz does the layout.

diagram(model)   any network that can be traced
drawing(panels)  several graphs as a graphviz.Digraph; render() returns it as SVG or PNG
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from torch import nn

from cnnlab.chapter.graphs import Box, Graph, merged, shape_text, trace
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
    columns: int = 1
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


def diagram(model: nn.Module, image: tuple[int, int, int], *, title: str = "", columns: int = 1) -> Any:
    """Draw any network that `trace` can follow, as a `graphviz.Digraph`: a notebook displays it, `render` saves it.

    image: shape (C, H, W). columns: more than one for deep networks. Raises: CnnlabError, as `trace` and `drawing` do.
    """
    return drawing([Panel(title, merged(trace(model, image)), columns=columns, frame_blocks=True)], title or "network")


def _draw_panel(dot: Any, panel: Panel, prefix: str) -> None:
    graph = _shortened(panel.graph) if panel.short else panel.graph
    main = graph.main_path()
    column = _columns(graph, panel.columns)
    labels = {name: _shape_label(panel, name) for name in graph.boxes}
    widths = [max(_width(b, labels[n]) for n, b in graph.boxes.items() if column[n] == c) for c in range(panel.columns)]

    def background(name: str) -> str:
        if name in panel.frame:
            return "frame"
        return "".join(graph.boxes[name].scope[:1]) if panel.frame_blocks else ""

    for c in range(panel.columns):
        group = f"{prefix}c{c}"  # graphviz keeps a group on one straight line
        mine = [n for n in graph.boxes if column[n] == c]
        with dot.subgraph(name=f"cluster_{group}") as part:
            part.attr(penwidth="0", margin="6")
            if c == 0 and panel.title:
                part.node(f"{group}_title", f"<<B>{html.escape(panel.title)}</B>>", shape="plaintext", group=group,
                          fontsize=str(_SIZE + 2), height="0.2")  # fmt: skip
                dot.edge(f"{group}_title", f"{prefix}_{mine[0]}", style="invis", weight="20")
            for back, names in groupby(mine, key=background):
                with part.subgraph(name=f"cluster_{group}_{back}") if back else nullcontext(part) as place:
                    if back == "frame":
                        style = {"label": panel.frame_title, "labeljust": "l", "style": "dashed", "color": "#333333"}
                        place.attr(penwidth="1", margin="8", fontsize=str(_SIZE), fontname=_FONT, **style)
                    elif back:
                        style = {"style": "filled", "fillcolor": "#f1f1f1", "color": "#c8c8c8", "label": ""}
                        place.attr(penwidth="1", margin="8", **style)
                    for n in names:
                        on_main = group if n in main else ""
                        _draw_box(place, f"{prefix}_{n}", graph.boxes[n], labels[n], widths[c], on_main)
            if panel.output and c == panel.columns - 1:
                part.node(f"{prefix}_out", panel.output, shape="plaintext", height="0.2", group=group)
                dot.edge(f"{prefix}_{mine[-1]}", f"{prefix}_out", weight="20")
    turns: dict[str, str] = {}
    # With several additions, shortcuts arrive and leave at different corners.
    arriving, leaving = ("ne", "se") if sum(b.kind == "join" for b in graph.boxes.values()) > 1 else ("e", "e")
    for a, b in graph.arrows:
        ends = f"{prefix}_{a}", f"{prefix}_{b}"
        if column[a] != column[b]:
            if a not in turns:
                here, there = f"{prefix}c{column[a]}", f"{prefix}c{column[b]}"
                turns[a] = _turn(dot, here, there, last=ends[0], first=f"{prefix}_{main[0]}")
            ends = turns[a], ends[1]
        if b in main[1:] and main[main.index(b) - 1] == a:
            dot.edge(*ends, weight="20")
        else:  # a shortcut leaves and returns at the side
            joins = {"headport": arriving} if graph.boxes[b].kind == "join" and len(graph.before(b)) == 2 else {}
            side = a in main and column[a] == column[b] and graph.boxes[a].kind in ("text", "join")
            port = leaving if graph.boxes[a].kind == "join" else "e"
            leaves = {"tailport": port} if side else {"tailport": "s"} if a not in main else {}
            dot.edge(*ends, weight="0", **joins, **leaves)


def _shortened(graph: Graph) -> Graph:
    boxes = {n: b if b.kind in ("text", "join", "block") or not b.short else replace(b, lines=(b.short,))
             for n, b in graph.boxes.items()}  # fmt: skip
    return replace(graph, boxes=boxes)


def _turn(dot: Any, here: str, there: str, last: str, first: str) -> str:
    """Draw the line from the box `last` at the foot of one column to the head of the next, level with `first`.

    Return the point there; arrows go from it to the next boxes.
    """
    foot, low, high, head = (f"{here}_{n}" for n in ("foot", "low", "high", "head"))
    style = {"shape": "point", "width": "0.01", "height": "0.01", "label": ""}
    for name, group in ((foot, here), (low, f"{here}up"), (high, f"{here}up"), (head, there)):
        dot.node(name, group=group, **style)
    for *pair, beside in ((foot, low, None), (high, head, first)):
        with dot.subgraph() as level:
            level.attr(rank="same")
            level.edge(*pair, arrowhead="none")
            if beside:
                level.node(beside)
    dot.edge(last, foot, arrowhead="none", weight="20")
    dot.edge(high, low, arrowhead="none", weight="50")
    return head


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


def _columns(graph: Graph, count: int) -> dict[str, int]:
    """Return the column of each box: top-level blocks stay whole, and columns are about equally long."""
    units = [list(names) for _, names in groupby(graph.boxes, key=lambda n: graph.boxes[n].scope[:1] or n)]
    main = set(graph.main_path())
    done, column = 0, dict[str, int]()
    for unit in units:
        length = len(main & set(unit))
        middle = done + length / 2
        column |= dict.fromkeys(unit, min(count - 1, int(count * middle / len(main))))
        done += length
    return column


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
