"""Layers that compute the same as PyTorch's, faster on some hardware. Training uses them; `build_model` does not.

The values are the same up to rounding. Gradients can be differentiated again. A layer is here only if, on some
hardware, it saves a tenth of a training step at 96 or 224 pixels (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.device.hardware import device_name
from cnnlab.models.airbench import Whitening


def with_fast_layers(model: nn.Module, device: torch.device) -> nn.Module:
    """Return `model` with faster layers for `device`: a copy that shares all parameters and buffers, or `model` itself.

    See `with_layers`.
    """
    return with_layers(model, lambda layer: _fast_class(layer, device))


def with_layers(model: nn.Module, other: Callable[[nn.Module], type[nn.Module] | None]) -> nn.Module:
    """Return a copy of `model` in which some layers have another class, or `model` itself if none has.

    The copy shares all parameters and buffers and has the same state dict. Containers around a replaced layer are
    also copies, with their own `training` flag: call `train()` on both. `model` is not changed. other: returns the
    class that replaces a layer's own, or None.
    """
    copies: dict[int, nn.Module] = {}

    def visit(module: nn.Module) -> nn.Module:
        if id(module) not in copies:
            fast = other(module)
            children = {name: child and visit(child) for name, child in module._modules.items()}
            if fast is not None:
                copies[id(module)] = _share(module, fast)
            elif any(children[name] is not child for name, child in module._modules.items()):
                copies[id(module)] = _share(module, type(module))
                copies[id(module)]._modules = children
            else:
                copies[id(module)] = module
        return copies[id(module)]

    return visit(model)


def _share(module: nn.Module, cls: type[nn.Module]) -> nn.Module:
    """Return a `cls` with the attributes of `module`: the same parameters, buffers and hooks."""
    copy = cls.__new__(cls)
    copy.__dict__.update(module.__dict__)
    return copy


def _fast_class(layer: nn.Module, device: torch.device) -> type[nn.Module] | None:
    """Return the class that replaces the class of `layer` on `device`, or None. Other subclasses are not replaced."""
    if type(layer) is nn.Linear and device.type == "cpu" and _has_slow_mkl():
        return OneDnnLinear if layer.weight.numel() >= 2**20 else None  # a small product gains less than the call costs
    if isinstance(layer, nn.Conv2d) and type(layer) in (nn.Conv2d, Whitening) and device.type == "cuda":
        plain = layer.groups == 1 and layer.padding_mode == "zeros" and set(layer.dilation) == {1}
        few = layer.in_channels <= 3 and len(set(layer.stride)) == 1
        return FoldedConv2d if plain and few and not isinstance(layer.padding, str) else None
    return None


class OneDnnLinear(nn.Linear):
    """nn.Linear whose float32 products on the CPU are computed by oneDNN: (B, I) -> (B, O).

    PyTorch uses MKL, which avoids its fastest code on AMD CPUs: twice as slow.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + b."""
        float32 = x.dtype == self.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        usual = float32 and x.ndim == 2 and x.device.type == "cpu" and x.is_contiguous()
        if not usual or torch.compiler.is_compiling():
            return super().forward(x)
        product: Tensor = _OneDnnProduct.apply(x, self.weight)
        return product if self.bias is None else product + self.bias


class _OneDnnProduct(torch.autograd.Function):
    """x W^T by oneDNN, whose operator has no gradient of its own. The gradients are computed by the same operator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        # What torch.compile calls for a linear layer; there is no public name.
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
        return product

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        return (
            _OneDnnProduct.apply(gradient, weight.t()) if ctx.needs_input_grad[0] else None,
            _OneDnnProduct.apply(gradient.t(), x.t()) if ctx.needs_input_grad[1] else None,
        )


def _has_slow_mkl() -> bool:
    """Return whether this is an AMD CPU with a PyTorch built with both MKL and oneDNN."""
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return both and "AMD" in device_name(torch.device("cpu")) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class FoldedConv2d(nn.Conv2d):
    """nn.Conv2d for images of few channels in 16 bits on a GPU: (B, C, H, W) -> (B, K, H', W').

    Tensor cores process channels in groups of eight, padded with zeros: seven of eight for grey. So a stride of s is
    folded into the channels, and each becomes s^2: AlexNet's first layer, of stride 4, sees 16. The remaining zeros
    are added here, once, in the layout that tensor cores expect.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution."""
        if x.ndim != 4 or x.device.type != "cuda" or not torch.is_autocast_enabled("cuda"):
            return super().forward(x)
        assert not isinstance(self.padding, str)
        return folded_conv2d(x, self.weight, self.bias, self.stride[0], self.padding)


def folded_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: tuple[int, ...]) -> Tensor:
    """Return `torch.conv2d` with one stride for both directions: (B, C, H, W), (K, C, h, w), (K,) -> (B, K, H', W')."""
    out = [(x.shape[d] + 2 * padding[d - 2] - weight.shape[d]) // stride + 1 for d in (2, 3)]
    kernel = [-(-weight.shape[d] // stride) for d in (2, 3)]  # in steps of the stride
    # Padding after the image; negative where the strides skip the last rows or columns.
    after = [stride * (out[i] + kernel[i] - 1) - x.shape[i + 2] - padding[i] for i in (0, 1)]
    x = F.pad(x, (padding[1], after[1], padding[0], after[0]))
    weight = F.pad(weight, [n for i in (1, 0) for n in (0, stride * kernel[i] - weight.shape[i + 2])])
    if stride > 1:
        x, weight = F.pixel_unshuffle(x, stride), F.pixel_unshuffle(weight, stride)
    missing = -x.shape[1] % 8
    x, weight = (F.pad(t, (0, 0, 0, 0, 0, missing)).contiguous(memory_format=torch.channels_last) for t in (x, weight))
    return F.conv2d(x, weight, bias)
