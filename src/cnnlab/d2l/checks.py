"""Turn torch's errors about a batch into one line: which batch, what is wrong with it, and the remedy.

Nothing is checked before a step, so that a good batch costs nothing: only what failed is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cnnlab.io.errors import CnnlabError, out_of_memory, reason
from cnnlab.io.text import truncate

ONE_HOT = "the labels are one-hot; pass y.argmax(1)"


def as_labels(y: Tensor, batch: str = "") -> Tensor:
    """Return integer labels as (B,) int64, whatever their type, also if they are (B, 1); others unchanged.

    batch: names it in errors. Raise CnnlabError for negative ones on the CPU: the cross-entropy would ignore -100.
    """
    if y.is_floating_point() or y.is_complex():
        return y
    y = (y.squeeze(1) if y.ndim == 2 and y.shape[1] == 1 else y).long()
    if y.device.type == "cpu" and y.numel() and (lowest := int(y.amin())) < 0:
        raise CnnlabError(f"{batch and batch + ': '}a label is {lowest}; number the classes from 0")
    return y


@contextmanager
def explained(net: Any, x: Any, y: Tensor, batch: str) -> Iterator[None]:
    """Raise CnnlabError for torch's errors while `net` or the loss work on images x and labels y. batch: names it."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError) as error:
        if out_of_memory(error):
            raise CnnlabError(f"{batch} does not fit into memory ({_described(x)}); use smaller batches") from error
        raise CnnlabError(f"{batch}: {_fault(net, x, y, error)}") from error


def check_finite(sums: list[Tensor], name: str) -> None:
    """Raise CnnlabError if a sum of a batch's pixels is NaN or Inf. sums: scalars, in the order of the batches."""
    if sums:
        bad = (~torch.isfinite(torch.stack(sums))).nonzero()
        if len(bad):
            raise CnnlabError(
                f"batch {int(bad[0]) + 1} of {name} has images with NaN or Inf; correct them, or clean them with "
                "torch.nan_to_num"
            )


def check_labels(bounds: list[Tensor], outputs: int, name: str) -> None:
    """Raise CnnlabError if labels are not among the `outputs`. bounds: (smallest, largest) of each batch."""
    if bounds:
        table = torch.stack(bounds)
        low, high = int(table[:, 0].min()), int(table[:, 1].max())
        if low < 0 or high >= outputs:
            raise CnnlabError(f"{name} has labels from {low} to {high}; {_range(outputs)}")


def pixel_sum(x: Any) -> Tensor | None:
    """Return the sum of a batch's pixels on their device; None if they cannot be NaN."""
    return x.detach().sum() if isinstance(x, Tensor) and x.is_floating_point() else None


def _fault(net: Any, x: Any, y: Tensor, error: Exception) -> str:
    """Return what is wrong with a batch, and the remedy."""
    text = reason(error)
    images = len(x) if isinstance(x, Tensor) and x.ndim else None
    if y.ndim == 0 or (images is not None and len(y) != images):
        return f"{images} images, but labels of shape {tuple(y.shape)}; pass one label per image"
    if isinstance(x, Tensor) and not x.is_floating_point():
        return f"the images are {_type(x)}; convert them: X.float() / 255"
    if isinstance(x, Tensor) and x.dtype == torch.float64 and "dtype" in text.lower() + str(type(error)).lower():
        return "the images are float64, the weights are not; convert them: X.float()"
    if "more than 1 value per channel" in text:
        return (
            "batch norm cannot train on a single image; pass drop_last=True to the DataLoader, or choose another batch "
            "size"
        )
    if "device-side assert" in text:  # nothing can be computed on this GPU any more
        return f"{_extent(y)}; number them from 0, and give the network as many outputs"
    outputs = _outputs(net, x)
    if outputs is None:  # the images do not fit the network
        if match := re.search(r"to have (\d+) channels, but got (\d+) channels", text):
            return f"the images have {match[2]} channels, but the network takes {match[1]} ({_described(x)})"
        return f"the network does not take {_described(x)}: {truncate(text, 150)}"
    if y.ndim == 2 and y.shape[1] == outputs and not y.is_floating_point():
        return ONE_HOT
    if y.is_floating_point() and y.numel() == len(y):
        return f"the labels are {_type(y)}; class numbers are integers: y.long()"
    if not y.is_floating_point() and y.numel() and (int(y.min()) < 0 or int(y.max()) >= outputs):
        return f"the labels go from {int(y.min())} to {int(y.max())}; {_range(outputs)}"
    return f"labels of shape {tuple(y.shape)} and type {_type(y)} for {outputs} outputs: {truncate(text, 150)}"


def _extent(y: Tensor) -> str:
    """Return the smallest and the largest label, which a GPU cannot tell after its assertion."""
    try:
        return f"labels from {int(y.min())} to {int(y.max())}"
    except RuntimeError:
        return "labels beyond the network's outputs"


def _range(outputs: int) -> str:
    return (
        f"the network has {outputs} outputs, so they must be 0 to {outputs - 1}: number the classes from 0, or give "
        "the network more outputs"
    )


def _outputs(net: Any, x: Any) -> int | None:
    """Return the number of outputs of `net` for an image of the batch; None if it fails."""
    try:
        with torch.no_grad():
            was_training = net.training
            net.eval()
            try:
                return int(net([part[:1] for part in x] if isinstance(x, list) else x[:1]).shape[1])
            finally:
                net.train(was_training)
    except Exception:  # the network is the user's
        return None


def _described(x: Any) -> str:
    if isinstance(x, Tensor):
        return f"images of shape {tuple(x.shape)} and type {_type(x)}"
    return f"a {type(x).__name__}"


def _type(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
