"""Turn torch's errors about a network or a batch into one line: which batch, what is wrong with it, and the remedy.

Apart from cheap checks of labels and for NaN, a batch is only examined after its step has failed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.io.errors import CnnlabError, out_of_memory, reason
from cnnlab.io.text import truncate

ONE_HOT = "the labels are one-hot; pass y.argmax(1)"
_FAILED = object()


def check_network(net: Any) -> None:
    """Raise CnnlabError unless `net` is a torch module with weights to train."""
    check_object("net", net, nn.Module, "a network, such as nn.Sequential(...)")
    if not any(p.requires_grad for p in net.parameters()):
        raise CnnlabError("net has no weights to train; give it a layer such as nn.Linear, or set requires_grad")


def check_object(name: str, value: Any, kind: type | None, remedy: str) -> None:
    """Raise CnnlabError unless the argument `name` is an object of `kind`, or callable if `kind` is None."""
    if isinstance(value, type):
        raise CnnlabError(f"{name} is the class {value.__name__}; create an object of it: {value.__name__}(...)")
    if not (callable(value) if kind is None else isinstance(value, kind)):
        raise CnnlabError(f"{name} is {_article(value)}; pass {remedy}")


def is_count(value: Any) -> bool:
    """Return whether a value is a positive integer, of Python or NumPy."""
    return isinstance(value, Integral) and int(value) >= 1


def as_labels(y: Tensor, batch: str = "") -> Tensor:
    """Return integer labels of any type as int64, and (B, 1) as (B,); leave float labels unchanged.

    batch: its name in errors. Raise CnnlabError for a row of floats per image, and for negative labels on the CPU: the
    cross-entropy would ignore -100.
    """
    if y.is_floating_point() or y.is_complex():
        if y.ndim == 2 and y.shape[1] > 1:
            raise CnnlabError(
                f"{batch and batch + ': '}the labels have shape {tuple(y.shape)} and type {_type(y)}, a number for "
                "each class; pass the numbers of the classes: y.argmax(1)"
            )
        return y
    y = (y.squeeze(1) if y.ndim == 2 and y.shape[1] == 1 else y).long()
    if y.device.type == "cpu" and y.numel() and (lowest := int(y.amin())) < 0:
        raise CnnlabError(f"{batch and batch + ': '}a label is {lowest}; number the classes from 0")
    return y


@contextmanager
def explained(net: Any, x: Any, y: Tensor, batch: str) -> Iterator[None]:
    """Raise CnnlabError for torch's errors in `net` or the loss, given images x and labels y. batch: its name."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError) as error:
        if out_of_memory(error):
            raise CnnlabError(f"{batch} does not fit into memory ({_described(x)}); use smaller batches") from error
        raise CnnlabError(f"{batch}: {_fault(net, x, y, error)}") from error
    except (AttributeError, TypeError) as error:  # from the network's code, or caused by what it returned
        output = _output(net, x)
        if output is _FAILED or isinstance(output, Tensor):
            raise
        raise CnnlabError(f"{batch}: {_no_tensor(output)}") from error


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
    """Raise CnnlabError if labels are not in 0 to outputs - 1. bounds: (smallest, largest) label of each batch."""
    if bounds:
        table = torch.stack(bounds)
        low, high = int(table[:, 0].min()), int(table[:, 1].max())
        if low < 0 or high >= outputs:
            raise CnnlabError(f"{name} has labels from {low} to {high}; {_range(outputs)}")


def pixel_sum(x: Any) -> Tensor | None:
    """Return the sum of a batch's pixels on their device; None if x is no tensor of floats."""
    return x.detach().sum() if isinstance(x, Tensor) and x.is_floating_point() else None


def _fault(net: Any, x: Any, y: Tensor, error: Exception) -> str:
    """Return what is wrong with a batch, and the remedy."""
    text = reason(error)
    images = len(x) if isinstance(x, Tensor) and x.ndim else None
    if y.ndim == 0 or (images is not None and len(y) != images):
        return f"{images} images, but labels of shape {tuple(y.shape)}; pass one label per image"
    if isinstance(x, Tensor) and not x.is_floating_point():
        return f"the images are {_type(x)}; convert them: {'X.abs()' if x.is_complex() else 'X.float() / 255'}"
    weights = next((p.dtype for p in net.parameters()), None) if isinstance(net, nn.Module) else None
    if isinstance(x, Tensor) and weights not in (None, x.dtype) and "type" in (text + str(type(error))).lower():
        call = "X.float()" if weights == torch.float32 else f"X.to({weights})"
        return f"the images are {_type(x)}, the weights are {str(weights)[6:]}; convert them: {call}"
    if "more than 1 value per channel" in text:
        return (
            "batch norm cannot train on a single image; pass drop_last=True to the DataLoader, or choose another batch "
            "size"
        )
    if "device-side assert" in text:  # this process can compute nothing more on the GPU
        return f"{_extent(y)}; number them from 0, and give the network as many outputs"
    output = _output(net, x)
    if output is _FAILED:  # the images do not fit the network
        return _misfit(net, x, text)
    if not isinstance(output, Tensor):
        return _no_tensor(output)
    if y.ndim == 1 and output.ndim != 2 and not y.is_floating_point():
        shape = ", ".join(["B", *map(str, output.shape[1:])])
        return f"the network returns shape ({shape}); let it return a row of outputs per image, as after nn.Flatten()"
    outputs = output.shape[1] if output.ndim > 1 else 1
    if y.ndim == 2 and y.shape[1] == outputs and not y.is_floating_point():
        return ONE_HOT
    if y.is_floating_point() and y.numel() == len(y):
        return f"the labels are {_type(y)}; class numbers are integers: y.long()"
    if not y.is_floating_point() and y.numel() and (int(y.min()) < 0 or int(y.max()) >= outputs):
        return f"the labels go from {int(y.min())} to {int(y.max())}; {_range(outputs)}"
    return f"labels of shape {tuple(y.shape)} and type {_type(y)} for {outputs} outputs: {truncate(text, 150)}"


def _extent(y: Tensor) -> str:
    """Return the range of the labels as text. A GPU can no longer compute it after a failed assertion."""
    try:
        return f"labels from {int(y.min())} to {int(y.max())}"
    except RuntimeError:
        return "labels beyond the network's outputs"


def _range(outputs: int) -> str:
    many = "1 output, so they must be 0" if outputs == 1 else f"{outputs} outputs, so they must be 0 to {outputs - 1}"
    return f"the network has {many}: number the classes from 0, or give the network more outputs"


def _misfit(net: Any, x: Any, text: str) -> str:
    """Return why the network does not accept the images, and the remedy. text: torch's error."""
    match = re.search(r"to have (\d+) channels, but got (\d+) channels", text)
    start = f"the network does not accept {_described(x)}"
    if isinstance(x, Tensor) and isinstance(net, nn.Module) and any(isinstance(m, nn.Conv2d) for m in net.modules()):
        if x.ndim == 3:
            return f"{start}: the channel dimension is missing; add it: X.unsqueeze(1)"
        if x.ndim == 4 and match and x.shape[3] in (1, 3, int(match[1])) and x.shape[1] not in (1, 3):
            return f"{start}: their channels come last; put them first: X.permute(0, 3, 1, 2)"
        for channels in (1, 3) if x.ndim == 2 else ():
            side = math.isqrt(x.shape[1] // channels)
            if channels * side * side == x.shape[1]:
                return f"{start}: they are flat; give them their shape: X.reshape(-1, {channels}, {side}, {side})"
    if match:
        return f"the images have {match[2]} channels, but the network takes {match[1]} ({_described(x)})"
    return f"{start}: {truncate(text, 150)}"


def _no_tensor(output: Any) -> str:
    return f"the network returns {_article(output)}; let its forward return one tensor, a row of outputs per image"


def _output(net: Any, x: Any) -> Any:
    """Return the output of `net` for two images of the batch, in its mode, else in eval mode; _FAILED if both fail."""
    training = getattr(net, "training", False)
    try:
        with torch.no_grad():
            for _ in range(2):
                with suppress(Exception):  # the network is the user's
                    return net([part[:2] for part in x] if isinstance(x, list) else x[:2])
                if not training:
                    break
                net.eval()
    finally:
        if training:
            net.train()
    return _FAILED


def _article(value: Any) -> str:
    """Return the type of a value with its article: a tuple, an int, None."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _described(x: Any) -> str:
    if isinstance(x, Tensor):
        return f"images of shape {tuple(x.shape)} and type {_type(x)}"
    return f"a {type(x).__name__}"


def _type(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
