"""From fitted images to probabilities in one torch module: preprocessing, network, temperature, threshold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cnnlab.data.loader import Preprocessing
from cnnlab.inference import Classifier
from cnnlab.training.evaluate import probabilities


class Answer(nn.Module):
    """Fitted images (B, C, size, size) uint8 -> what an exported file answers.

    Returns probabilities (B, K) float32, the number of the most probable class (B,) int64, and whether the image is
    none of the classes (B,) bool; with `pooled`, also the class-activation maps (B, K, h, w) float32. half: the network
    computes in float16. The classifier's network is changed to that.
    """

    def __init__(self, classifier: Classifier, *, half: bool = False, pooled: Pooled | None = None) -> None:
        super().__init__()
        self.resize = Resize(classifier.preprocessing)
        self.network = classifier.network.half() if half else classifier.network
        self.temperature, self.threshold = classifier.temperature, classifier.threshold
        self.half_precision, self.pooled = half, pooled

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the answers for a batch."""
        x = self.resize(images)
        x = x.half() if self.half_precision else x
        kept: list[Tensor] = []
        if self.pooled is not None:
            layer = self.network.get_submodule(self.pooled.layer)
            hook = layer.register_forward_hook(lambda _module, _input, output: kept.append(output))
            logits = self.network(x).float()
            hook.remove()
        else:
            logits = self.network(x).float()
        p = probabilities(logits, self.temperature)
        # Compared in float64, as `Predictions` does with Python's numbers.
        answers = p, logits.argmax(1), p.amax(1).double() < self.threshold
        return answers if self.pooled is None else (*answers, self.pooled.maps(self.network, kept[-1]))


@dataclass(frozen=True)
class Pooled:
    """A network that ends in global average pooling, and maybe a linear layer. layer, head: paths of the modules.

    B. Zhou et al., Learning deep features for discriminative localization, CVPR 2016: the pooling and the linear layer
    may change places, which gives a logit for each place of the last feature maps.
    """

    layer: str
    head: str | None

    def maps(self, network: nn.Module, features: Tensor) -> Tensor:
        """Return the class-activation maps (B, K, h, w) of features (B, C, h, w); their means are the logits."""
        if self.head is None:
            return features.float()
        head = network.get_submodule(self.head)
        assert isinstance(head, nn.Linear)
        found = torch.einsum("kc,bchw->bkhw", head.weight, features)
        return (found if head.bias is None else found + head.bias[:, None, None]).float()


def find_pooled(network: nn.Module, channels: int, size: int) -> Pooled | None:
    """Return where a network pools its last feature maps, or None if it does not end so.

    It is tried on random images: the means of the maps must be the logits.
    """
    last: list[tuple[str, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda _module, _input, output, path=path: last.append((path, output)))
        for path, module in network.named_modules()
        if path
    ]
    x = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            logits = network(x)
    finally:
        for hook in hooks:
            hook.remove()
    maps = [(path, out.clone()) for path, out in last if isinstance(out, Tensor) and out.ndim == 4 and out.shape[2] > 1]
    heads = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    for head in (*heads[-1:], None):
        for path, features in maps[-1:]:
            found = Pooled(path, head)
            last_layer = network.get_submodule(head) if head else None
            width = last_layer.in_features if isinstance(last_layer, nn.Linear) else logits.shape[1]
            if features.shape[1] != width:
                continue
            with torch.inference_mode():
                if torch.allclose(found.maps(network, features).mean((2, 3)), logits, rtol=1e-3, atol=1e-3):
                    return found
    return None


class Resize(nn.Module):
    """`Preprocessing`, whose interpolation is a product with two matrices: exporters differ in their interpolation.

    (B, C, size, size) uint8 -> (B, C, image_size, image_size) float32, equal up to rounding.
    """

    matrix: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.resizes = preprocessing.image_size != preprocessing.native_size
        self.clamps = self.resizes and preprocessing.interpolation == "bicubic"
        self.normalizes = any(preprocessing.mean) or any(s != 1 for s in preprocessing.std)
        self.register_buffer("matrix", _matrix(preprocessing))
        self.register_buffer("mean", torch.tensor(preprocessing.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(preprocessing.std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's input."""
        x = images.float() / 255
        if self.resizes:
            x = self.matrix @ (x @ self.matrix.T)
        if self.clamps:
            x = x.clamp(0, 1)
        return (x - self.mean) / self.std if self.normalizes else x


def _matrix(p: Preprocessing) -> Tensor:
    """Return the weights (image_size, native_size) of the interpolation, as PyTorch itself gives them.

    They are what becomes of the rows of an image that is 1 on its diagonal, resized in width only.
    """
    native, size = p.native_size, p.image_size
    if native == size:
        return torch.eye(native)
    bicubic = p.interpolation == "bicubic"
    found = nn.functional.interpolate(
        torch.eye(native)[None, None],
        size=(native, size),
        mode="bicubic" if bicubic else "bilinear",
        antialias=size < native,
    )
    return found[0, 0].T.contiguous()
