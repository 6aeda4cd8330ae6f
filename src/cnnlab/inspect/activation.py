"""Grad-CAM: which parts of an image raise the logit of a class.

R. R. Selvaraju et al., Grad-CAM: visual explanations from deep networks via gradient-based localization, ICCV 2017,
arXiv:1610.02391. For a network that ends in global average pooling and one linear layer it equals CAM (B. Zhou et al.,
Learning deep features for discriminative localization, CVPR 2016), up to the scale.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.inspect.layers import activation_layer, eval_mode, watch
from cnnlab.io.errors import CnnlabError


def class_activation(model: nn.Module, x: Tensor, classes: Tensor, layer: str | None = None) -> Tensor:
    """Return a class-activation map for each image: (B, H, W) float32 in 0..1, of the images' size.

    The feature maps of a layer are added up, each weighted by the mean gradient of the class's logit. Negative sums,
    which speak against the class, become 0. The largest value of a map is 1, unless it is 0 everywhere.

    model: (B, C, H, W) -> logits (B, K); its mode, gradients and buffers stay as they are. x: preprocessed images (B,
    C, H, W). classes: (B,) int64. layer: a module's path. Default: see `activation_layer`. Raise CnnlabError for a
    network without such a layer, and for NaN or Inf.
    """
    place = activation_layer(model, x, layer)
    kept: list[Tensor] = []

    def record(_path: str, call: int, _module: nn.Module, output: Tensor) -> Any:
        if call != place.call:
            return None
        # Gradients are recorded from here on only, which saves memory, and time in the backward pass.
        torch.set_grad_enabled(True)
        kept.append(output.detach().clone().requires_grad_())
        return kept[0] * 1  # a later module may work in place

    watched = iter([(place.path, model.get_submodule(place.path))])
    with torch.inference_mode(False), torch.no_grad(), eval_mode(model), watch(watched, record):
        score = model(x.clone()).gather(1, classes[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, kept[0], allow_unused=True) if score.requires_grad else (None,)
    if gradient is None:
        raise CnnlabError(f"the logits do not depend on the layer {place.path}; name another one")
    maps, gradient = place.channels_first(kept[0].detach()), place.channels_first(gradient)
    cam = (gradient.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu().float()  # (B, 1, h, w)
    if not bool(cam.isfinite().all()):
        raise CnnlabError("the class-activation map has NaN or Inf; the network's weights are probably damaged")
    cam = F.interpolate(cam, size=x.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    largest = cam.amax((1, 2), keepdim=True)
    return (cam / largest.clamp_min(torch.finfo(cam.dtype).tiny)).clamp(0, 1)
