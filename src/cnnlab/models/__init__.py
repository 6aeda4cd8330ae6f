"""The networks. To add one: a file with a builder, a line in MODELS, one in DESCRIPTIONS. The tests find it there."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

from torch import nn

from cnnlab.io.errors import CnnlabError, unknown
from cnnlab.models.airbench import airbench
from cnnlab.models.alexnet import alexnet
from cnnlab.models.densenet import DENSENET, DENSENET121, DENSENET169, DENSENET201, densenet
from cnnlab.models.external import build_external, external_size, libraries
from cnnlab.models.googlenet import googlenet
from cnnlab.models.lenet import lenet, lenet_bn
from cnnlab.models.nin import nin
from cnnlab.models.resnet import BLOCKS, resnet
from cnnlab.models.vgg import VGG11, VGG11_QUARTER, VGG13, VGG16, VGG19, vgg

Builder = Callable[..., nn.Module]

MODELS: dict[str, Builder] = {
    "lenet": lenet,
    "lenet-bn": lenet_bn,
    "lenet-bn-scratch": partial(lenet_bn, from_scratch=True),
    "alexnet": alexnet,
    "vgg11": partial(vgg, VGG11),
    "vgg11-quarter": partial(vgg, VGG11_QUARTER),
    "vgg13": partial(vgg, VGG13),
    "vgg16": partial(vgg, VGG16),
    "vgg19": partial(vgg, VGG19),
    "nin": nin,
    "nin-linear": partial(nin, last_relu=False),
    "googlenet": googlenet,
    **{f"resnet{depth}": partial(resnet, depth) for depth in BLOCKS},
    **{f"resnet{depth}-manual": partial(resnet, depth, manual=True) for depth in BLOCKS},
    "resnet18-cifar": partial(resnet, 18, cifar=True, image_size=32),
    "resnet18-manual-cifar": partial(resnet, 18, manual=True, cifar=True, image_size=32),
    "resnet34-cifar": partial(resnet, 34, cifar=True, image_size=32),
    "resnet50-cifar": partial(resnet, 50, cifar=True, image_size=32),
    # Narrow variants for images of about 28 pixels: what the fast/* recipes train.
    "alexnet-small": partial(alexnet, small=True, image_size=28),
    "vgg11-small": partial(vgg, VGG11_QUARTER, hidden=512, image_size=32),
    "nin-small": partial(nin, small=True, last_relu=False, image_size=28),
    "resnet18-small": partial(resnet, 18, cifar=True, ratio=4, image_size=28),
    "googlenet-small": partial(googlenet, ratio=2, batch_norm=True, image_size=28),
    "airbench-small": partial(airbench, (32, 64), window=(4, 2, 8), image_size=28),
    "airbench94": airbench,
    "airbench95": partial(airbench, (128, 384, 384)),
    "airbench96": partial(airbench, (128, 512, 512), deep=True),
    "densenet": partial(densenet, DENSENET),
    "densenet121": partial(densenet, DENSENET121, bottleneck=True, image_size=224),
    "densenet169": partial(densenet, DENSENET169, bottleneck=True, image_size=224),
    "densenet201": partial(densenet, DENSENET201, bottleneck=True, image_size=224),
}

DESCRIPTIONS: dict[str, str] = {
    "lenet": "LeNet-5 with sigmoid and average pooling, 28 pixels",
    "lenet-bn": "LeNet with batch norm before each sigmoid",
    "lenet-bn-scratch": "the same with batch norm written from scratch",
    "alexnet": "AlexNet in one stream, 224 pixels",
    "vgg11": "VGG-11 (configuration A), 224 pixels",
    "vgg11-quarter": "VGG-11 with a quarter of the channels, as the manual trains it",
    "vgg13": "VGG-13 (configuration B)",
    "vgg16": "VGG-16 (configuration D)",
    "vgg19": "VGG-19 (configuration E)",
    "nin": "network in network, 224 pixels; ends in a ReLU, as printed in the manual",
    "nin-linear": "NiN without the ReLU after its last layer",
    "googlenet": "GoogLeNet: nine Inception blocks, 96 pixels",
    "resnet18": "ResNet-18, as in the paper and torchvision",
    "resnet34": "ResNet-34",
    "resnet50": "ResNet-50, with bottleneck blocks",
    "resnet101": "ResNet-101, with bottleneck blocks",
    "resnet152": "ResNet-152, with bottleneck blocks",
    "resnet18-manual": "ResNet-18 as in the manual: biases, shortcuts without batch norm",
    "resnet34-manual": "ResNet-34 in the manual's variant",
    "resnet50-manual": "ResNet-50 in the manual's variant",
    "resnet101-manual": "ResNet-101 in the manual's variant",
    "resnet152-manual": "ResNet-152 in the manual's variant",
    "resnet18-cifar": "ResNet-18 with a 3x3 stem, for images of about 32 pixels",
    "resnet18-manual-cifar": "ResNet-18 in the manual's variant with a 3x3 stem",
    "resnet34-cifar": "ResNet-34 with a 3x3 stem",
    "resnet50-cifar": "ResNet-50 with a 3x3 stem",
    "alexnet-small": "a narrow AlexNet for 28 pixels",
    "vgg11-small": "VGG-11 with a quarter of the channels and 512 hidden units, for 32 pixels",
    "nin-small": "a narrow NiN for 28 pixels",
    "resnet18-small": "ResNet-18 with a quarter of the channels and a 3x3 stem, for 28 pixels",
    "googlenet-small": "GoogLeNet with half the channels and batch norm, for 28 pixels",
    "airbench-small": "two airbench groups, for 28 pixels: the fastest to 0.90 on Fashion-MNIST",
    "airbench94": "airbench: 94% on CIFAR-10 in seconds on a GPU",
    "airbench95": "a wider airbench, for 95% on CIFAR-10",
    "airbench96": "a wider and deeper airbench with shortcuts, for 96% on CIFAR-10",
    "densenet": "the manual's small DenseNet: four blocks of four layers, 96 pixels",
    "densenet121": "DenseNet-121, with bottlenecks",
    "densenet169": "DenseNet-169, with bottlenecks",
    "densenet201": "DenseNet-201, with bottlenecks",
}
"""One line for each of MODELS, shown by `cnnlab list models`."""


def build_model(
    name: str,
    *,
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int | None = None,
    published: bool = False,
) -> nn.Module:
    """Return the network `name`, a key of MODELS: (B, C, H, W) float -> (B, K) logits.

    Also `timm:NAME` and `torchvision:NAME`, see `cnnlab.models.external`. Initial weights are PyTorch's;
    published: load those that the tag in such a name stands for. image_size: Default: `default_image_size(name)`.

    Raises: CnnlabError for an unknown name, and for an image that is too small, with the smallest size that works.
    """
    if ":" not in name and name not in MODELS:
        raise unknown("model", name, [*MODELS, *libraries()])
    size = default_image_size(name) if image_size is None else image_size
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": size}
    if ":" in name:
        return build_external(name, **sizes, published=published)
    try:
        return MODELS[name](**sizes)
    except CnnlabError as error:
        raise CnnlabError(f"{name}: {error}") from error


def default_image_size(name: str) -> int:
    """Return the image size in pixels that the network `name` was designed for; for the manual's, the one it prints."""
    if ":" in name:
        return external_size(name)
    return int(inspect.signature(MODELS[name]).parameters["image_size"].default) if name in MODELS else 224
