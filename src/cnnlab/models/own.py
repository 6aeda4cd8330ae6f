"""A network of your own in place of a name: a module, or a builder that returns one."""

from __future__ import annotations

import copy
import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from cnnlab.io.errors import CnnlabError, reason, unknown
from cnnlab.models.external import LIBRARIES

Network = nn.Module | Callable[..., nn.Module]


def own_name(network: Any) -> str:
    """Return `module:ClassName` for a module, `module:function` for a builder. Raise CnnlabError for anything else.

    The name is only a label; nothing is ever imported by it.
    """
    if not callable(network):
        raise CnnlabError(f"{type(network).__name__} is not a network: pass an nn.Module, or a builder of one")
    while isinstance(network, functools.partial):
        network = network.func
    named = network if hasattr(network, "__qualname__") else type(network)
    return f"{named.__module__}:{named.__qualname__}"


def load_builder(name: str) -> Callable[..., nn.Module]:
    """Run the file of `FILE.py:BUILDER` and return the class or function BUILDER.

    Raise CnnlabError for a file that is missing or fails, and for a name that it does not define.
    """
    file, _, attribute = name.rpartition(":")
    if not file or not attribute or not is_file(name):
        raise CnnlabError(f"model {name!r}: write FILE.py:BUILDER, such as net.py:Net")
    path = Path(file).expanduser()
    if not path.is_file():
        raise CnnlabError(f"model {name!r}: {path} does not exist")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(path.stem)
    sys.modules[path.stem] = module  # dataclasses and pickle look it up
    beside = str(path.parent.absolute())
    sys.path.insert(0, beside)  # so that it can import the modules beside it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a user's file may raise anything, and a script may exit
        raise CnnlabError(f"{path} cannot be run: {type(error).__name__}: {reason(error, 200)}") from error
    finally:
        with suppress(ValueError):  # the file may have changed sys.path itself
            sys.path.remove(beside)
        if before is not None:
            sys.modules[path.stem] = before
    found = getattr(module, attribute, None)
    if not callable(found):
        near = [
            n for n, value in vars(module).items() if callable(value) and getattr(value, "__module__", "") == path.stem
        ]
        raise unknown(f"builder in {path}", attribute, near or ["none"])
    builder: Callable[..., nn.Module] = found
    return builder


def is_file(name: str) -> bool:
    """Return whether a network's name points to a Python file, for `load_builder`."""
    return name.lower().endswith(".py") or name.rpartition(":")[0].lower().endswith(".py")


def builder_source(network: Any) -> str:
    """Return `FILE.py:BUILDER` for `load_builder`, or an empty string if that might not build the same network.

    A module or a partial may have been given other arguments, a console has no file, and a script would run again.
    """
    name = getattr(network, "__qualname__", "")
    if isinstance(network, nn.Module) or not name or network.__module__ == "__main__":
        return ""
    try:
        file = inspect.getsourcefile(network)
    except (TypeError, OSError):  # built in, or from a console
        return ""
    return f"{Path(file).absolute()}:{name}" if file and Path(file).is_file() and name.isidentifier() else ""


def is_own(name: str) -> bool:
    """Return whether `name` came from `own_name`."""
    return ":" in name and name.partition(":")[0] not in LIBRARIES


def build_own(network: Network, *, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return a copy of the module, or the module that the builder returns, on the CPU.

    The builder gets only the keywords that it accepts. Raise CnnlabError if the builder fails, with its exception
    as the cause, and for a result that cannot be trained.
    """
    name = own_name(network)
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    with torch.device("cpu"):  # the builder may read values, which the meta device does not have
        if isinstance(network, nn.Module):
            model = _copy(network, name)
        else:
            parameters = inspect.signature(network).parameters
            try:
                model = network(**{key: value for key, value in sizes.items() if key in parameters})
            except CnnlabError:
                raise
            except Exception as error:  # a user's code may raise anything
                raise CnnlabError(f"{name} cannot be built: {type(error).__name__}: {reason(error, 200)}") from error
    if not isinstance(model, nn.Module):
        raise CnnlabError(f"{name} returned {type(model).__name__}, not an nn.Module")
    if any(isinstance(p, UninitializedParameter) for p in model.parameters()):
        raise CnnlabError(f"{name} has lazy layers without weights; call the module once on a batch of images")
    if not any(p.requires_grad for p in model.parameters()):
        raise CnnlabError(f"{name} has no parameters to train")
    return model.cpu()


def _copy(network: nn.Module, name: str) -> nn.Module:
    try:
        model = copy.deepcopy(network)
    except (RuntimeError, TypeError) as error:
        raise CnnlabError(f"{name} cannot be copied: {reason(error, 200)}; pass a function that builds it") from error
    if not all(p.is_leaf for p in model.parameters()):
        raise CnnlabError(f"{name} cannot be copied, as a scripted module cannot; pass a function that builds it")
    return model


def check_output(model: nn.Module, name: str, *, num_classes: int, in_channels: int, image_size: int) -> None:
    """Check that `model` returns logits (B, num_classes) for images (B, in_channels, image_size, image_size).

    Raise CnnlabError if not. Leave the model in eval mode.
    """
    shape = (2, in_channels, image_size, image_size)
    try:
        with torch.no_grad(), torch.device("cpu"):
            logits = model.eval()(torch.zeros(shape))
    except Exception as error:  # a user's forward may raise anything
        raise CnnlabError(f"{name} does not accept images of shape {shape}: {reason(error, 200)}") from error
    if not isinstance(logits, Tensor):
        raise CnnlabError(f"{name} returns {type(logits).__name__}; expected one tensor of logits (B, {num_classes})")
    if logits.shape != (2, num_classes):
        raise CnnlabError(
            f"{name} returns {tuple(logits.shape)} for 2 images; expected (2, {num_classes}): one logit for each "
            f"of the {num_classes} classes of the images"
        )
