"""What several networks share: the arithmetic of an image's side, from the layers themselves, and faster layers."""

from __future__ import annotations

from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cnnlab.errors import CnnlabError


class AvgPool2d(nn.AvgPool2d):
    """The framework's layer; windows of 2 x 2 side by side are added up by rows and columns on a processor.

    (B, C, H, W) -> (B, C, H // 2, W // 2) for those. The framework's own loop over contiguous images is not
    vectorised: it took a sixth of LeNet's training step, and this takes a third as long. Up to the order of the sum
    of four pixels the values are the same. In float32 only: in 16 bits the sum would be rounded on the way.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The mean of each window."""
        halving = (self.kernel_size, self.stride, self.padding, self.ceil_mode) == (2, 2, 0, False)
        if not halving or self.divisor_override or not _plain(x):
            return super().forward(x)
        answer: Tensor = _Halved.apply(x)
        return answer


class _Halved(torch.autograd.Function):
    """The mean of each 2 x 2 window, and its gradient: a quarter of the output's to each of the four pixels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
        rows = x[..., 0:height:2, :width] + x[..., 1:height:2, :width]
        return (rows[..., 0::2] + rows[..., 1::2]).mul_(0.25)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        *images, height, width = gradient.shape
        quarter = gradient * 0.25
        # Each pair of rows is written once and copied once: what autograd makes of slices fills all with zeros first.
        pairs = quarter.new_empty(*images, height, 2, width, 2)
        pairs[..., 0, :, 0] = quarter
        pairs[..., 0, :, 1] = quarter
        pairs[..., 1, :, :] = pairs[..., 0, :, :]
        answer = pairs.view(*images, 2 * height, 2 * width)
        odd = ctx.shape[-2] - 2 * height, ctx.shape[-1] - 2 * width  # a last row or column that no window reaches
        return F.pad(answer, (0, odd[1], 0, odd[0])) if any(odd) else answer


class Conv2d(nn.Conv2d):
    """The framework's layer; on a processor the gradient of its weights is computed channels-last.

    (B, C, H, W) -> (B, K, H', W'). For few channels (LeNet's 6 to 16) the framework's weight gradient over contiguous
    images takes twice as long as both images' conversion and the one over channels-last images together, while its
    input gradient is the faster one: each gets the layout that suits it. The values are the same up to rounding.
    Networks have the framework's own; `quickened` changes it where a training begins.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The convolution."""
        usual = self.padding_mode == "zeros" and not isinstance(self.padding, str) and self.bias is not None
        if not usual or not _plain(x) or torch.is_autocast_enabled("cpu") or self.weight.dtype != torch.float32:
            return super().forward(x)
        answer: Tensor = _Convolved.apply(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )
        return answer


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, *how: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = how
        return F.conv2d(x, weight, bias, *how)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.how
        how = [len(weight)], stride, padding, dilation, False, [0, 0], groups
        backward = torch.ops.aten.convolution_backward
        of_x = backward(gradient, x, weight, *how, [True, False, False])[0] if ctx.needs_input_grad[0] else None
        last = (t.contiguous(memory_format=torch.channels_last) for t in (gradient, x, weight))
        _, of_weight, of_bias = backward(*last, *how, [False, True, True])
        return of_x, of_weight.contiguous(), of_bias, None, None, None, None


class BatchNorm2d(nn.BatchNorm2d):
    """The framework's layer; on a processor, in training, mean and variance come from sums over each image's maps.

    (B, C, H, W) -> (B, C, H, W). The framework's loop over contiguous images adds number after number, without
    vectors, and took an eighth of LeNet's training step; this takes a third as long. The values are the same up to
    rounding. Networks have the framework's own; `quickened` changes it where a training begins.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalised by the batch's own statistics in training, by the running ones in eval mode."""
        momentum, mean, var = self.momentum, self.running_mean, self.running_var
        if momentum is None or mean is None or var is None or not (self.training and self.affine):
            return super().forward(x)
        several = x.ndim == 4 and x.numel() > x.shape[1]  # a single value has no variance: the framework says so
        if not several or not _plain(x) or torch.is_autocast_enabled("cpu") or self.weight.dtype != torch.float32:
            return super().forward(x)
        answer: Tensor
        answer, mean_now, var_now = _Normalized.apply(x, self.weight, self.bias, self.eps)
        count = x.numel() // x.shape[1]
        with torch.no_grad():
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
            mean.lerp_(mean_now, momentum)
            var.lerp_(var_now * (count / (count - 1)), momentum)
        return answer


class _Normalized(torch.autograd.Function):
    """Normalised, the mean and the (biased) variance of each channel; the gradient is the framework's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        mean = x.mean((2, 3)).mean(0)
        centered = x - mean.view(-1, 1, 1)
        var = torch.linalg.vector_norm(centered, dim=(2, 3)).square().sum(0) * (x.shape[1] / x.numel())
        zero = torch.zeros_like(mean)
        answer = torch.native_batch_norm(centered, weight, bias, zero, var, False, 0.0, eps)[0]
        ctx.save_for_backward(centered, weight, zero, (var + eps).rsqrt())
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var)
        return answer, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        centered, weight, zero, scale = ctx.saved_tensors
        backward = torch.ops.aten.native_batch_norm_backward
        needed = list(ctx.needs_input_grad[:3])
        return *backward(gradient, centered, weight, None, None, zero, scale, True, ctx.eps, needed), None


class Linear(nn.Linear):
    """The framework's layer; on a processor its products are oneDNN's, of which the convolutions are made, too.

    (B, I) -> (B, O). In float32 the framework multiplies matrices by MKL, which on AMD's processors keeps off its
    fastest code and takes twice as long. The values are the same up to rounding. Networks have the framework's own;
    `quickened` changes it where a training begins, on such a processor.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The product with the weights, and the bias."""
        usual = x.ndim == 2 and _plain(x) and self.weight.dtype == torch.float32
        if not usual or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        answer: Tensor = _Multiplied.apply(x, self.weight, self.bias)
        return answer


class _Multiplied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.t()) if of_x else None,
            _product(gradient.t(), x.t()) if of_weight else None,
            gradient.sum(0) if of_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(B, I), (O, I), (O,) -> (B, O), by oneDNN; what the framework compiles calls it so, a public name it has not."""
    answer: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return answer


def quickened(model: nn.Module, products: bool = False) -> nn.Module:
    """`model` itself, whose convolutions of few channels and batch norms compute as ours from now on.

    products: and its linear layers, whose products the framework makes slowly here.
    """
    for layer in model.modules():
        # Of small ones the call costs what the product gains.
        if products and type(layer) is nn.Linear and layer.weight.numel() >= 8192:
            layer.__class__ = Linear
        if type(layer) is nn.Conv2d and 4 <= layer.in_channels < 16 and layer.groups == 1:
            layer.__class__ = Conv2d
        if type(layer) is nn.BatchNorm2d:
            layer.__class__ = BatchNorm2d
    return model


def _plain(x: Tensor) -> bool:
    """Contiguous float32 images on the processor, in a step that is not being compiled."""
    on_host = x.device.type == "cpu" and x.dtype == torch.float32
    return on_host and x.is_contiguous() and not torch.compiler.is_compiling()


def side_after(features: nn.Module, side: int) -> int:
    """Side of what `features` makes of square images of `side` pixels; 0 where a window does not fit.

    Reads the windows of the convolutions and poolings in the order in which they stand, so it is right for a chain,
    and for branches whose windows keep the side.
    """
    for layer in features.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            kernel, stride, padding = (_first(v) for v in (layer.kernel_size, layer.stride, layer.padding))
            if side + 2 * padding < kernel:
                return 0
            side = (side + 2 * padding - kernel) // stride + 1
    return side


def last_side(features: nn.Module, image_size: int, usual: int) -> int:
    """The same, where it is at least 1.

    Raises: CnnlabError for too small an image, with the smallest size that works and `usual` as a remedy.
    """
    side = side_after(features, image_size)
    if side < 1:
        smallest = next(n for n in count(1) if side_after(features, n) >= 1)
        raise CnnlabError(
            f"it needs images of at least {smallest}x{smallest} pixels, not {image_size}x{image_size}; enlarge them "
            f"with image_size={smallest} or more, as printed {max(smallest, usual)}"
        )
    return side


def any_side(image_size: int, usual: int) -> None:
    """For networks that take every image. Raises: CnnlabError below one pixel."""
    if image_size < 1:
        raise CnnlabError(f"it needs images of at least 1x1 pixels, not {image_size}x{image_size}; try {usual}")


def _first(value: int | str | tuple[int, ...]) -> int:
    """Windows are square here, however torch notes them."""
    first = value[0] if isinstance(value, tuple) else value
    assert isinstance(first, int)
    return first
