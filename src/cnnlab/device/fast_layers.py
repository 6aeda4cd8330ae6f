"""Layers that compute as the framework's, faster on a processor: what a training makes of a network's own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cnnlab.models.airbench import Whitening
from cnnlab.models.batch_norm import BatchNorm, channel_sum, gradients, scaled
from cnnlab.models.layers import AvgPool2d, halved, plain, spread

Size = tuple[int, ...]


class Conv2d(nn.Conv2d):
    """The framework's layer; on a processor the gradient of its weights is computed in another way.

    (B, C, H, W) -> (B, K, H', W'). For few channels (LeNet's 6 to 16) the framework's weight gradient over contiguous
    images takes twice as long as both images' conversion and the one over channels-last images together; its input
    gradient is the faster one over contiguous images: each gets the layout that suits it. turned: the weight gradient
    is `_turned` instead. rows: the input gradient is `_by_rows`, where it can be. The values are the same up to
    rounding. Networks have the framework's own; `quickened` changes it where a training begins.
    """

    turned = rows = False

    def forward(self, x: Tensor) -> Tensor:
        """The convolution."""
        usual = self.padding_mode == "zeros" and not isinstance(self.padding, str) and self.bias is not None
        if not usual or not plain(x) or torch.is_autocast_enabled("cpu") or self.weight.dtype != torch.float32:
            return super().forward(x)
        how = self.stride, self.padding, self.dilation, self.groups
        turned, rows = (wanted and self.groups == 1 for wanted in (self.turned, self.rows))
        answer: Tensor = _Convolved.apply(x, self.weight, self.bias, turned, rows, *how)
        return answer


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, turned: bool, rows: bool, *how: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.turned, ctx.rows, ctx.how = turned, rows, how
        return F.conv2d(x, weight, bias, *how)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.how
        how = [len(weight)], stride, padding, dilation, False, [0, 0], groups
        backward = torch.ops.aten.convolution_backward
        of_x = None
        if ctx.needs_input_grad[0]:
            if ctx.rows and _rows_pay(x, weight, stride, padding, dilation):
                of_x = _by_rows(gradient, weight, padding)
            else:
                of_x = backward(gradient, x, weight, *how, [True, False, False])[0]
        if ctx.turned:
            of_weight, of_bias = _turned(gradient, x, weight.shape, stride, padding, dilation)
        else:
            last = (t.contiguous(memory_format=torch.channels_last) for t in (gradient, x, weight))
            _, of_weight, of_bias = backward(*last, *how, [False, True, True])
        return of_x, of_weight.contiguous(), of_bias, *(None,) * 6


def _rows_pay(x: Tensor, weight: Tensor, stride: Size, padding: Size, dilation: Size) -> bool:
    """Is it known how to compute the gradient of such images by pairs of rows, and worth it?

    Two rows' channels then fill a block of 16 that one row's do not; a small window would grow by too large a share.
    """
    one_by_one = set(stride) == {1} == set(dilation) and padding[0] < weight.shape[2] and padding[1] < weight.shape[3]
    return one_by_one and x.shape[1] <= 8 and min(weight.shape[2:]) > 3 and not x.shape[2] % 2


def _by_rows(gradient: Tensor, weight: Tensor, padding: Size) -> Tensor:
    """The gradient of a convolution's input, even and odd rows at once: (B, K, H', W'), (K, C, h, w) -> (B, C, H, W).

    It is a convolution by the filters upside down, to C channels, of which oneDNN computes blocks of 16 with AVX-512.
    Of stride 2 and with windows one row longer, it makes 2C channels of half as many rows: more products, yet fewer
    blocks. For LeNet's second layer two thirds of the framework's time.
    """
    outputs, channels, height, width = weight.shape
    longer = F.pad(weight.reshape(-1), (0, 1)).index_select(0, _places_by_rows(*weight.shape))
    longer = longer.view(-1, outputs, height + 1, width)
    rows = F.conv2d(gradient, longer, None, (2, 1), (height - 1 - padding[0], width - 1 - padding[1]))
    pairs = rows[:, : 2 * channels].view(len(rows), channels, 2, -1, rows.shape[3])
    return torch.stack((pairs[:, :, 0], pairs[:, :, 1]), 3).view(len(rows), channels, -1, rows.shape[3])


@lru_cache(maxsize=8)
def _places_by_rows(outputs: int, channels: int, height: int, width: int) -> Tensor:
    """Where the numbers of `_by_rows`'s filters lie among a convolution's, of which a zero is the last."""
    count = outputs * channels * height * width
    turned = torch.arange(count).view(outputs, channels, height, width).flip(2, 3).transpose(0, 1)
    spare = -2 * channels % 16  # a whole block is written back faster than a part of one
    places = torch.full((2 * channels + spare, outputs, height + 1, width), count)
    places[0 : 2 * channels : 2, :, :height] = turned  # of even rows
    places[1 : 2 * channels : 2, :, 1:] = turned
    return places.flatten()


def _turned(
    gradient: Tensor, x: Tensor, shape: torch.Size, stride: Size, padding: Size, dilation: Size
) -> tuple[Tensor, Tensor]:
    """The gradients of a convolution's weights (K, C, h, w) and bias (K,): a convolution of x by the output's gradient.

    Images and channels change places, stride and dilation, too. For few channels and small images the framework's own
    takes two to five times as long on a processor without AVX-512.
    """
    made = F.conv2d(x.transpose(0, 1), gradient.transpose(0, 1), None, dilation, padding, stride)
    # Pixels at the edge that no window reached, as strides passed them by, would make the window longer.
    return made[:, :, : shape[2], : shape[3]].transpose(0, 1), gradient.sum((2, 3)).sum(0)


class BatchNorm2d(nn.BatchNorm2d):
    """The framework's layer; on a processor, in training, mean and variance come from sums over each image's maps.

    (B, C, H, W) -> (B, C, H, W). The framework's loop over contiguous images adds number after number, without
    vectors, and took an eighth of LeNet's training step; this takes a third as long. The values are the same up to
    rounding. Networks have the framework's own; `quickened` changes it where a training begins.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalised by the batch's own statistics in training, by the running ones in eval mode."""
        if not self.usual or not _normal(x, self.weight):
            return super().forward(x)
        answer: Tensor
        answer, mean, var = _Normalized.apply(x, self.weight, self.bias, self.eps)
        self.note(mean, var)
        return answer

    @property
    def usual(self) -> bool:
        """In training, with running statistics that follow each batch by a share, gamma and beta."""
        follows = self.training and self.track_running_stats and self.running_mean is not None
        return follows and self.momentum is not None and self.weight is not None and self.bias is not None

    @torch.no_grad()
    def note(self, mean: Tensor, var: Tensor) -> None:
        """Let the running statistics follow a batch's: its mean and unbiased variance."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        for running, now in ((self.running_mean, mean), (self.running_var, var)):
            if running is not None and self.momentum is not None:
                running.lerp_(now, self.momentum)


def _normal(x: Tensor, weight: Tensor) -> bool:
    """Plain images of float32 that have a variance: of a single value the framework says that it has none."""
    several = x.ndim == 4 and x.numel() > x.shape[1]
    return several and plain(x) and weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


class _Normalized(torch.autograd.Function):
    """Normalised, the mean and the unbiased variance of each channel; the gradient is the framework's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        mean = x.mean((2, 3)).mean(0)
        centered = x - mean.view(-1, 1, 1)
        squares, count = torch.linalg.vector_norm(centered, dim=(2, 3)).square().sum(0), x.numel() // x.shape[1]
        var, unbiased, zero = squares / count, squares / (count - 1), torch.zeros_like(mean)
        answer = torch.native_batch_norm(centered, weight, bias, zero, var, False, 0.0, eps)[0]
        ctx.save_for_backward(centered, weight, zero, (var + eps).rsqrt())
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, unbiased)
        ctx.set_materialize_grads(False)  # zeros for those two
        return answer, mean, unbiased

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
        usual = x.ndim == 2 and plain(x) and self.weight.dtype == torch.float32
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


class Aligned(nn.Conv2d):
    """The framework's layer for images of few channels, in 16 bits on a GPU.

    (B, C, H, W) -> (B, K, H', W'). Matrix units take channels in eights, and what an image lacks is filled with zeros:
    of a grey one seven eighths. A stride of s is therefore folded into the channels, s s of them for each, so that
    AlexNet's first layer, of stride 4, sees 16 channels; what then lacks is filled here, once, in the order that the
    units take. The values are the same up to rounding. Networks have the framework's own; `quickened_for_gpu` changes
    it where a training begins.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The convolution."""
        if x.ndim != 4 or x.device.type != "cuda" or not torch.is_autocast_enabled("cuda"):
            return super().forward(x)
        assert not isinstance(self.padding, str)
        answer: Tensor = folded(x, self.weight, self.bias, self.stride[0], self.padding)
        return answer


class AlignedWhitening(Aligned, Whitening):
    """The same for a first layer that whitens."""


def folded(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: Size) -> Tensor:
    """`torch.conv2d` with one stride for both directions: (B, C, H, W), (K, C, h, w), (K,) -> (B, K, H', W')."""
    made = [(x.shape[d] + 2 * padding[d - 2] - weight.shape[d]) // stride + 1 for d in (2, 3)]
    windows = [-(-weight.shape[d] // stride) for d in (2, 3)]  # in steps of the stride
    # So many rows and columns are looked at; fewer than there are, where the last ones are passed by.
    after = [stride * (made[i] + windows[i] - 1) - x.shape[i + 2] - padding[i] for i in (0, 1)]
    x = F.pad(x, (padding[1], after[1], padding[0], after[0]))
    weight = F.pad(weight, [n for i in (1, 0) for n in (0, stride * windows[i] - weight.shape[i + 2])])
    if stride > 1:
        x, weight = F.pixel_unshuffle(x, stride), F.pixel_unshuffle(weight, stride)
    lacking = -x.shape[1] % 8
    x, weight = (F.pad(t, (0, 0, 0, 0, 0, lacking)).contiguous(memory_format=torch.channels_last) for t in (x, weight))
    return F.conv2d(x, weight, bias)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(B, I), (O, I), (O,) -> (B, O), by oneDNN; what the framework compiles calls it so, a public name it has not."""
    answer: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return answer


class Phased(nn.Sequential):
    """A chain in which a convolution and the 2 x 2 mean pooling after it are computed by phases, on a processor.

    (B, C, H, W) -> what the layers give. A pooling window holds one pixel of each phase: even or odd row, even or odd
    column. The phases are four times the channels of a convolution of stride 2, whose window is one pixel longer: more
    products, but in blocks of 16 channels less than half of which is filled otherwise. The layers between, of which
    none looks beside its pixel, see them one below the other, (B, K, 2H', W'/2), and pooling adds up whole maps. In
    training a batch norm, a sigmoid and such a pooling are `_Normed`, by phases or not. The values are the same up to
    rounding. Networks are the framework's chains; `quickened` changes them where a training begins.
    """

    spans: Mapping[int, int] = MappingProxyType({})  # of a convolution's place, that of its pooling; of a slice, none
    turned = False  # the gradient of the convolution's weights is `_turned`

    def forward(self, x: Tensor) -> Tensor:
        """One layer after the other."""
        at, layers = 0, list(self)
        while at < len(layers):
            layer, end = layers[at], self.spans.get(at, at)
            by_phases = end > at and not _hooked(layer) and not _hooked(layers[end])
            if by_phases and isinstance(layer, nn.Conv2d) and _halves(layer, x):
                x = _Phases.apply(x, layer.weight, layer.bias, self.turned, layer.padding)
                between = layers[at + 1 : end]
                if norm := _at_once(layers[at + 1 : end + 1], x):
                    x = _normed(norm, x, phases=True)
                else:
                    sigmoid = len(between) == 1 and _unseen(between[0], nn.Sigmoid)
                    for one in between[sigmoid:]:
                        x = one(x)
                    x = _Joined.apply(x, sigmoid)
            elif norm := _at_once(layers[at : at + 3], x):
                x, end = _normed(norm, x, phases=False), at + 2
            else:
                x, end = layer(x), at
            at = end + 1
        return x


def _spans(chain: nn.Sequential) -> dict[int, int]:
    """Where phases pay: the place of each such convolution, and that of its pooling."""
    found, layers = {}, list(chain)
    for at, layer in enumerate(layers):
        if not isinstance(layer, nn.Conv2d) or layer.in_channels > 3 or layer.out_channels > 8:
            continue
        kernel, how = min(layer.kernel_size), (layer.stride, layer.dilation, layer.groups, layer.padding_mode)
        if kernel < 5 or how != ((1, 1), (1, 1), 1, "zeros") or layer.bias is None or isinstance(layer.padding, str):
            continue  # of a smaller window the longer one is too many products
        between = (nn.BatchNorm2d, BatchNorm, nn.Sigmoid, nn.Tanh, nn.ReLU)
        end = next((i for i in range(at + 1, len(layers)) if not isinstance(layers[i], between)), at)
        if isinstance(layers[end], AvgPool2d) and layers[end].halving:
            found[at] = end
    return found


def _halves(layer: nn.Conv2d, x: Tensor) -> bool:
    """Plain images, and a convolution that makes an even number of rows and columns of them."""
    if x.ndim != 4 or not plain(x) or layer.weight.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    if 1 in (x.stride(1), layer.weight.stride(1)):  # channels-last, which images of one channel are beside contiguous
        return False
    assert not isinstance(layer.padding, str)
    sides = zip(x.shape[2:], layer.kernel_size, layer.padding, strict=True)
    made = [side + 2 * padding - kernel + 1 for side, kernel, padding in sides]
    return min(made) > 0 and not any(side % 2 for side in made)


class _Phases(torch.autograd.Function):
    """A convolution's four phases, one below the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, turned: bool, padding: Size) -> Tensor:
        k, c, height, width = weight.shape
        places, _ = _places(c, height, width)
        longer = F.pad(weight.view(k, -1), (0, 1)).index_select(1, places).view(4 * k, c, height + 1, width + 1)
        ctx.save_for_backward(x, longer)
        ctx.turned, ctx.padding, ctx.shape = turned, padding, weight.shape
        y = F.conv2d(x, longer, bias.repeat_interleave(4), stride=2, padding=padding)
        return y.view(len(x), k, -1, y.shape[3])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, longer = ctx.saved_tensors
        k, c, height, width = ctx.shape
        gradient = gradient.reshape(len(x), 4 * k, -1, gradient.shape[3])
        how = [4 * k], [2, 2], ctx.padding, [1, 1], False, [0, 0], 1
        needed, of_x = [ctx.needs_input_grad[0], not ctx.turned, not ctx.turned], None
        if any(needed):
            of_x, of_longer, of_bias = torch.ops.aten.convolution_backward(gradient, x, longer, *how, needed)
        if ctx.turned:
            of_longer, of_bias = _turned(gradient, x, longer.shape, (2, 2), ctx.padding, (1, 1))
        _, back = _places(c, height, width)
        of_weight = of_longer.reshape(k, -1).index_select(1, back).view(k, 4, -1).sum(1)
        return of_x, of_weight.view(ctx.shape), of_bias.view(k, 4).sum(1), None, None


@lru_cache(maxsize=8)
def _places(channels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where the numbers of a filter's four longer windows lie in the filter, of which a zero is the last, and back.

    Phase by phase: even or odd row, even or odd column. (4 C (height + 1) (width + 1),), (4 C height width,).
    """
    count = channels * height * width
    numbers = torch.arange(count).view(channels, height, width)
    edges = [(column, 1 - column, row, 1 - row) for row in (0, 1) for column in (0, 1)]
    there = torch.stack([F.pad(numbers, edge, value=count) for edge in edges]).flatten()
    phases = torch.arange(len(there)).view(4, channels, height + 1, width + 1)
    inside = [
        phase[:, up : up + height, left : left + width] for phase, (left, _, up, _) in zip(phases, edges, strict=True)
    ]
    return there, torch.stack(inside).flatten()


class _Joined(torch.autograd.Function):
    """The mean of the four phases. sigmoid: of their sigmoid, which takes their place, as nobody else has them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sigmoid: bool) -> Tensor:
        ctx.save_for_backward(x.detach().sigmoid_() if sigmoid else None)
        return _joined(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return _parted(gradient) if y is None else _of_sigmoid(gradient, y), None


def _joined(x: Tensor) -> Tensor:
    """(B, C, 4H, W), four phases one below the other -> (B, C, H, W): their mean."""
    phases = _apart(x)
    return (phases[:, :, 0] + phases[:, :, 1]).add_(phases[:, :, 2]).add_(phases[:, :, 3]).mul_(0.25)


def _apart(x: Tensor) -> Tensor:
    """(B, C, 4H, W) -> (B, C, 4, H, W): the phases, each by itself, where they lie."""
    images, channels, rows, width = x.shape
    return x.view(images, channels, 4, rows // 4, width)


def _quarters(gradient: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 4, H, W): the gradient of each phase, all of them the same memory."""
    return (gradient * 0.25).unsqueeze(2).expand(-1, -1, 4, -1, -1)


def _parted(gradient: Tensor) -> Tensor:
    """The gradient of `_joined`."""
    images, channels, rows, width = gradient.shape
    return _quarters(gradient).reshape(images, channels, 4 * rows, width)


def _of_sigmoid(gradient: Tensor, y: Tensor) -> Tensor:
    """The gradient of `_joined` and, before it, the sigmoid that gave y: it reads one quarter four times."""
    made: Tensor = torch.ops.aten.sigmoid_backward(_quarters(gradient), _apart(y))
    return made.view(y.shape)


def _hooked(layer: nn.Module) -> bool:
    """Does something look at what goes in or out, or change it? Then the layer itself is called."""
    hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
    return any(hooks)


def _unseen(layer: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Is it just one of these, at which nothing looks?"""
    return type(layer) in kinds and not _hooked(layer)


def _at_once(layers: list[nn.Module], x: Tensor) -> nn.Module | None:
    """The batch norm of a batch norm, a sigmoid and a 2 x 2 mean pooling that can be computed as one, in training."""
    if len(layers) != 3 or not _unseen(layers[0], BatchNorm, BatchNorm2d) or not _unseen(layers[1], nn.Sigmoid):
        return None
    norm, pooling = layers[0], layers[2]
    if not isinstance(pooling, AvgPool2d) or not pooling.halving or not _unseen(pooling, AvgPool2d):
        return None
    if isinstance(norm, BatchNorm2d):
        return norm if norm.usual and _normal(x, norm.weight) else None
    return norm if isinstance(norm, BatchNorm) and norm.training and _normal(x, norm.gamma) else None


def _normed(norm: nn.Module, x: Tensor, phases: bool) -> Tensor:
    """Batch norm, sigmoid and pooling, the last by phases, whose place is then taken, or of a chain's own images."""
    assert isinstance(norm, BatchNorm | BatchNorm2d)
    weights = (norm.gamma, norm.beta) if isinstance(norm, BatchNorm) else (norm.weight, norm.bias)
    answer: Tensor
    answer, mean, var = _Normed.apply(x, *weights, norm.eps, phases)
    norm.note(mean, var)
    return answer


class _Normed(torch.autograd.Function):
    """Batch norm, sigmoid and pooling; the mean and unbiased variance. By phases half the memory of one by one.

    It is memory that takes the time: each copy of the first layer's phases is three times what fits beside a core.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, eps: float, phases: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean = channel_sum(x) / (x.numel() // len(gamma))
        centered = torch.sub(x, mean.view(-1, 1, 1), out=x.detach() if phases else None)
        y, scale, deviation, var = scaled(centered, gamma, beta, eps)
        y.sigmoid_()
        ctx.save_for_backward(centered, scale, deviation, y)
        ctx.phases = phases
        ctx.mark_non_differentiable(mean, var)
        ctx.set_materialize_grads(False)  # zeros for those two
        return _joined(y) if phases else halved(y), mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        centered, scale, deviation, y = ctx.saved_tensors
        of_sigmoid = torch.ops.aten.sigmoid_backward
        of_y = _of_sigmoid(gradient, y) if ctx.phases else of_sigmoid(spread(gradient, y.shape), y)
        return *gradients(of_y, centered, scale, deviation, in_place=True), None, None


def quickened_for_gpu(model: nn.Module) -> nn.Module:
    """`model` itself, whose convolutions of images of few channels compute as ours from now on."""
    for layer in model.modules():
        if not isinstance(layer, nn.Conv2d) or type(layer) not in (nn.Conv2d, Whitening):
            continue
        usual = layer.groups == 1 and layer.padding_mode == "zeros" and set(layer.dilation) == {1}
        if usual and not isinstance(layer.padding, str) and layer.in_channels <= 3 and len(set(layer.stride)) == 1:
            layer.__class__ = Aligned if type(layer) is nn.Conv2d else AlignedWhitening
    return model


def quickened(model: nn.Module, products: bool = False, turned: bool = False, rows: bool = False) -> nn.Module:
    """`model` itself, whose convolutions of few channels and batch norms compute as ours from now on.

    products: and its linear layers, whose products the framework makes slowly here. turned: the weight gradients of
    those convolutions are convolutions, too, as the framework computes them slowly here. rows: their input gradients
    are computed by pairs of rows, as it computes blocks of 16 channels here.
    """
    for layer in model.modules():
        if type(layer) is nn.Sequential and (spans := _spans(layer)):
            layer.__class__, layer.spans, layer.turned = Phased, spans, turned  # type: ignore[assignment]
        # Of small ones the call costs what the product gains.
        if products and type(layer) is nn.Linear and layer.weight.numel() >= 8192:
            layer.__class__ = Linear
        if type(layer) is nn.Conv2d and 4 <= layer.in_channels < 16 and layer.groups == 1:
            layer.__class__, layer.turned, layer.rows = Conv2d, turned, rows  # type: ignore[assignment]
        if type(layer) is nn.BatchNorm2d:
            layer.__class__ = BatchNorm2d
    return model
