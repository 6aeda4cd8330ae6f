"""A network as a graph of boxes and arrows, traced from its forward function.

trace(model)      one box per layer or operation, with its output shape
merged(graph)     activations and the like merged into the layer before them
collapsed(graph)  one box per top-level block
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, fx, nn

from cnnlab.io.errors import CnnlabError, reason


@dataclass(frozen=True)
class Box:
    """One box. then: layers merged into it; shape: of its output, (C, H, W) or (C,); scope: its blocks, outer first."""

    lines: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    short: str = ""
    then: tuple[str, ...] = ()
    scope: tuple[str, ...] = ()
    flattened: bool = False


@dataclass(frozen=True)
class Graph:
    """Boxes in the order of computation, and arrows between them by name."""

    boxes: dict[str, Box]
    arrows: tuple[tuple[str, str], ...]

    def before(self, name: str) -> list[str]:
        """Return the sources of the arrows into `name`."""
        return [a for a, b in self.arrows if b == name]

    def after(self, name: str) -> list[str]:
        """Return the targets of the arrows out of `name`."""
        return [b for a, b in self.arrows if a == name]

    def main_path(self) -> list[str]:
        """Return the longest path through the graph; shortcuts leave and rejoin it."""
        longest: dict[str, list[str]] = {}
        for name in self.boxes:
            paths = [longest[b] for b in self.before(name)]
            longest[name] = [*max(paths, key=len, default=[]), name]
        return max(longest.values(), key=len)

    def split(self, name: str, label: str) -> tuple[Graph, Graph]:
        """Return the boxes before `name`, and the rest behind a new box with `label` and the shape between the two."""
        cut = list(self.boxes).index(name)
        before, after = (dict(list(self.boxes.items())[part]) for part in (slice(cut), slice(cut, None)))
        (source,) = {a for a, b in self.arrows if a in before and b in after}
        shape = self.boxes[source].shape
        start = Box((f"{label}, {shape_text(shape)}",), "text", shape)
        arrows = tuple(("start" if a == source else a, b) for a, b in self.arrows if b in after)
        return Graph(before, tuple(a for a in self.arrows if a[1] in before)), Graph({"start": start, **after}, arrows)

    def without(self, name: str, keep: str) -> Graph:
        """Return the graph without the box `name`; the arrow from `keep` to it leads on to its targets."""
        onward = [(keep, b) for b in self.after(name)]
        arrows = tuple(a for a in self.arrows if name not in a) + tuple(onward)
        return Graph({k: v for k, v in self.boxes.items() if k != name}, arrows)


def layer_label(layer: nn.Module) -> tuple[str, str]:
    """Return the label of a layer's box, from the layer's attributes, and its kind."""
    kind = type(layer).__name__
    if isinstance(layer, nn.Conv2d):
        groups = f", {layer.groups} groups" if layer.groups > 1 else ""
        return f"conv {_size(layer.kernel_size)}, {layer.out_channels}{_steps(layer)}{groups}", "conv"
    if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d):
        name = "max-pool" if isinstance(layer, nn.MaxPool2d) else "avg-pool"
        return f"{name} {_size(layer.kernel_size)}{_steps(layer)}", "pool"
    if isinstance(layer, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
        name = "avg-pool" if isinstance(layer, nn.AdaptiveAvgPool2d) else "max-pool"
        size = _size(layer.output_size)
        return (f"global {name}" if size == "1×1" else f"{name} to {size}"), "pool"
    if isinstance(layer, nn.Linear):
        return f"linear {layer.out_features}", "linear"
    if isinstance(layer, nn.Dropout):
        return f"dropout {layer.p:g}", "other"
    if kind.startswith("BatchNorm"):  # PyTorch's, and ours
        return "batch norm", "other"
    return {"Sigmoid": "sigmoid", "Tanh": "tanh", "Flatten": "flatten"}.get(kind, kind), "other"


def trace(model: nn.Module, image: tuple[int, int, int], *, name: str = "image") -> Graph:
    """Trace `model` on one image of shape (C, H, W): a box per layer or operation, an arrow per tensor.

    The forward function itself is traced, with its shortcuts, additions and functional activations. Nothing is
    computed: shapes come from a copy on the meta device. name: label of the input. Raise CnnlabError for a network
    whose forward depends on values, and for an image size that does not fit.
    """
    model = _on_meta(model)
    tracer = _Tracer()
    try:
        traced = tracer.trace(model)
        shapes = _Shapes(fx.GraphModule(model, traced))
        shapes.run(torch.empty(1, *image, device="meta"))
    except (RuntimeError, TypeError, ValueError, fx.proxy.TraceError) as error:
        raise CnnlabError(f"cannot trace {type(model).__name__} with images of {image}: {reason(error)}") from error
    boxes: dict[str, Box] = {}
    stands_for: dict[str, str] = {}  # node without a box -> the node whose tensor it passes on
    arrows: list[tuple[str, str]] = []
    for node in traced.nodes:
        inputs = list(dict.fromkeys(stands_for.get(n.name, n.name) for n in node.all_input_nodes))
        layer = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if node.op == "output" or isinstance(layer, nn.Identity):
            stands_for[node.name] = inputs[0]
            continue
        shape = shapes.shapes[node.name]
        if node.op == "placeholder":
            label, kind = f"{name}, {shape_text(shape)}", "text"
        else:
            label, kind = layer_label(layer) if layer is not None else _operation(node)
        short = "BN" if label == "batch norm" else label.replace("stride ", "/")
        boxes[node.name] = Box((label,), kind, shape, short, scope=tracer.scopes[node.name])
        arrows += [(i, node.name) for i in inputs]
    return Graph(boxes, tuple(arrows))


def merged(graph: Graph) -> Graph:
    """Merge batch norm, activation, dropout and flatten into the box of the layer before them."""
    for name, box in graph.boxes.items():
        before = graph.before(name)
        if box.kind != "other" or len(before) != 1 or graph.after(before[0]) != [name]:
            continue
        owner = graph.boxes[before[0]]
        if owner.kind in ("text", "other"):
            continue
        if owner.kind == "join":
            owner = replace(owner, lines=(f"{owner.lines[0]}, {box.lines[0]}",))
        elif box.lines == ("flatten",):
            owner = replace(owner, flattened=True)
        else:
            owner = replace(owner, then=(*owner.then, box.short))
        graph = Graph({**graph.boxes, before[0]: owner}, graph.arrows).without(name, before[0])
    return graph


def collapsed(graph: Graph) -> Graph:
    """Replace each top-level block by one box that lists its layers; equal layers in a row are counted."""
    owner = {name: box.scope[0] if box.scope else name for name, box in graph.boxes.items()}
    boxes: dict[str, Box] = {}
    for key, names in groupby(graph.boxes, key=owner.__getitem__):
        inside = [graph.boxes[n] for n in names]
        if inside[0].scope:
            runs = [(label, len(list(same))) for label, same in groupby(b.short for b in inside)]
            lines = tuple(f"{n} × {label}" if n > 1 else label for label, n in runs)
            boxes[key] = replace(inside[-1], lines=lines, kind="block", short="", then=(), scope=())
        else:
            boxes[key] = inside[0]
    arrows = dict.fromkeys((owner[a], owner[b]) for a, b in graph.arrows if owner[a] != owner[b])
    return Graph(boxes, tuple(arrows))


# Tracing


class _Tracer(fx.Tracer):
    """A tracer through every block, down to modules without children."""

    def __init__(self) -> None:
        super().__init__()
        self.scopes: dict[str, tuple[str, ...]] = {}
        self._inside: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002 - fx's signature
        return not any(True for _ in m.children())

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        name = self.path_of_module(m)
        self._inside.append(name)
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self._inside.pop()

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, *args, **kwargs)
        self.scopes[node.name] = tuple(self._inside[:-1] if kind == "call_module" else self._inside)
        return node


class _Shapes(fx.Interpreter):
    """An interpreter that records the shape of every output, without the batch dimension."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n.name] = tuple(value.shape[1:])
        return value


def _on_meta(model: nn.Module) -> nn.Module:
    """Return a copy of `model` on the meta device; the weights are not copied."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta")) for p in model.parameters()}
    memo |= {id(b): b.detach().to("meta") for b in model.buffers()}
    return copy.deepcopy(model, memo).eval()


def _operation(node: fx.Node) -> tuple[str, str]:
    """Return the label and kind of a function or method that forward calls."""
    if node.target in (operator.add, operator.iadd, torch.add, "add", "add_"):
        return "+", "join"
    if node.target in (torch.cat, torch.concat):
        return "concat", "join"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return {"relu": "ReLU", "relu_": "ReLU"}.get(name, name), "other"


def _size(value: Any) -> str:
    height, width = value if isinstance(value, tuple) else (value, value)
    return f"{height}×{width}"


def _steps(layer: nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) -> str:
    """Return the stride unless it is 1, and the padding unless it is 0."""
    text = ""
    for name, value, usual in (("stride", layer.stride, 1), ("pad", layer.padding, 0)):
        one = value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value
        text += f", {name} {one if not isinstance(one, tuple) else _size(one)}" if one != usual else ""
    return text


def shape_text(shape: tuple[int, ...]) -> str:
    """Return the shape as text: 64×56×56."""
    return "×".join(map(str, shape))
