"""Random augmentation of a batch on its device, as pure functions of tensors, with a separate draw for each image.

Flips, shifts, crops and affine changes are in geometry.py; here are colours, RandAugment, cutout and mixing.

All functions take images (B, C, H, W) float32 in 0..1, not yet normalized, and return a new tensor of the same shape
and range. Their random choices depend only on the state of the draws' generator. Only `rand_augment` waits for the
device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnlab.data.draws import Draws
from cnnlab.data.geometry import alternating_flip, random_affine, random_flip, random_resized_crop, random_shift
from cnnlab.recipe import Recipe


def cutout(images: Tensor, pixels: int, draws: Draws, fill: float | Tensor = 0.0) -> Tensor:
    """Fill a square of `pixels` a side in each image with `fill`, a number or one for each channel (C,).

    The square's centre is uniform over the pixels, so it may hang over the edge: T. DeVries and G. Taylor,
    arXiv:1708.04552.
    """
    row, column = _draw_pixels(images, draws)
    return _filled(images, _box(row, column, pixels, pixels, images.shape), fill)


def color_jitter(images: Tensor, brightness: float, contrast: float, saturation: float, draws: Draws) -> Tensor:
    """Scale brightness, contrast and saturation of each image, in a random order.

    Each factor is uniform in max(0, 1 - x)..1 + x for its argument x. This is torchvision's ColorJitter without hue,
    except that torchvision draws one order and one set of factors for the whole batch. Only images with 3 channels have
    a saturation.
    """
    return _recolored(images, *_draw_colors(images, (brightness, contrast, saturation), draws))


def _draw_colors(images: Tensor, reach: tuple[float, float, float], draws: Draws) -> tuple[Tensor, Tensor]:
    """Return factors (B, 3) of brightness, contrast and saturation, and the order (B, 3) of the three."""
    numbers = draws.rand(images, 2, -1, 3)
    lows = [max(0.0, 1 - x) for x in reach]
    factors = [numbers[0, :, i] * (1 + x - low) + low for i, (x, low) in enumerate(zip(reach, lows, strict=True))]
    return torch.stack(factors, dim=1), numbers[1].argsort(dim=1)


def _recolored(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Apply the adjustments 0, 1, 2 (brightness, contrast, saturation) in each image's order."""
    colors = images.shape[1] == 3
    for kind in order.T[:, :, None, None, None]:
        grey = images.mean(1, keepdim=True)
        if colors:
            grey = images[:, :1] * 0.2989 + images[:, 1:2] * 0.587 + images[:, 2:] * 0.114
        # Each is a blend with an image without that quality: black, its mean grey, or the grey image.
        flat = torch.where(kind == 0, 0.0, grey.mean((2, 3), keepdim=True))
        lacking = torch.where(kind == 2, grey if colors else images, flat)
        images = torch.lerp(lacking, images, factors.gather(1, kind.view(-1, 1))[:, :, None, None]).clamp_(0, 1)
    return images


# The operations of rand_augment. Some have a sign, which the others ignore.
_OPERATIONS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Contrast", "Sharpness"),
    *("Posterize", "Solarize", "AutoContrast", "Equalize", "Color"),  # Color is last: grey images do without it
)


def rand_augment(images: Tensor, operations: int, magnitude: int, draws: Draws, fill: float | Tensor = 0.0) -> Tensor:
    """Apply `operations` random operations of strength `magnitude`, 0..30, to each image, one after the other.

    E. Cubuk et al., arXiv:1909.13719, with torchvision's operations and magnitudes (31 bins), but drawn for each
    image, while torchvision draws once per batch. fill, a number or (C,), is the colour outside the image.
    Posterize and Equalize round to 256 levels.
    """
    kinds = len(_OPERATIONS) - (images.shape[1] != 3)
    # One draw for an operation and its sign; sorting by it makes each group contiguous.
    codes = draws.randint(images, 2 * kinds, operations, -1)
    # The host must know the sizes of the groups: the only transfer, once for all rounds.
    sizes = (codes[:, :, None] == torch.arange(2 * kinds, device=images.device)).sum(1).tolist()
    for code, size in zip(codes, sizes, strict=True):
        order = code.argsort(stable=True)
        groups = images[order].split(size)
        done = [
            _operated(group, _OPERATIONS[i // 2], magnitude, 1 - 2 * (i % 2), fill) if len(group) else group
            for i, group in enumerate(groups)
        ]
        images = torch.cat(done)[order.argsort()]
    return images if operations else images.clone()


def _operated(images: Tensor, name: str, magnitude: int, sign: int, fill: float | Tensor) -> Tensor:
    """Apply one operation, named as in torchvision, to all images."""
    from torchvision.transforms.v2 import functional as tv  # slow to import

    def at(zero: float, most: float) -> float:  # in float32, as torchvision does
        return float(torch.linspace(zero, most, 31)[magnitude])

    def moved(**options: Any) -> Tensor:
        # With nearest-neighbour interpolation. An extra channel marks what lies outside: tv takes no tensor as fill.
        rest = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
        marked = torch.cat((images, torch.ones_like(images[:, :1])), dim=1)
        marked = tv.rotate(marked, **options) if name == "Rotate" else tv.affine(marked, **(rest | options))
        return _filled(marked[:, :-1], marked[:, -1:] < 0.5, fill)

    h, w = images.shape[2:]
    shear = sign * math.degrees(math.atan(at(0, 0.3)))
    far = 150.0 / 331.0
    factor = 1 + sign * at(0, 0.9)
    # torchvision supports only grey and colour: otherwise each channel is changed as a grey image.
    plain = images if images.shape[1] in (1, 3) else images.flatten(0, 1)[:, None]
    changes: dict[str, Callable[[], Tensor]] = {
        "Identity": lambda: images,
        "ShearX": lambda: moved(shear=[shear, 0.0], center=[0, 0]),
        "ShearY": lambda: moved(shear=[0.0, shear], center=[0, 0]),
        "TranslateX": lambda: moved(translate=[sign * int(at(0, far * w)), 0]),
        "TranslateY": lambda: moved(translate=[0, sign * int(at(0, far * h))]),
        "Rotate": lambda: moved(angle=sign * at(0, 30)),
        "Brightness": lambda: tv.adjust_brightness(plain, factor),
        "Contrast": lambda: tv.adjust_contrast(plain, factor),
        "Sharpness": lambda: tv.adjust_sharpness(plain, factor),
        "Color": lambda: tv.adjust_saturation(plain, factor),
        "Posterize": lambda: tv.posterize(_levels(plain), round(8 - magnitude / 7.5)).float() / 255,
        "Solarize": lambda: tv.solarize(plain, at(1, 0)),
        "AutoContrast": lambda: tv.autocontrast(plain),
        "Equalize": lambda: tv.equalize(_levels(plain)).float() / 255,
    }
    return changes[name]().reshape(images.shape)


def mixup(images: Tensor, labels: Tensor, alpha: float, draws: Draws) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Blend each image with another of the batch.

    Return (images, labels, other labels, weight of `labels` (B,) float32). H. Zhang et al., arXiv:1710.09412, with a
    separate weight ~ Beta(alpha, alpha) for each image. The other image is its neighbour, see `_neighbours`; the paper
    permutes the batch.
    """
    share = _draw_shares(images, alpha, draws)
    other = _neighbours(images)
    return torch.lerp(images[other], images, share[:, None, None, None]), labels, labels[other], share


def cutmix(images: Tensor, labels: Tensor, alpha: float, draws: Draws) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Paste a box of another image of the batch into each image.

    Return (images, labels, other labels, weight of `labels` (B,) float32). S. Yun et al., arXiv:1905.04899. For each
    image, the box has the image's proportions, an area ~ 1 - Beta(alpha, alpha) and a centre uniform over the pixels.
    The other image is its neighbour, see `_neighbours`. The weight is the share of the image that the clipped box
    leaves.
    """
    side = (1 - _draw_shares(images, alpha, draws)).sqrt()[:, None]
    other = _neighbours(images)
    row, column = _draw_pixels(images, draws)
    height, width = ((length * side).long() for length in images.shape[2:])
    box = _box(row, column, height, width, images.shape)
    return torch.where(box, images[other], images), labels, labels[other], 1 - box.float().mean((1, 2, 3))


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The settings of the augmentation; the defaults change nothing.

    shift: pixels; shift_fill: zeros or reflect; flip: mirror at random, or in every other epoch with
    alternating_flip (which requires flip); vertical_flip: also upside down; rotation, zoom, shear: see `random_affine`;
    fill: how these fill the area outside an image: mean (the mean that is subtracted later), zeros or reflect;
    crop_scale: smallest fraction of the area that is kept; crop_ratio: largest aspect ratio r of 1/r..r; if both are 1,
    nothing is cropped; brightness, contrast, saturation: see `color_jitter`; cutout: pixels a side; randaugment:
    operations per image, with strength magnitude, 0..30; mixup, cutmix: their alphas; if both are set, each batch gets
    one of them.
    """

    shift: int = 0
    shift_fill: str = "zeros"
    flip: bool = False
    alternating_flip: bool = False
    vertical_flip: bool = False
    rotation: float = 0.0
    zoom: float = 0.0
    shear: float = 0.0
    fill: str = "mean"
    crop_scale: float = 1.0
    crop_ratio: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    cutout: int = 0
    randaugment: int = 0
    magnitude: int = 9
    mixup: float = 0.0
    cutmix: float = 0.0

    @classmethod
    def of(cls, recipe: Recipe) -> Augmentation:
        """Return the recipe's augmentation: none with `overfit`."""
        if recipe.overfit:
            return cls()
        return cls(**{f.name: getattr(recipe, f.name) for f in fields(cls)})

    def apply(
        self, images: Tensor, index: Tensor, count: int, epoch: int, seed: int, draws: Draws,
        fill: float | Tensor,
    ) -> Tensor:  # fmt: skip
        """Apply the changes that keep the labels; return the input itself if all are off.

        In this order: crop, flips, the affine change, shift, colours, RandAugment, cutout. index: (B,) int64, the
        images' indices in the set; count: images in the set; fill: the mean colour, a number or (C,), for the area
        outside an image and for cutout.
        """
        if self.crop_scale < 1 or self.crop_ratio > 1:
            ratio = (1 / self.crop_ratio, self.crop_ratio)
            images = random_resized_crop(images, (self.crop_scale, 1.0), ratio, draws)
        if self.flip and self.alternating_flip:
            images = alternating_flip(images, index, epoch, seed, count)
        elif self.flip:
            images = random_flip(images, draws)
        if self.vertical_flip:
            images = random_flip(images, draws, dim=2)
        if self.rotation or self.zoom or self.shear:
            outside = {"mean": fill, "zeros": 0.0, "reflect": None}[self.fill]
            images = random_affine(images, self.rotation, self.zoom, self.shear, draws, outside)
        if self.shift:
            images = random_shift(images, self.shift, draws, self.shift_fill)
        if self.brightness or self.contrast or self.saturation:
            images = color_jitter(images, self.brightness, self.contrast, self.saturation, draws)
        if self.randaugment:
            images = rand_augment(images, self.randaugment, self.magnitude, draws, fill)
        if self.cutout:
            images = cutout(images, self.cutout, draws, fill)
        return images

    def mix(
        self, images: Tensor, labels: Tensor, draws: Draws, host: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Apply `mixup` or `cutmix`; return (images, labels, None, None) if both are off.

        host: a CPU generator, which chooses between the two if both are on: nothing has to wait for the device.
        """
        both = bool(self.mixup and self.cutmix)
        if self.mixup and not (both and torch.rand((), generator=host).item() < 0.5):
            return mixup(images, labels, self.mixup, draws)
        if self.cutmix:
            return cutmix(images, labels, self.cutmix, draws)
        return images, labels, None, None


def _neighbours(images: Tensor) -> Tensor:
    """Return the index of the image that each is mixed with, (B,): 0 with 1, 2 with 3 and so on.

    The last of an odd number is mixed with the one before it. The order is random already, so this is as random as a
    permutation, and it keeps both images of a pair in one process.
    """
    index = torch.arange(len(images), device=images.device)
    other = index ^ 1
    return torch.where(other < len(images), other, (index - 1).clamp(min=0))


def _draw_shares(images: Tensor, alpha: float, draws: Draws) -> Tensor:
    """Draw a weight ~ Beta(alpha, alpha) for each image, on any device.

    Apply the inverse cumulative distribution function to one uniform draw each: PyTorch's gamma sampling takes a
    generator only under a private name, and not on every device.
    """
    table, power = _beta_table(alpha, images.device), 1 / min(alpha, 1.0)
    draw = draws.rand(images, -1)
    chance = 1 - (2 * draw - 1).abs()  # by symmetry: chance within the lower half, 0..1
    after = torch.searchsorted(table, chance).clamp_(1, len(table) - 1)
    low, high = table[after - 1], table[after]
    within = ((chance - low) / (high - low).clamp(min=1e-30)).clamp_(0, 1)
    share = 0.5 * ((after - 1 + within) / (len(table) - 1)) ** power
    return torch.where(draw < 0.5, share, 1 - share)


@lru_cache(maxsize=8)
def _beta_table(alpha: float, device: torch.device) -> Tensor:
    """Return the CDF of t in 4096 steps, where x = t ** (1 / min(alpha, 1)) / 2 is the lower half of the Beta.

    In t the density has no pole at 0: it is t ** (alpha / min(alpha, 1) - 1) * (1 - x) ** (alpha - 1).
    """
    power = min(alpha, 1.0)
    t = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    density = t ** (alpha / power - 1) * (1 - 0.5 * t ** (1 / power)) ** (alpha - 1)
    total = F.pad(density.cumsum(0), (1, 0))
    return (total / total[-1]).float().to(device)


def _draw_pixels(images: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Draw a pixel uniformly from each image: row and column, each (B, 1)."""
    h, w = images.shape[2:]
    row = draws.randint(images, h, -1, 1)
    return row, draws.randint(images, w, -1, 1)


def _box(row: Tensor, column: Tensor, height: int | Tensor, width: int | Tensor, shape: torch.Size) -> Tensor:
    """Return the mask (B, 1, H, W) of boxes centred on (row, column), each (B, 1), in images of this shape."""
    y = torch.arange(shape[2], device=row.device) - (row - height // 2)
    x = torch.arange(shape[3], device=row.device) - (column - width // 2)
    return ((y >= 0) & (y < height))[:, None, :, None] & ((x >= 0) & (x < width))[:, None, None, :]


def _filled(images: Tensor, where: Tensor, fill: float | Tensor) -> Tensor:
    return torch.where(where, fill.view(-1, 1, 1) if isinstance(fill, Tensor) else fill, images)


def _levels(images: Tensor) -> Tensor:
    """Convert 0..1 to 0..255, uint8."""
    return (images * 255).round().to(torch.uint8)
