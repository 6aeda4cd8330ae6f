"""Occlusion: how far the probability of a class falls if a part of the image is hidden. It works for any network.

M. D. Zeiler, R. Fergus, Visualizing and understanding convolutional networks, ECCV 2014, section 4.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cnnlab.inspect.layers import eval_mode
from cnnlab.io.errors import CnnlabError

_BATCH_VALUES = 1 << 22  # pixel values in a batch


def default_window(side: int) -> tuple[int, int]:
    """Return side and stride of the window for images of `side` pixels: a quarter and a twelfth of `side`."""
    window = max(1, round(side / 4))
    return window, max(1, round(window / 3))


@torch.no_grad()
def occlusion(
    model: nn.Module, x: Tensor, classes: Tensor, *, window: int = 0, stride: int = 0, temperature: float = 1.0
) -> Tensor:
    """Return how much hiding each pixel lowers the probability of the class: (B, H, W) float32 in -1..1.

    A square window is set to 0, the training images' mean colour, at all positions of a grid; a pixel gets the mean
    over the windows that cover it. Negative values: hiding it raises the probability.

    model: (B, C, H, W) -> logits (B, K). x: preprocessed images (B, C, H, W). classes: (B,) int64. window, stride: in
    pixels. Default: see `default_window`. temperature: divisor of the logits. Raise CnnlabError for a window larger
    than the image, or a stride larger than the window.
    """
    b, c, h, w = x.shape
    window = window or default_window(min(h, w))[0]
    stride = stride or max(1, round(window / 3))
    if not 1 <= window <= min(h, w) or not 1 <= stride <= window:
        raise CnnlabError(
            f"window={window}, stride={stride}: give a window of 1 to {min(h, w)} pixels and a stride of at most that"
        )
    places = [(i, j) for i in _starts(h, window, stride) for j in _starts(w, window, stride)]
    total, covered = torch.zeros(b, h, w, device=x.device), torch.zeros(h, w, device=x.device)
    step = max(1, _BATCH_VALUES // (b * c * h * w))
    with eval_mode(model):
        before = _probability(model, x, classes, temperature)  # (B,)
        for at in range(0, len(places), step):
            some = places[at : at + step]
            hidden = x.repeat(len(some), 1, 1, 1, 1)  # (P, B, C, H, W)
            for image, (i, j) in zip(hidden, some, strict=True):
                image[:, :, i : i + window, j : j + window] = 0
            after = _probability(model, hidden.flatten(0, 1), classes.repeat(len(some)), temperature)
            drops = before - after.view(len(some), b)  # (P, B)
            for drop, (i, j) in zip(drops, some, strict=True):
                total[:, i : i + window, j : j + window] += drop[:, None, None]
                covered[i : i + window, j : j + window] += 1
    return total / covered


def _starts(side: int, window: int, stride: int) -> range:
    """Return the starts of the windows; the last window may reach beyond the edge."""
    return range(0, side - window + stride, stride)


def _probability(model: nn.Module, x: Tensor, classes: Tensor, temperature: float) -> Tensor:
    p: Tensor = (model(x).float() / temperature).softmax(1)
    return p.gather(1, classes[:, None])[:, 0]
