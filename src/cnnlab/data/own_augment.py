"""Augmentation by the user: a function of a batch, or a torchvision v2 transform."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnnlab.device.determinism import random_state, set_random_state
from cnnlab.io.errors import CnnlabError, out_of_memory, reason
from cnnlab.models.own import own_name

Augment = Callable[..., Tensor]
"""(images, generator) or (images) -> images: (B, C, H, W) float32 in 0..1, same shape out."""


class OwnAugmentation:
    """A user's function or nn.Module that augments batches, with draws that depend only on a seed.

    function: gets the images (B, C, H, W) float32 in 0..1 and, if its second parameter has no default or is called
    `generator`, a torch.Generator on their device. It returns the same shape. name: `module:name` of the function.
    """

    def __init__(self, function: Augment) -> None:
        if not callable(function):
            raise CnnlabError(
                f"augment={type(function).__name__}: pass a function of images, or a torchvision transform"
            )
        self.name = own_name(function)
        self._function, self._takes_generator = function, _takes_generator(function)

    def __call__(self, images: Tensor, seed: int) -> Tensor:
        """Return the augmented images: (B, C, H, W) float32, same shape out.

        The global generators of torch, NumPy and Python are seeded for the call and restored after it. So what the
        function draws from them depends only on the seed and changes nothing else in the training. Raise CnnlabError if
        the function fails or returns anything else.
        """
        device, shape = images.device, tuple(images.shape)
        tensors, values = random_state(device)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        more = [torch.Generator(device).manual_seed(seed)] if self._takes_generator else []
        try:
            with torch.no_grad():
                changed = self._function(images, *more)
        except CnnlabError:
            raise
        except Exception as error:  # a user's code may raise anything
            if out_of_memory(error):
                raise
            what = f"{type(error).__name__}: {reason(error, 200)}"
            raise CnnlabError(f"augment={self.name} failed on images of shape {shape}: {what}") from error
        finally:
            set_random_state(device, tensors, values)
        if not isinstance(changed, Tensor):
            raise CnnlabError(f"augment={self.name} returned {type(changed).__name__}, not a tensor of images")
        if tuple(changed.shape) != shape or changed.dtype != torch.float32 or changed.device != device:
            raise CnnlabError(
                f"augment={self.name} returned {_kind(changed)} for {_kind(images)}; keep shape, type and device"
            )
        return changed.contiguous()  # it is normalized in place


def _takes_generator(function: Any) -> bool:
    try:
        parameters = inspect.signature(function.forward if isinstance(function, nn.Module) else function).parameters
    except (TypeError, ValueError):  # written in C
        return False
    places = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(places) > 1 and (places[1].default is places[1].empty or places[1].name == "generator")


def _kind(images: Tensor) -> str:
    return f"{tuple(images.shape)} {str(images.dtype).removeprefix('torch.')} on {images.device}"
