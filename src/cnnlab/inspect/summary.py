"""A network layer by layer: output shape, parameters, multiply-adds and receptive field.

All are measured by running the network on the meta device, so this works for networks of other libraries too. The
receptive field is unknown after operations that reorder dimensions or pixels (transformer tokens, channels-last layers,
shuffled channels).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from cnnlab.io.errors import CnnlabError, reason, unknown
from cnnlab.io.tables import Table, number, to_json, wrap
from cnnlab.io.text import markdown as escaped
from cnnlab.models import build_model, default_image_size


@dataclass(frozen=True)
class Layer:
    """A row of the table.

    path: name of the module, such as `3.0.conv1`. output: shape without the batch. parameters, multiply_adds: including
    submodules. receptive_field: side of the square of input pixels that one output value depends on, including padding
    if it is larger than the image; None if unknown.
    """

    path: str
    type: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int
    receptive_field: int | None


@dataclass(frozen=True)
class Summary:
    """The table of a network and its totals. input: shape (C, H, W) of one image."""

    model: str
    input: tuple[int, ...]
    layers: list[Layer]
    parameters: int
    multiply_adds: int
    receptive_field: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain values."""
        return asdict(self)


def summarize(
    model: str | nn.Module,
    *,
    image_size: int | None = None,
    in_channels: int = 1,
    num_classes: int = 10,
    depth: int = 1,
) -> Summary:
    """Return the table of a network, given by name or as a module, for one image (in_channels, image_size, image_size).

    image_size: in pixels. Default: see `default_image_size`. depth: 1 for the top-level modules, as in the manual, 2
    for their submodules too, and so on; 0 for all. A module is not changed. Multiply-adds are those of convolutions and
    matrix products, as torch.utils.flop_counter counts them.

    Raise CnnlabError for an unknown name or a size that does not fit.
    """
    if depth < 0:
        raise CnnlabError(f"depth={depth}: must be 1 or more, or 0 for all layers")
    for name, value in (("channels", in_channels), ("classes", num_classes), ("image_size", image_size)):
        if value is not None and not 1 <= value <= 100_000:
            raise CnnlabError(f"{name}={value}: must lie between 1 and 100000")
    name = model if isinstance(model, str) else type(model).__name__
    size = image_size or default_image_size(name)
    if isinstance(model, str):
        with torch.device("meta"):
            net = build_model(model, num_classes=num_classes, in_channels=in_channels, image_size=size)
    else:
        net = copy.deepcopy(model)
    return _measure(name, net.to("meta").eval(), (in_channels, size, size), depth)


def _measure(name: str, net: nn.Module, shape: tuple[int, ...], depth: int) -> Summary:
    fields = _ReceptiveFields()
    outputs: dict[str, tuple[tuple[int, ...], int | None]] = {}  # path -> shape and receptive field

    def record(path: str, output: Any) -> None:
        tensor = next((t for t in tree_leaves(output) if isinstance(t, Tensor)), None)
        if tensor is not None:
            outputs[path] = (tuple(tensor.shape[1:]), fields.of(tensor))

    for path, module in net.named_modules():
        module.register_forward_hook(lambda _m, _i, output, path=path: record(path, output))
    x = torch.zeros(1, *shape, device="meta")
    fields.begin(x)
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), fields, counter:
            net(x)
    except (RuntimeError, TypeError, ValueError) as error:  # such as a forward pass that reads values
        raise CnnlabError(
            f"{name} cannot be run without values, on an image of {_shape(shape)}: {reason(error, 200)}"
        ) from error
    root = type(net).__name__
    flops = {path: sum(counts.values()) for path, counts in counter.get_flop_counts().items()}

    def row(path: str, module: nn.Module) -> Layer:
        parameters = sum(p.numel() for p in module.parameters())
        multiply_adds = flops.get(f"{root}.{path}" if path else root, 0) // 2  # a multiply-add is two operations
        output, field = outputs[path]
        return Layer(path, type(module).__name__, output, parameters, multiply_adds, field)

    whole = row("", net)
    layers = [
        row(path, module)
        for path, module in net.named_modules()
        if path and path in outputs and (depth == 0 or path.count(".") < depth)
    ]
    return Summary(name, shape, layers, whole.parameters, whole.multiply_adds, whole.receptive_field)


@dataclass(frozen=True)
class _Field:
    """The receptive field of a tensor's values, in pixels of the image. size: None if unknown.

    step: distance between the fields of neighbouring values. spread: by how much the union of all fields exceeds one
    field, after flattening: a linear layer combines them all.
    """

    size: int | None
    step: int
    spread: int = 0


class _ReceptiveFields(TorchDispatchMode):
    """The receptive fields of all tensors that are computed from the input.

    A window over k values with fields of `size` pixels, `step` apart, has a field of size + (k - 1) * step pixels.
    """

    def __init__(self) -> None:
        super().__init__()
        # Holds the tensors too, since the id of a freed tensor may be reused.
        self._known: dict[int, tuple[Tensor, _Field]] = {}

    def begin(self, x: Tensor) -> None:
        """Start with the image x, whose pixels have fields of one pixel."""
        self._known[id(x)] = (x, _Field(1, 1))

    def of(self, x: Tensor) -> int | None:
        """Return the receptive field of x's values; None if unknown."""
        return self._known[id(x)][1].size if id(x) in self._known else None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        sources = [self._known[id(t)][1] for t in tree_leaves((args, kwargs)) if id(t) in self._known]
        if sources:
            sizes = [f.size for f in sources]
            field = _Field(None, 1)
            if None not in sizes:
                size = max(s for s in sizes if s is not None)
                field = _Field(size, max(f.step for f in sources), max(f.spread for f in sources))
                field = _after(func.overloadpacket, args, output, size, field)
            for t in tree_leaves(output):
                if isinstance(t, Tensor):
                    self._known[id(t)] = (t, field)
        return output


def _after(op: Any, args: Sequence[Any], output: Any, size: int, field: _Field) -> _Field:
    """Return the field of the output of `op`, for inputs with `field` of size `size`."""
    aten, step = torch.ops.aten, field.step
    if op is aten.convolution:
        kernel, stride, dilation = args[1].shape[-1], args[3][-1], args[5][-1]
        return _Field(size + dilation * (kernel - 1) * step, step * stride)
    if op in (aten.max_pool2d_with_indices, aten.avg_pool2d):
        kernel = args[1][-1]
        stride = args[2][-1] if len(args) > 2 and args[2] else kernel
        return _Field(size + (kernel - 1) * step, step * stride)
    if op in (aten.addmm, aten.mm, aten.linear):
        return _Field(size + field.spread, step)
    source = args[0] if args and isinstance(args[0], Tensor) else None
    result = output[0] if isinstance(output, tuple) else output
    if source is None or source.ndim != 4 or source.shape[-1] == 1 or not isinstance(result, Tensor):
        return field
    if op in (aten.permute, aten.roll, aten.transpose) or (result.ndim != 4 and not _pooled(source, result)):
        return _Field(None, step)
    side, side_after = source.shape[-1], result.shape[-1] if result.ndim == 4 else 1
    if result.ndim == 2 and result.shape[1] == source[0].numel():  # flattened: combines nothing yet
        return _Field(size, 0, (side - 1) * step)
    if side_after == 1 < side:  # global pooling
        return _Field(size + (side - 1) * step, 0)
    if op is aten._adaptive_avg_pool2d and side_after < side:
        window = -(-side // side_after) + 1  # the widest of its uneven windows
        return _Field(size + (window - 1) * step, step * side // side_after)
    return field


def _pooled(x: Tensor, result: Tensor) -> bool:
    """Return whether `result` is x (B, C, H, W) flattened per image, or has one value per channel."""
    return tuple(result.shape) in ((len(x), x[0].numel()), (len(x), x.shape[1]))


def summary_format(name: str) -> Callable[[Summary], str]:
    """Return the function that formats a network's table as `name`: table, markdown or json."""
    formats = {"table": _table, "markdown": _markdown, "json": lambda s: to_json(s.to_dict())}
    if name not in formats:
        raise unknown("format", name, formats)
    return formats[name]


_HEAD = ("layer", "type", "output", "parameters", "multiply-adds", "receptive field")


def _rows(summary: Summary) -> list[list[str]]:
    rows = []
    for layer in summary.layers:
        counts = [f"{count:,}" if count else "" for count in (layer.parameters, layer.multiply_adds)]
        rows.append([layer.path, layer.type, _shape(layer.output), *counts, number(layer.receptive_field, "d")])
    total = [f"{summary.parameters:,}", f"{summary.multiply_adds:,}", number(summary.receptive_field, "d")]
    return [*rows, ["total", "", "", *total]]


def _table(summary: Summary) -> str:
    table = Table(*_HEAD, left=(1,))
    for row in _rows(summary):
        table.add_row(*row)
    note = "receptive field: side in pixels, including padding if larger than the image"
    return f"{wrap(_title(summary))}\n\n{table}\n\n{note}"


def _markdown(summary: Summary) -> str:
    lines = [_HEAD, ("---", "---", "---:", "---:", "---:", "---:"), *_rows(summary)]
    table = "\n".join("| " + " | ".join(map(escaped, line)) + " |" for line in lines)
    return f"{_title(summary)}\n\n{table}"


def _title(summary: Summary) -> str:
    return (
        f"{summary.model}, one image of {_shape(summary.input)}: {summary.parameters:,} parameters, "
        f"{summary.multiply_adds / 1e6:,.1f} million multiply-adds"
    )


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
