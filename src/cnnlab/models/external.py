"""Networks of other libraries, for fine-tuning: `timm:NAME` and `torchvision:NAME`.

NAME alone starts from random weights, NAME.TAG from published ones, in timm's notation: `timm:resnet18.a1_in1k`,
`torchvision:resnet18.IMAGENET1K_V1`, `torchvision:resnet18.DEFAULT`. If the number of classes differs, the last layer
is initialized randomly. Unless there are three channels, the first convolution is adapted; see `published.adapted`.
Images are normalized with the mean and standard deviation that the weights were trained with.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from cnnlab.io.errors import CnnlabError, reason, unknown
from cnnlab.models.published import PACKAGED, Published, adapted, lite0_weights

_IMAGENET = 1000  # classes of the published heads
# Their weights were trained on images normalized with mean and std 0.5; torchvision loads them with
# transform_input=True, which converts from the usual mean and std. Here the images are normalized with 0.5 directly.
_WITH_TRANSFORM = ("googlenet", "inception_v3")
# Makes torch.load read tensors only, whoever calls it: a downloaded file must not run code.
_TENSORS_ONLY = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}


def build_external(
    name: str, *, num_classes: int, in_channels: int, image_size: int, published: bool = False
) -> nn.Module:
    """Build the network `timm:NAME` or `torchvision:NAME`: (B, C, H, W) -> (B, K). published: load the tag's weights.

    Raise CnnlabError for an unknown library, name or tag, a missing package, weights that cannot be downloaded, and an
    image size that the network does not accept.
    """
    library, _, rest = name.partition(":")
    if library not in LIBRARIES:
        raise unknown("library", library, LIBRARIES)
    base, _, tag = rest.partition(".")
    # Not on `meta`: some constructors read values of their tensors.
    with torch.device("cpu"):
        model = LIBRARIES[library](name, base, tag, published, num_classes, in_channels, image_size)
        if accepts(model, in_channels, image_size):
            return model
        sizes = sorted({32, 64, 96, 128, 224, 256, 299, 384, external_size(name)})
        working = next((n for n in sizes if accepts(model, in_channels, n)), None)
        remedy = f"; image_size={working} works" if working else ""
        raise CnnlabError(f"{name}: it does not accept images of {image_size}x{image_size} pixels{remedy}")


def published_tag(name: str) -> str:
    """Return the tag of published weights in a network's name, or an empty string."""
    library, _, base = name.partition(":")
    return base.partition(".")[2] if library in LIBRARIES else name.partition(".")[2] if name in PACKAGED else ""


def published_weights(name: str) -> Published | None:
    """Return a description of the published weights that a network's name asks for; None for a name without a tag.

    Raise CnnlabError for an unknown name or tag, and a missing package.
    """
    if not published_tag(name):
        return None
    if name in PACKAGED:
        return lite0_weights()
    library, _, rest = name.partition(":")
    base, _, tag = rest.partition(".")
    if library == "timm":
        timm = _import_timm(name)
        _check_tag(name, base, tag, timm.list_models(), _timm_tags(timm, base))
        c = timm.models.get_pretrained_cfg(rest)
        return Published(
            size=c.input_size[-1], mean=tuple(c.mean), std=tuple(c.std),
            interpolation=c.interpolation if c.interpolation in ("bilinear", "bicubic") else "bilinear",
            license=c.license or "not stated", origin=c.hf_hub_id or c.url or "timm",
            fixed_size=bool(c.fixed_input_size),
        )  # fmt: skip
    from torchvision import models

    _check_tag(name, base, "", models.list_models(module=models), ())
    weights = models.get_model_weights(base)
    _check_tag(name, base, tag, (base,), weights.__members__)
    images = weights[tag].transforms()
    mean, std = tuple(images.mean), tuple(images.std)
    if base in _WITH_TRANSFORM:
        mean = std = (0.5, 0.5, 0.5)
    return Published(
        size=images.crop_size[0], mean=mean, std=std,
        interpolation="bicubic" if "bicubic" in str(images.interpolation.value) else "bilinear",
        license=weights[tag].meta.get("license", "not stated"), origin=weights[tag].url,
        fixed_size=base.startswith(("vit_", "maxvit")),
    )  # fmt: skip


def pretrained_name(name: str) -> str:
    """Return the network's name with a tag of published weights, or else the name of another network that has some."""
    library, _, base = name.partition(":")
    if library == "timm":
        config = _timm_config(base)
        return f"{name}.{config.tag}" if config is not None and config.tag else PACKAGED[0]
    return f"{name}.DEFAULT" if library == "torchvision" else PACKAGED[0]


def external_size(name: str) -> int:
    """Return the image side in pixels that `timm:NAME` was designed for; 224 for other libraries or if unknown."""
    library, _, base = name.partition(":")
    config = _timm_config(base) if library == "timm" else None
    return int(config.input_size[-1]) if config is not None else 224


def _timm_config(base: str) -> Any:
    """Return timm's configuration of a network's published weights, or None."""
    try:
        import timm

        return timm.models.get_pretrained_cfg(base)
    except (ImportError, RuntimeError):
        return None


def accepts(model: nn.Module, channels: int, size: int) -> bool:
    """Return whether the network accepts images (channels, size, size), by running it on one."""
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, channels, size, size))
    except (RuntimeError, AssertionError, ValueError, IndexError):
        return False
    finally:
        model.train(was_training)
    return True


def _import_timm(name: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise CnnlabError(f"{name} needs the package timm; pip install 'cnnlab[timm]'") from error
    return timm


def _timm_tags(timm: Any, base: str) -> list[str]:
    return [n.partition(".")[2] for n in timm.list_pretrained(base + ".*")]


def _check_tag(name: str, base: str, tag: str, known: Iterable[str], tags: Iterable[str]) -> None:
    library = name.partition(":")[0]
    if base not in known:
        raise unknown(f"{library} model", base, known)
    if tag and tag not in tags:
        raise unknown(f"tag of published weights for {library}:{base}", tag, tags)


def _timm(
    name: str, base: str, tag: str, published: bool, num_classes: int, in_channels: int, image_size: int
) -> nn.Module:
    timm = _import_timm(name)
    _check_tag(name, base, tag, timm.list_models(), _timm_tags(timm, base))
    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels}
    full = f"{base}.{tag}" if tag else base
    config = timm.models.get_pretrained_cfg(full)
    if config is not None and config.fixed_input_size:
        options["img_size"] = image_size
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its warnings about retries
    try:
        with patch.dict(os.environ, _TENSORS_ONLY):
            model: nn.Module = timm.create_model(full, pretrained=bool(tag) and published, **options)
    except Exception as error:  # the hub's client raises exceptions of many kinds
        raise _not_built(name, published, error) from error
    return model


def _torchvision(
    name: str, base: str, tag: str, published: bool, num_classes: int, in_channels: int, image_size: int
) -> nn.Module:
    from torchvision import models

    _check_tag(name, base, "", models.list_models(module=models), ())
    weights = models.get_model_weights(base)
    _check_tag(name, base, tag, (base,), weights.__members__)
    options: dict[str, Any] = {"num_classes": num_classes}
    if base in _WITH_TRANSFORM:
        options.update(aux_logits=False, init_weights=True)
    if base.startswith("vit_"):
        options["image_size"] = image_size
    try:
        model: nn.Module = models.get_model(base, weights=None, **options)
        _take_channels(model, in_channels)
        if tag and published:
            with patch.dict(os.environ, _TENSORS_ONLY):
                source = models.get_model(base, weights=weights[tag], progress=False)
            _copy(source, model, name)
    except CnnlabError:
        raise
    except Exception as error:
        raise _not_built(name, published, error) from error
    return model


def _take_channels(model: nn.Module, in_channels: int) -> None:
    """Replace the first convolution unless the images have three channels."""
    if in_channels == 3:
        return
    path, first = next((p, m) for p, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3)
    window: Any = {k: getattr(first, k) for k in ("kernel_size", "stride", "padding", "dilation")}
    new = nn.Conv2d(in_channels, first.out_channels, bias=first.bias is not None, **window)
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


def _copy(source: nn.Module, target: nn.Module, name: str) -> None:
    """Copy the published weights of `source`, except for a head with another number of classes.

    The first convolution is `adapted` to the channels. Raise CnnlabError if anything else does not fit.
    """
    published, own = source.state_dict(), target.state_dict()
    fitting: dict[str, Tensor] = {}
    first = next(key for key, tensor in own.items() if tensor.ndim == 4)
    for key, tensor in own.items():
        value = published.get(key)
        if value is not None and value.shape == tensor.shape:
            fitting[key] = value
        elif key == first and value is not None and value.shape[1] == 3:
            fitting[key] = adapted(value, tensor.shape[1])
        elif value is None or value.shape[0] != _IMAGENET:
            raise CnnlabError(
                f"the weights of {name} do not fit its {key}, {tuple(tensor.shape)}; they are for images of "
                f"{external_size(name)} pixels: set image_size={external_size(name)}"
            )
    target.load_state_dict(fitting, strict=False)


def _not_built(name: str, published: bool, error: Exception) -> CnnlabError:
    if not published:
        size = external_size(name)
        return CnnlabError(f"{name} cannot be built: {reason(error, 200)}; it is designed for image_size={size}")
    return CnnlabError(
        f"the weights of {name} cannot be loaded: {reason(error, 200)}; they are downloaded once, which needs "
        f"internet access; {PACKAGED[0]} needs no download; or leave out the tag to start from random weights"
    )


LIBRARIES: dict[str, Callable[..., nn.Module]] = {"timm": _timm, "torchvision": _torchvision}


def libraries() -> Iterable[str]:
    """Return the forms of external names, such as `timm:NAME`."""
    return [f"{library}:NAME" for library in LIBRARIES]
