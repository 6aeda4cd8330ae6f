"""The networks. A new one is a file with a builder and one line in MODELS; the tests pick it up from there."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

from torch import nn

from cnnlab.io.errors import CnnlabError, unknown
from cnnlab.models.airbench import airbench
from cnnlab.models.alexnet import alexnet
from cnnlab.models.densenet import densenet, densenet121, densenet169, densenet201
from cnnlab.models.external import build_external, external_size, libraries
from cnnlab.models.googlenet import googlenet
from cnnlab.models.lenet import lenet, lenet_bn
from cnnlab.models.nin import nin
from cnnlab.models.resnet import resnet18, resnet34, resnet50, resnet101, resnet152
from cnnlab.models.vgg import vgg11, vgg13, vgg16, vgg19

Builder = Callable[..., nn.Module]

MODELS: dict[str, Builder] = {
    "lenet": lenet,
    "lenet-bn": lenet_bn,
    "lenet-bn-scratch": partial(lenet_bn, from_scratch=True),
    "alexnet": alexnet,
    "vgg11": vgg11,
    "vgg11-quarter": partial(vgg11, ratio=4),
    "vgg13": vgg13,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "nin": nin,
    "nin-linear": partial(nin, last_relu=False),
    "googlenet": googlenet,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "resnet152": resnet152,
    "resnet18-manual": partial(resnet18, manual=True),
    "resnet34-manual": partial(resnet34, manual=True),
    "resnet50-manual": partial(resnet50, manual=True),
    "resnet101-manual": partial(resnet101, manual=True),
    "resnet152-manual": partial(resnet152, manual=True),
    "resnet18-cifar": partial(resnet18, cifar=True, image_size=32),
    "resnet18-manual-cifar": partial(resnet18, manual=True, cifar=True, image_size=32),
    "resnet34-cifar": partial(resnet34, cifar=True, image_size=32),
    "resnet50-cifar": partial(resnet50, cifar=True, image_size=32),
    # For images of about 28 pixels, with less of everything: what the fast/* recipes train.
    "alexnet-small": partial(alexnet, small=True, image_size=28),
    "vgg11-small": partial(vgg11, ratio=4, hidden=512, image_size=32),
    "nin-small": partial(nin, small=True, last_relu=False, image_size=28),
    "resnet18-small": partial(resnet18, cifar=True, ratio=4, image_size=28),
    "googlenet-small": partial(googlenet, ratio=2, batch_norm=True, image_size=28),
    "airbench-small": partial(airbench, (32, 64), window=(4, 2, 8), image_size=28),
    "airbench94": airbench,
    "airbench95": partial(airbench, (128, 384, 384)),
    "airbench96": partial(airbench, (128, 512, 512), deep=True),
    "densenet": densenet,
    "densenet121": densenet121,
    "densenet169": densenet169,
    "densenet201": densenet201,
}


def build_model(
    name: str,
    *,
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int | None = None,
    published: bool = False,
) -> nn.Module:
    """The network called `name`, a key of MODELS: (B, C, H, W) float -> (B, K) logits.

    Also `timm:NAME` and `torchvision:NAME`, see `cnnlab.models.external`. Starting weights are the framework's own;
    published: those that a tag in such a name stands for. image_size: unsaid, `usual_size(name)`.

    Raises: CnnlabError for an unknown name, and for an image that is too small, with the smallest size that works.
    """
    if ":" not in name and name not in MODELS:
        raise unknown("model", name, [*MODELS, *libraries()])
    size = usual_size(name) if image_size is None else image_size
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": size}
    if ":" in name:
        return build_external(name, **sizes, published=published)
    try:
        return MODELS[name](**sizes)
    except CnnlabError as error:
        raise CnnlabError(f"{name}: {error}") from error


def usual_size(name: str) -> int:
    """Pixels a side at which the manual prints the network called `name`, or for which it was made."""
    if ":" in name:
        return external_size(name)
    return int(inspect.signature(MODELS[name]).parameters["image_size"].default) if name in MODELS else 224
