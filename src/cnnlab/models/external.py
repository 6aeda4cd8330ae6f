"""Other libraries' networks, for people who fine-tune: `timm:NAME` and `torchvision:NAME`.

NAME alone starts from random weights; NAME.TAG from published ones, in timm's own notation: `timm:resnet18.a1_in1k`,
`torchvision:resnet18.IMAGENET1K_V1`, `torchvision:resnet18.DEFAULT`. The last layer starts anew where the number of
classes is another. For grey images the first convolution's weights are summed over the colours. Images are normalised
by their own mean and deviation, not by those that the weights were trained with.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.io.errors import CnnlabError, reason, unknown

_IMAGENET = 1000  # classes of the published heads


def build_external(
    name: str, *, num_classes: int, in_channels: int, image_size: int, published: bool = False
) -> nn.Module:
    """The network `timm:NAME` or `torchvision:NAME`: (B, C, H, W) -> (B, K). published: fetch the weights of its tag.

    Raises: CnnlabError for an unknown library, name or tag, for a missing package, where weights cannot be fetched,
    and for an image size that the network does not take.
    """
    library, _, rest = name.partition(":")
    if library not in LIBRARIES:
        raise unknown("library", library, LIBRARIES)
    base, _, tag = rest.partition(".")
    # Always on the host: some of these read values of their tensors while they are made, which `meta` has not.
    with torch.device("cpu"):
        model = LIBRARIES[library](name, base, tag, published, num_classes, in_channels, image_size)
        if takes(model, in_channels, image_size):
            return model
        sizes = sorted({32, 64, 96, 128, 224, 256, 299, 384, external_size(name)})
        works = next((n for n in sizes if takes(model, in_channels, n)), None)
        remedy = f"; image_size={works} works" if works else ""
        raise CnnlabError(f"{name}: it does not take images of {image_size}x{image_size} pixels{remedy}")


def published_tag(name: str) -> str:
    """The tag of published weights in a network's name; empty where there is none."""
    library, _, base = name.partition(":")
    return base.partition(".")[2] if library in LIBRARIES else ""


def external_size(name: str) -> int:
    """Pixels a side that the network `timm:NAME` was made for; 224 for torchvision's and where it is not known."""
    library, _, base = name.partition(":")
    if library == "timm":
        try:
            import timm

            config = timm.models.get_pretrained_cfg(base)
            return int(config.input_size[-1]) if config is not None else 224
        except (ImportError, RuntimeError):
            pass
    return 224


def takes(model: nn.Module, channels: int, size: int) -> bool:
    """Does the network take such images? Tried with one."""
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, channels, size, size))
    except (RuntimeError, AssertionError, ValueError, IndexError):
        return False
    finally:
        model.train(was_training)
    return True


def _timm(
    name: str, base: str, tag: str, published: bool, num_classes: int, in_channels: int, image_size: int
) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise CnnlabError(f"{name} needs the package timm; pip install 'cnnlab[timm]'") from error
    known = timm.list_models()
    if base not in known:
        raise unknown("timm model", base, known)
    tags = [n.partition(".")[2] for n in timm.list_pretrained(base + ".*")]
    if tag and tag not in tags:
        raise unknown(f"tag of published weights for timm:{base}", tag, tags)
    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels}
    full = f"{base}.{tag}" if tag else base
    config = timm.models.get_pretrained_cfg(full)
    if config is not None and config.fixed_input_size:
        options["img_size"] = image_size
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its warnings of each try that failed
    try:
        with _no_pickled_code():
            model: nn.Module = timm.create_model(full, pretrained=bool(tag) and published, **options)
    except Exception as error:  # the hub's client has many of its own
        raise _not_built(name, published, error) from error
    return model


def _torchvision(
    name: str, base: str, tag: str, published: bool, num_classes: int, in_channels: int, image_size: int
) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if base not in known:
        raise unknown("torchvision model", base, known)
    weights = models.get_model_weights(base)
    if tag and tag not in weights.__members__:
        raise unknown(f"tag of published weights for torchvision:{base}", tag, weights.__members__)
    options: dict[str, Any] = {"num_classes": num_classes}
    if base in ("googlenet", "inception_v3"):
        options.update(aux_logits=False, init_weights=True)
    if base.startswith("vit_"):
        options["image_size"] = image_size
    try:
        model: nn.Module = models.get_model(base, weights=None, **options)
        _take_channels(model, in_channels)
        if tag and published:
            with _no_pickled_code():
                source = models.get_model(base, weights=weights[tag], progress=False)
            _copy(source, model, name)
    except CnnlabError:
        raise
    except Exception as error:
        raise _not_built(name, published, error) from error
    return model


@contextmanager
def _no_pickled_code() -> Iterator[None]:
    """A file of weights from elsewhere must not run code: torch then loads tensors only, whoever calls it."""
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before


def _take_channels(model: nn.Module, in_channels: int) -> None:
    """Put a new first convolution where the images have not three channels."""
    if in_channels == 3:
        return
    path, first = next((p, m) for p, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3)
    window: Any = {k: getattr(first, k) for k in ("kernel_size", "stride", "padding", "dilation")}
    new = nn.Conv2d(in_channels, first.out_channels, bias=first.bias is not None, **window)
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


def _copy(source: nn.Module, target: nn.Module, name: str) -> None:
    """Copy the weights of `source`, the network as it was published, but for a head of another number of classes.

    A first convolution's channels are summed for grey; images with neither one nor three channels keep a random one.
    Raises: CnnlabError where anything else does not fit.
    """
    published, own = source.state_dict(), target.state_dict()
    fitting: dict[str, Tensor] = {}
    first = next(key for key, tensor in own.items() if tensor.ndim == 4)
    for key, tensor in own.items():
        there = published.get(key)
        if there is not None and there.shape == tensor.shape:
            fitting[key] = there
        elif key == first and there is not None and tensor.shape[1] == 1:
            fitting[key] = there.sum(1, keepdim=True)
        elif there is None or not (key == first or there.shape[0] == _IMAGENET):
            raise CnnlabError(
                f"the weights of {name} do not fit its {key}, {tuple(tensor.shape)}; they are for images of "
                f"{external_size(name)} pixels: set image_size={external_size(name)}"
            )
    target.load_state_dict(fitting, strict=False)


def _not_built(name: str, published: bool, error: Exception) -> CnnlabError:
    if not published:
        size = external_size(name)
        return CnnlabError(f"{name} cannot be built: {reason(error)[:200]}; it is made for image_size={size}")
    return CnnlabError(
        f"the weights of {name} cannot be loaded: {reason(error)[:200]}; they are downloaded once, which needs the "
        f"internet; leave the tag out to start from random weights"
    )


LIBRARIES: dict[str, Callable[..., nn.Module]] = {"timm": _timm, "torchvision": _torchvision}


def libraries() -> Iterable[str]:
    """How such names begin."""
    return [f"{library}:NAME" for library in LIBRARIES]
