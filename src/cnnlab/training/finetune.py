"""Fine-tuning: the head of a network, its stages and their learning rates, and training on frozen features.

Lower rates for earlier layers, and the head first: J. Howard, S. Ruder, Universal language model fine-tuning for text
classification, ACL 2018.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.data.augment import Augmentation
from cnnlab.data.feeder import Feeder
from cnnlab.data.imageset import Report, no_report
from cnnlab.data.loader import Loader, Preprocessing
from cnnlab.device.determinism import random_state, set_random_state
from cnnlab.device.precision import autocast
from cnnlab.models.batch_norm import BatchNorm

_FEWEST = 6  # stages, where the network can be split into as many


def find_head(model: nn.Module, build: Callable[[], nn.Module] | None = None) -> list[str]:
    """Return the names of the modules of `model` that depend on the number of classes.

    build: returns the network for another number of classes. Default: the last module with weights is the head.
    """
    layers = [name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))]
    if build is None:
        return layers[-1:]
    state = random_state(torch.device("cpu"))
    with torch.no_grad():
        other = build().state_dict()
    set_random_state(torch.device("cpu"), *state)
    own = model.state_dict()
    head = {key.rpartition(".")[0] for key, tensor in own.items() if key in other and other[key].shape != tensor.shape}
    return [name for name in layers if name in head] or layers[-1:]


def stages(model: nn.Module) -> list[list[str]]:
    """Return the names of the parameters of `model` by stage, from the first to the head.

    The stages are the children of the network; while there are fewer than six, the largest is split into its children.
    A part with neither filters nor matrices, such as a norm, joins the stage before it; the first part, the one after.
    """
    parts = _parts(model, "")
    while len(merged := _merged(parts, model)) < _FEWEST:
        sizes = [sum(p.numel() for p in m.parameters()) if any(m.children()) else 0 for _, m, _ in parts]
        at = max(range(len(parts)), key=lambda i: sizes[i], default=0)
        if not parts or not sizes[at]:
            break
        path, module, _ = parts[at]
        parts[at : at + 1] = _parts(module, f"{path}.")
    return merged


def _parts(module: nn.Module, prefix: str) -> list[tuple[str, nn.Module, list[str]]]:
    """Return path, module and the names of the parameters of each child, after the module's own parameters."""
    own = [f"{prefix}{name}" for name, _ in module.named_parameters(recurse=False)]
    parts = [(prefix.rstrip("."), nn.Module(), own)]
    for name, child in module.named_children():
        parts.append((f"{prefix}{name}", child, [f"{prefix}{name}.{key}" for key, _ in child.named_parameters()]))
    return [part for part in parts if part[2]]


def _merged(parts: list[tuple[str, nn.Module, list[str]]], model: nn.Module) -> list[list[str]]:
    heavy = {name for name, p in model.named_parameters() if p.ndim in (2, 4)}
    merged: list[list[str]] = []
    for _, _, names in parts:
        if merged and (heavy.isdisjoint(names) or heavy.isdisjoint(merged[-1])):
            merged[-1] = merged[-1] + names
        else:
            merged.append(names)
    return merged


def layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """Return the learning-rate factor of each parameter; {} if all are 1.

    It is 1 in the last stage, `decay` in the one before, `decay` ** 2 in the one before that, ...
    """
    if decay == 1:
        return {}
    found = stages(model)
    return {name: decay ** (len(found) - 1 - i) for i, names in enumerate(found) for name in names}


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Return the layers of `model` that are PyTorch's batch norm or our own from scratch."""
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm | BatchNorm)]


def freeze_batch_norm(model: nn.Module) -> None:
    """Put batch norm into eval mode: it uses its running statistics and keeps them. Its scale and shift are trained."""
    for module in batch_norms(model):
        module.eval()


class FrozenBody:
    """The first epochs of fine-tuning: all layers but the head are frozen and in eval mode; images are not augmented.

    The head's input therefore never changes. It is computed once per image, and the head is trained and evaluated on
    it. If several layers depend on the classes, or something follows the head, the whole network runs each time.

    `model`: the module to train and evaluate, on the batches of `train_loader` and `eval_loader`. report: called after
    each batch of features; may raise. cache: whether to compute the features once.
    """

    def __init__(
        self,
        model: nn.Module,
        head: list[str],
        train_loader: Loader,
        eval_loader: Loader,
        precision: torch.dtype = torch.float32,
        report: Report = no_report,
        *,
        cache: bool = True,
    ) -> None:
        self._whole, self._head = model, [model.get_submodule(name) for name in head]
        self._precision = precision
        trained = {id(p) for module in self._head for p in module.parameters()}
        self._frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in trained]
        self.model = model
        self.train_loader = copy.copy(train_loader)
        self.train_loader._augmentation, self.train_loader._own = Augmentation(), None
        self.eval_loader = eval_loader
        for p in self._frozen:
            p.requires_grad_(False)
        if cache and (shape := self._head_input()):
            self.train_loader = self._cached(self.train_loader, report)
            self.eval_loader = self._cached(self.eval_loader, report)
            self.model = _Head(self._head[0], shape)

    def train_mode(self) -> None:
        """Put the head into training mode and everything else into eval mode."""
        self._whole.eval()
        for module in self._head:
            module.train()

    def end(self) -> None:
        """Unfreeze the body."""
        for p in self._frozen:
            p.requires_grad_(True)

    def _head_input(self) -> torch.Size | None:
        """Return the shape of the head's input, without the batch; None unless the head directly follows the body."""
        if len(self._head) != 1:
            return None
        x, _ = next(iter(self.eval_loader))
        features, logits = self._features(x[:2])
        if len(features) != 1:
            return None
        with torch.no_grad(), autocast(x.device, self._precision):
            return features[0].shape[1:] if torch.equal(self._head[0](features[0]), logits) else None

    def _features(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the head's input each time it was called, and the logits."""
        seen: list[Tensor] = []

        def note(_: nn.Module, args: Any) -> None:
            seen.append(args[0])

        hook = self._head[0].register_forward_pre_hook(note)
        try:
            self._whole.eval()
            with torch.no_grad(), autocast(x.device, self._precision):
                return seen, self._whole(x)
        finally:
            hook.remove()

    def _cached(self, loader: Loader, report: Report) -> Loader:
        """Return a loader of the same batches with features (B, F, 1, 1) in place of images."""
        parts = []
        for x, _ in loader:
            parts.append(self._features(x)[0][0].flatten(1)[:, :, None, None])
            report("computing features", min(len(parts) * len(parts[0]), loader.count), loader.count)
        features = torch.cat(parts)  # (N, F, 1, 1)
        cached = copy.copy(loader)
        cached.feeder = Feeder(features, loader.feeder.labels, loader.device, resident=True)
        cached.preprocessing = _AsTheyAre(
            channels=features.shape[1], native_size=1, image_size=1, fit="pad", mean=(0.0,), std=(1.0,)
        )
        return cached


class _AsTheyAre(Preprocessing):
    """The preprocessing of features, which are not pixels: neither scaled nor resized."""

    def resized(self, images: Tensor) -> Tensor:
        return images


class _Head(nn.Module):
    """The head on its features: (B, F, 1, 1) -> (B, K). shape: the shape of its input, without the batch."""

    def __init__(self, head: nn.Module, shape: torch.Size) -> None:
        super().__init__()
        self.head, self._shape = head, shape

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.reshape(-1, *self._shape))
        return logits
