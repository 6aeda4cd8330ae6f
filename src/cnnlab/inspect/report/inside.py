"""The inside of a network, as a report shows it: class-activation maps, filters, statistics of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from cnnlab.data import stratified_subset
from cnnlab.data.imageset import ImageSet
from cnnlab.data.loader import Preprocessing
from cnnlab.device.determinism import reproducible
from cnnlab.device.hardware import available_cores
from cnnlab.device.precision import exact_float32
from cnnlab.inference import load_network
from cnnlab.inference.classifier import preprocessing_of
from cnnlab.inference.evaluation import RunEvaluation
from cnnlab.inspect.activation import class_activation
from cnnlab.inspect.filters import filter_pixels
from cnnlab.inspect.layers import activation_layer, first_convolution
from cnnlab.inspect.report.thumbnails import SIDE, Thumbnails, data_uri
from cnnlab.inspect.statistics import layer_statistics
from cnnlab.io.errors import CnnlabError
from cnnlab.models.airbench import Whitening
from cnnlab.models.own import Network

_FILTERS = 128
_VALUES = 1 << 22  # pixel values of the images that the layers are measured on
_MOST_IMAGES, _STEP = 500, 50


def look_inside(
    evaluation: RunEvaluation,
    model: Network | None,
    chosen: Sequence[tuple[int, int]],
    thumbnails: Thumbnails,
    threads: int | None,
) -> dict[str, Any]:
    """Return what a report shows of the inside of the evaluated network.

    model: the caller's own network, if the run trained one. chosen: the images that get a map, as (row of the page,
    index in `evaluation.images`). What a network does not have is left out, with a note.
    """
    assert evaluation.images is not None
    network = load_network(evaluation.run, evaluation.weights, model)
    p = preprocessing_of(evaluation.run)
    found: dict[str, Any] = {"maps": [], "layer": "", "filters": None, "layers": [], "images": 0, "notes": []}
    with reproducible(0, threads or available_cores()), exact_float32():
        parts = (
            lambda: _maps(network, evaluation, p, chosen, thumbnails),
            lambda: {"filters": _filters(network, thumbnails)},
            lambda: _layers(network, evaluation.images, p),
        )
        for part in parts:
            try:
                found |= part()
            except CnnlabError as error:
                found["notes"].append(str(error))
    return found


def _maps(
    network: nn.Module,
    evaluation: RunEvaluation,
    p: Preprocessing,
    chosen: Sequence[tuple[int, int]],
    thumbnails: Thumbnails,
) -> dict[str, Any]:
    """Return class-activation maps of the predicted class, and of the true class if it differs.

    A map is the index of its picture, or None if nothing raises the logit of the class.
    """
    from cnnlab.inspect.pictures import overlay  # imports matplotlib, which is slow

    images, predicted = evaluation.images, evaluation.result.predicted
    assert images is not None
    assert predicted is not None
    if not chosen:
        return {}
    index = torch.tensor([place for _, place in chosen])
    pixels = images.images[index]
    x = p(pixels)
    layer = activation_layer(network, x[:1]).path
    side = min(SIDE, max(x.shape[2:]))
    shown = F.interpolate(pixels.float() / 255, size=(side, side), mode="nearest")
    maps = []
    for classes in (predicted[index], images.labels[index]):
        cams = class_activation(network, x, classes)
        cams = F.interpolate(cams[:, None], size=(side, side), mode="bilinear", align_corners=False)[:, 0]
        pictures = [_picture(overlay(image, cam), thumbnails) for image, cam in zip(shown, cams, strict=True)]
        maps.append([None if not cam.any() else n for n, cam in zip(pictures, cams, strict=True)])
    wrong = (predicted[index] != images.labels[index]).tolist()
    return {"layer": layer, "maps": [{"row": row, "predicted": maps[0][n], **({"true": maps[1][n]} if wrong[n] else {})}
                                     for n, (row, _) in enumerate(chosen)]}  # fmt: skip


def _picture(pixels: np.ndarray, thumbnails: Thumbnails) -> int:
    """Add a picture (H, W, 3) in 0..1. Return its index, see `Thumbnails.add`."""
    return thumbnails.add_uri(data_uri((pixels * 255).round().clip(0, 255).astype(np.uint8)))


def _filters(network: nn.Module, thumbnails: Thumbnails) -> dict[str, Any] | None:
    """Return the filters of the first convolution, or None if there is none."""
    found = first_convolution(network)
    if found is None:
        return None
    path, layer = found
    weight = layer.weight.detach().float()
    pixels = (filter_pixels(weight[:_FILTERS]) * 255).round().byte().numpy()
    pictures = [thumbnails.add_uri(data_uri(one)) for one in pixels]
    return {"layer": path, "count": len(weight), "size": list(weight.shape[2:]), "channels": weight.shape[1],
            "whitening": isinstance(layer, Whitening), "pictures": [n for n in pictures if n >= 0]}  # fmt: skip


def _layers(network: nn.Module, images: ImageSet, p: Preprocessing) -> dict[str, Any]:
    """Return the statistics of each layer on some images."""
    most = max(16, min(_MOST_IMAGES, _VALUES // (p.channels * p.image_size**2)))
    some = images.take(stratified_subset(images.labels, most, 0)) if len(images) > most else images
    batches = ((p(x), y) for x, y in zip(some.images.split(_STEP), some.labels.split(_STEP), strict=True))
    return {"layers": [layer.to_dict() for layer in layer_statistics(network, batches)], "images": len(some)}
