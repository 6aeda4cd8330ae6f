"""Statistics of each layer on some images: outputs, dead units, batch norm, gradients; with advice.

The thresholds leave room for chance: a healthy network gets no advice (docs/log.md).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.inspect.layers import NO_OPERATION, eval_mode, watch
from cnnlab.io.text import plural
from cnnlab.training.diagnosis import DEAD_REMEDY, watched_units

_GRADIENT_IMAGES = 64
_DEAD = 0.5  # of a layer's units; in published networks, up to a third can be dead on a few similar images
_LIMITS = {nn.Sigmoid: (0.0, 1.0), nn.Tanh: (-1.0, 1.0)}
_CONSTANT = 1e-3  # standard deviation over the images, relative to the magnitude of the outputs
_SATURATED = 0.5  # fraction of the outputs within a hundredth of a limit

_LARGE = 1e3  # standard deviation of the outputs
_VANISHING = 1e-4  # of the largest relative gradient


@dataclass(frozen=True)
class LayerStatistics:
    """Statistics of a layer without submodules, over all outputs of all its calls.

    path, type: of the module. mean, std, zeros: of the output values; zeros: the fraction that is exactly 0.
    image_std: standard deviation of an output value over the images, root mean square over the values. units, dead: of
    a ReLU, see `watched_units`; None for other layers. saturated: the fraction of the outputs of a sigmoid or tanh that
    are within a hundredth of a limit. gamma, beta: of a normalisation layer: minimum, quartiles and maximum over the
    channels. weight_norm, gradient_norm: L2 norms of the layer's parameters, and of the gradient of the mean loss of
    one batch. advice: what is wrong and what to try; "" if nothing is wrong.
    """

    path: str
    type: str
    mean: float
    std: float
    zeros: float
    image_std: float
    units: int | None = None
    dead: int | None = None
    saturated: float | None = None
    gamma: tuple[float, ...] | None = None
    beta: tuple[float, ...] | None = None
    weight_norm: float | None = None
    gradient_norm: float | None = None
    advice: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; None for NaN and Inf."""
        values = asdict(self)
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


class _Sums:
    """Running sums over the outputs of one layer."""

    def __init__(self, module: nn.Module) -> None:
        self._limits = next((v for kind, v in _LIMITS.items() if isinstance(module, kind)), None)
        self._count = self._images = self._first_call = 0
        self._sum = self._square = self._zeros = self._saturated = 0.0
        self._per_value: dict[tuple[int, torch.Size], Tensor] = {}  # by call: sum over the images

    def add(self, call: int, output: Tensor) -> None:
        x = _float64(output.detach())
        self._count += x.numel()
        self._first_call = self._first_call or call  # the first with floating-point output
        self._images += len(x) if call == self._first_call else 0
        self._sum += x.sum().item()
        self._square += x.square().sum().item()
        self._zeros += (x == 0).sum().item()
        if self._limits:
            low, high = self._limits
            self._saturated += ((x < low + 0.01) | (x > high - 0.01)).sum().item()
        key = call, x.shape[1:]
        self._per_value[key] = self._per_value.get(key, torch.zeros((), device=x.device)) + x.sum(0)

    def result(self, path: str, module: nn.Module) -> LayerStatistics:
        n = self._count
        mean = self._sum / n
        variance = self._square / n - mean**2
        # The sum over all values of images * (mean over the images)^2.
        between = sum(s.square().sum().item() for s in self._per_value.values()) / self._images
        image_variance = (self._square - between) / n
        gamma, beta = _scale_and_shift(module)
        weights = [p.detach() for p in module.parameters(recurse=False)]
        return LayerStatistics(
            path=path,
            type=type(module).__name__,
            mean=mean,
            std=_root(variance),
            zeros=self._zeros / n,
            image_std=_root(image_variance),
            saturated=self._saturated / n if self._limits else None,
            gamma=gamma,
            beta=beta,
            weight_norm=_l2_norm(weights) if weights else None,
        )


def _root(variance: float) -> float:
    return math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else math.nan


def layer_statistics(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor | None]]) -> list[LayerStatistics]:
    """Return the statistics of the layers of `model`, in the order of the forward pass, in eval mode.

    batches: preprocessed images (B, C, H, W) and labels (B,) int64 or None. The gradients are computed on at most 64
    images of the first batch with labels, and left out if there is none. Modules that do nothing in eval mode, such as
    dropout, are left out. The model is not changed.
    """
    sums: dict[str, _Sums] = {}
    first: tuple[Tensor, Tensor] | None = None

    def record(path: str, call: int, module: nn.Module, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and output.numel() and output.ndim >= 2:
            sums.setdefault(path, _Sums(module)).add(call, output)

    passive = (*NO_OPERATION, nn.Flatten)
    leaves = {path: m for path, m in model.named_modules() if not any(m.children()) and not isinstance(m, passive)}
    with eval_mode(model), torch.no_grad(), watched_units(model) as active:
        for x, y in batches:
            if first is None and y is not None:
                first = x[:_GRADIENT_IMAGES], y[:_GRADIENT_IMAGES]
            with watch(iter(leaves.items()), record):
                model(x)
    found = [total.result(path, leaves[path]) for path, total in sums.items()]
    for i, layer in enumerate(found):
        masks = [mask for (_, path), mask in active.items() if path == layer.path]
        if masks:
            units = torch.cat(masks)
            found[i] = replace(layer, units=len(units), dead=len(units) - int(units.sum()))
    if first is not None:
        norms = _gradient_norms(model, *first)
        found = [replace(layer, gradient_norm=norms.get(layer.path)) for layer in found]
    largest = max((_relative(layer) or 0.0 for layer in found), default=0.0)
    return [replace(layer, advice=_advice(layer, largest)) for layer in found]


def _gradient_norms(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """Return {path: L2 norm of the gradient of the module's direct parameters}, for the mean loss of a batch."""
    with torch.inference_mode(False), torch.enable_grad():
        model = copy.deepcopy(model).eval()  # a copy: some networks update their statistics when gradients are recorded
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not parameters:
            return {}
        loss = F.cross_entropy(model(x.clone()).float(), y.clone())
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    by_module: dict[str, list[Tensor]] = {}
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            by_module.setdefault(name.rpartition(".")[0], []).append(gradient)
    return {path: _l2_norm(tensors) for path, tensors in by_module.items()}


def _l2_norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(_float64(t).square().sum().item() for t in tensors))


def _float64(x: Tensor) -> Tensor:
    return (x.cpu() if x.device.type == "mps" else x).double()  # Apple's GPU has no float64


def _scale_and_shift(module: nn.Module) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Return minimum, quartiles and maximum of a norm layer's gamma and beta (PyTorch: weight, bias), else None."""
    gamma = getattr(module, "gamma", None)
    gamma = getattr(module, "weight", None) if gamma is None else gamma
    beta = getattr(module, "beta", None)
    beta = getattr(module, "bias", None) if beta is None else beta
    if (
        not isinstance(gamma, Tensor)
        or gamma.ndim == 0
        or gamma.numel() != max(gamma.shape)
        or not _is_normalization(module)
    ):
        return None, None
    return _five_numbers(gamma), _five_numbers(beta) if isinstance(beta, Tensor) else None


def _is_normalization(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__


def _five_numbers(values: Tensor) -> tuple[float, ...]:
    points = torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=torch.float64)
    return tuple(torch.quantile(values.detach().cpu().double().flatten(), points).tolist())


def _relative(layer: LayerStatistics) -> float | None:
    """Return gradient norm / weight norm; None for normalisation layers and layers without weights or gradient."""
    if layer.gradient_norm is None or not layer.weight_norm or layer.gamma is not None:
        return None
    return layer.gradient_norm / layer.weight_norm


def _advice(layer: LayerStatistics, largest: float) -> str:
    """Return the most serious problem of a layer, with what to try; "" if there is none.

    largest: the relative gradient of the layer where it is largest.
    """
    relative = _relative(layer)
    if not math.isfinite(layer.mean) or not math.isfinite(layer.std):
        return "its outputs are NaN or Inf; try a lower learning_rate, or clip_norm=1"
    if layer.dead is not None and layer.units and layer.dead >= _DEAD * layer.units:
        return f"{layer.dead} of {plural(layer.units, 'unit')} are 0 for all images; try {DEAD_REMEDY}"
    if layer.image_std <= _CONSTANT * math.hypot(layer.mean, layer.std):
        return "its output hardly depends on the image; try batch norm, another init or another learning_rate"
    if layer.saturated is not None and layer.saturated > _SATURATED:
        return f"{layer.saturated:.0%} of its outputs are saturated; try batch norm before it, or a lower learning_rate"
    if layer.gamma is not None and _small(layer.gamma):
        return "gamma is close to 0 in at least half of its channels; try less weight_decay, or a smaller network"
    if layer.std > _LARGE:
        return f"its outputs are large, std {layer.std:.2g}; try batch norm, or a lower learning_rate"
    if relative is not None and relative < _VANISHING * largest:
        size = f"1/{largest / relative:,.0f} of the largest, relative to its weights" if relative else "0"
        return f"its gradient is {size}: it hardly learns; try batch norm, shortcuts or another init"
    return ""


def _small(gamma: tuple[float, ...]) -> bool:
    """Return whether gamma is within 0.01 of 0 in about half of the channels or more, judged by its quartiles."""
    return any(abs(low) < 0.01 and abs(high) < 0.01 for low, high in ((gamma[1], gamma[3]), (gamma[0], gamma[2])))
