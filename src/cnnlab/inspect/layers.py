"""Find the feature maps of a network, in the order in which they are computed, and choose those to show.

They are found in a forward pass, so this also works for networks from other libraries and your own, with functional
calls, modules that are used twice and channels-last layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.io.errors import CnnlabError, unknown

_MOST_STAGES = 6
# Modules that return their input in eval mode.
NO_OPERATION = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
# Their output has the size that the classifier needs, even if that repeats positions.
_RESIZED = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@dataclass(frozen=True)
class SpatialLayer:
    """An output of the shape (B, C, H, W), with H and W above 1, in the forward pass.

    path: the module that returns it, such as `layer4`; call: number of the call of this module, from 1. channels,
    height, width: of the output. channels_last: whether it is (B, H, W, C).
    """

    path: str
    call: int
    channels: int
    height: int
    width: int
    channels_last: bool = False

    def channels_first(self, output: Tensor) -> Tensor:
        """Return the layer's output as (B, C, H, W)."""
        return output.permute(0, 3, 1, 2) if self.channels_last else output


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode; restore the mode of each module at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def watch(
    modules: Iterator[tuple[str, nn.Module]], record: Callable[[str, int, nn.Module, Any], Any]
) -> Iterator[None]:
    """Call `record(path, call, module, output)` after each call of each module.

    A result other than None replaces the output. call: 1 for the first call of the module, 2 for the next, ...
    """
    calls: dict[str, int] = {}
    hooks = []

    def hook(path: str) -> Callable[..., Any]:
        def after(module: nn.Module, _args: Any, output: Any) -> Any:
            calls[path] = calls.get(path, 0) + 1
            return record(path, calls[path], module, output)

        return after

    try:
        for path, module in modules:
            hooks.append(module.register_forward_hook(hook(path)))
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _measured(model: nn.Module, x: Tensor) -> tuple[list[SpatialLayer], int]:
    """Return the spatial layers, and how many later modules output tokens (B, N, C) of at least as many positions.

    Spatial layers keep positions of the image; they are in the order of the forward pass. x: preprocessed square images
    (B, C, H, W); only the first is used. If several modules return the same tensor, the outermost one is named. The
    output of an adaptive pooling to a fixed size does not count.
    """
    x = torch.cat((x[:1], x[:1]))  # two, so that a batch of windows or patches can be told from a batch of images
    outputs: dict[int, tuple[Tensor, SpatialLayer | None]] = {}  # by id, in order of execution; holds the tensors
    tokens: list[int] = []  # N of each output (B, N, C) since the last spatial layer

    def record(path: str, call: int, module: nn.Module, output: Any) -> None:
        if not isinstance(output, Tensor) or isinstance(module, NO_OPERATION) or len(output) != len(x):
            return
        known = outputs.pop(id(output), None)
        layer = _layer(path, call, output)
        if isinstance(module, _RESIZED) or output is x or (known is not None and known[1] is None):
            layer = None
        outputs[id(output)] = (output, layer)
        if layer is not None:
            tokens.clear()
        elif output.ndim == 3 and known is None:
            tokens.append(output.shape[1])

    with eval_mode(model), torch.no_grad(), watch(iter(model.named_modules()), record):
        model(x)
    found = [layer for _, layer in outputs.values() if layer is not None]
    # Square images have square feature maps, and none is larger than the first. Neither is true of attention heads.
    found = [layer for layer in found if layer.height == layer.width <= found[0].height] or found
    last = found[-1].height * found[-1].width if found else 0
    return found, sum(n >= last for n in tokens)


def _layer(path: str, call: int, output: Tensor) -> SpatialLayer | None:
    if output.ndim != 4:
        return None
    _, a, b, c = output.shape
    if a == b != c and a > 1:  # the images are square
        return SpatialLayer(path, call, c, a, b, channels_last=True)
    return SpatialLayer(path, call, a, b, c) if b > 1 and c > 1 else None


def activation_layer(model: nn.Module, x: Tensor, path: str | None = None) -> SpatialLayer:
    """Return the layer for class-activation maps.

    path: path of a module. Default: the last layer whose output has more than one position. x: preprocessed images (B,
    C, H, W). Raise CnnlabError for a network without such a layer, such as a transformer or one without convolutions,
    and for a path without one.
    """
    found, tokens = _measured(model, x)
    if path is not None:
        named = [layer for layer in found if layer.path == path]
        if path not in dict(model.named_modules()):
            raise unknown("layer", path, [layer.path for layer in found])
        if not named:
            raise CnnlabError(f"layer {path!r} has no output (B, C, H, W) of several positions; name another one")
        return named[-1]
    name = type(model).__name__
    if not found:
        raise CnnlabError(
            f"{name} has no layer whose output has several positions, so no class-activation map; "
            "occlusion works for any network"
        )
    if tokens > len(found):
        raise CnnlabError(
            f"{name} works on tokens, as a transformer does, and has no class-activation map; occlusion works for any "
            "network"
        )
    return found[-1]


def stages(model: nn.Module, x: Tensor) -> list[SpatialLayer]:
    """Return the layers whose feature maps are shown: the first one, and the last one of each size.

    x: preprocessed images (B, C, H, W). There are at most six, from the first to the last, and none for a network
    without spatial layers.
    """
    found, _ = _measured(model, x)
    ends = [a for i, a in enumerate(found) if a is found[-1] or found[i + 1].height < a.height]
    shown = [*found[:1], *(layer for layer in ends if layer not in found[:1])]
    if len(shown) > _MOST_STAGES:
        step = (len(shown) - 1) / (_MOST_STAGES - 1)
        shown = [shown[round(i * step)] for i in range(_MOST_STAGES)]
    return shown


@torch.no_grad()
def feature_maps(model: nn.Module, x: Tensor, layers: Sequence[SpatialLayer]) -> list[Tensor]:
    """Return the outputs (B, C, H, W) of the layers for preprocessed images x (B, C, H, W)."""
    wanted = {(layer.path, layer.call): i for i, layer in enumerate(layers)}
    found: dict[int, Tensor] = {}

    def record(path: str, call: int, _module: nn.Module, output: Any) -> None:
        if (path, call) in wanted:
            i = wanted[path, call]
            found[i] = layers[i].channels_first(output).clone()  # a later module may work in place

    paths = {layer.path for layer in layers}
    with eval_mode(model), watch(((p, m) for p, m in model.named_modules() if p in paths), record):
        model(x)
    return [found[i] for i in range(len(layers))]


def first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """Return path and module of the first convolution, or None if there is none."""
    return next(((path, m) for path, m in model.named_modules() if isinstance(m, nn.Conv2d)), None)
