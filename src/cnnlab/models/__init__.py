"""The networks. To add one, write a file with a builder and add a line to _NETWORKS, where the tests find it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

from torch import nn

from cnnlab.io.errors import CnnlabError, unknown
from cnnlab.models.airbench import airbench
from cnnlab.models.alexnet import alexnet
from cnnlab.models.densenet import DENSENET, DENSENET121, DENSENET169, DENSENET201, densenet
from cnnlab.models.efficientnet import efficientnet_lite0
from cnnlab.models.external import build_external, external_size, libraries
from cnnlab.models.googlenet import googlenet
from cnnlab.models.lenet import lenet, lenet_bn
from cnnlab.models.nin import nin
from cnnlab.models.published import PACKAGED, load_packaged
from cnnlab.models.resnet import resnet
from cnnlab.models.vgg import VGG11, VGG11_QUARTER, VGG13, VGG16, VGG19, vgg

Builder = Callable[..., nn.Module]

# name -> builder, and its line in `cnnlab list models`
_NETWORKS: dict[str, tuple[Builder, str]] = {
    "lenet": (lenet, "LeNet-5 with sigmoid and average pooling, 28 pixels"),
    "lenet-bn": (lenet_bn, "LeNet with batch norm before each sigmoid"),
    "lenet-bn-scratch": (partial(lenet_bn, from_scratch=True), "the same with batch norm written from scratch"),
    "alexnet": (alexnet, "AlexNet in one stream, 224 pixels"),
    "vgg11": (partial(vgg, VGG11), "VGG-11 (configuration A), 224 pixels"),
    "vgg11-quarter": (partial(vgg, VGG11_QUARTER), "VGG-11 with a quarter of the channels, as the manual trains it"),
    "vgg13": (partial(vgg, VGG13), "VGG-13 (configuration B)"),
    "vgg16": (partial(vgg, VGG16), "VGG-16 (configuration D)"),
    "vgg19": (partial(vgg, VGG19), "VGG-19 (configuration E)"),
    "nin": (nin, "network in network, 224 pixels; ends in a ReLU, as printed in the manual"),
    "nin-linear": (partial(nin, last_relu=False), "NiN without the ReLU after its last layer"),
    "googlenet": (googlenet, "GoogLeNet: nine Inception blocks, 96 pixels"),
    "resnet18": (partial(resnet, 18), "ResNet-18, as in the paper and torchvision"),
    "resnet34": (partial(resnet, 34), "ResNet-34"),
    "resnet50": (partial(resnet, 50), "ResNet-50, with bottleneck blocks"),
    "resnet101": (partial(resnet, 101), "ResNet-101, with bottleneck blocks"),
    "resnet152": (partial(resnet, 152), "ResNet-152, with bottleneck blocks"),
    "resnet18-manual": (
        partial(resnet, 18, manual=True),
        "ResNet-18 as in the manual: biases, shortcuts without batch norm",
    ),
    "resnet34-manual": (partial(resnet, 34, manual=True), "ResNet-34 in the manual's variant"),
    "resnet50-manual": (partial(resnet, 50, manual=True), "ResNet-50 in the manual's variant"),
    "resnet101-manual": (partial(resnet, 101, manual=True), "ResNet-101 in the manual's variant"),
    "resnet152-manual": (partial(resnet, 152, manual=True), "ResNet-152 in the manual's variant"),
    "resnet18-cifar": (
        partial(resnet, 18, cifar=True, image_size=32),
        "ResNet-18 with a 3x3 stem, for images of about 32 pixels",
    ),
    "resnet18-manual-cifar": (
        partial(resnet, 18, manual=True, cifar=True, image_size=32),
        "ResNet-18 in the manual's variant with a 3x3 stem",
    ),
    "resnet34-cifar": (partial(resnet, 34, cifar=True, image_size=32), "ResNet-34 with a 3x3 stem"),
    "resnet50-cifar": (partial(resnet, 50, cifar=True, image_size=32), "ResNet-50 with a 3x3 stem"),
    # Narrow variants for images of about 28 pixels, which the fast/* recipes train.
    "alexnet-small": (partial(alexnet, small=True, image_size=28), "a narrow AlexNet for 28 pixels"),
    "vgg11-small": (
        partial(vgg, VGG11_QUARTER, hidden=512, image_size=32),
        "VGG-11 with a quarter of the channels and 512 hidden units, for 32 pixels",
    ),
    "nin-small": (partial(nin, small=True, last_relu=False, image_size=28), "a narrow NiN for 28 pixels"),
    "resnet18-small": (
        partial(resnet, 18, cifar=True, ratio=4, image_size=28),
        "ResNet-18 with a quarter of the channels and a 3x3 stem, for 28 pixels",
    ),
    "googlenet-small": (
        partial(googlenet, ratio=2, batch_norm=True, image_size=28),
        "GoogLeNet with half the channels and batch norm, for 28 pixels",
    ),
    "airbench-small": (
        partial(airbench, (32, 64), window=(4, 2, 8), image_size=28),
        "two airbench groups, for 28 pixels: the fastest to 0.90 on Fashion-MNIST",
    ),
    "airbench94": (airbench, "airbench: 94% on CIFAR-10 in seconds on a GPU"),
    "airbench95": (partial(airbench, (128, 384, 384)), "a wider airbench, for 95% on CIFAR-10"),
    "airbench96": (
        partial(airbench, (128, 512, 512), deep=True),
        "a wider and deeper airbench with shortcuts, for 96% on CIFAR-10",
    ),
    "efficientnet-lite0": (efficientnet_lite0, "EfficientNet-Lite0, for CPUs and phones, 224 pixels"),
    "efficientnet-lite0.in1k": (efficientnet_lite0, "the same with its published ImageNet weights, to be fine-tuned"),
    "densenet": (partial(densenet, DENSENET), "the manual's small DenseNet: four blocks of four layers, 96 pixels"),
    "densenet121": (partial(densenet, DENSENET121, bottleneck=True, image_size=224), "DenseNet-121, with bottlenecks"),
    "densenet169": (partial(densenet, DENSENET169, bottleneck=True, image_size=224), "DenseNet-169, with bottlenecks"),
    "densenet201": (partial(densenet, DENSENET201, bottleneck=True, image_size=224), "DenseNet-201, with bottlenecks"),
}
MODELS: dict[str, Builder] = {name: builder for name, (builder, _) in _NETWORKS.items()}
DESCRIPTIONS: dict[str, str] = {name: line for name, (_, line) in _NETWORKS.items()}


def build_model(
    name: str,
    *,
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int | None = None,
    published: bool = False,
) -> nn.Module:
    """Return the network `name`, a key of MODELS: (B, C, H, W) float -> (B, K) logits.

    `timm:NAME` and `torchvision:NAME` work too; see `cnnlab.models.external`. The weights are random. published: load
    published weights instead if the name has a tag, as names in PACKAGED do. image_size: in pixels. Default:
    `default_image_size(name)`.

    Raise CnnlabError for an unknown name, and for images that are too small; the message gives a size that works.
    """
    if ":" not in name and name not in MODELS:
        raise unknown("model", name, [*MODELS, *libraries()])
    size = default_image_size(name) if image_size is None else image_size
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": size}
    if ":" in name:
        return build_external(name, **sizes, published=published)
    try:
        model = MODELS[name](**sizes)
    except CnnlabError as error:
        raise CnnlabError(f"{name}: {error}") from error
    if published and name in PACKAGED:
        load_packaged(name, model, in_channels, num_classes)
    return model


def default_image_size(name: str) -> int:
    """Return the image size in pixels that the network `name` was designed for; 224 for an unknown name.

    For the manual's networks, it is the size printed in the manual.
    """
    if ":" in name:
        return external_size(name)
    return int(inspect.signature(MODELS[name]).parameters["image_size"].default) if name in MODELS else 224
