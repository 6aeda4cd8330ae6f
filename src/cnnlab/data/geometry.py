"""Random geometry of a batch on its device: flips, shifts, crops and affine changes, with a draw for each image.

All functions take images (B, C, H, W) float32 in 0..1, not yet normalized, and return a new tensor of the same shape
and range. Their random choices depend only on the state of the draws' generator, those of `alternating_flip` on its
seed.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnlab.data.draws import Draws


def random_flip(images: Tensor, draws: Draws, dim: int = 3) -> Tensor:
    """Flip each image with probability 1/2, horizontally or, with dim=2, vertically: (B, C, H, W), same shape out."""
    mirrored = draws.rand(images, -1) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(dim), images)


def alternating_flip(images: Tensor, index: Tensor, epoch: int, seed: int, count: int) -> Tensor:
    """Flip each image horizontally in every other epoch, so that two successive epochs show both orientations.

    index: (B,) int64, the images' indices in the set; whether image i starts mirrored depends on (seed, i) only, not
    on the batch. count: images in the set. K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU",
    arXiv:2404.00498, section 3.6.
    """
    mirrored = _sides(count, seed, images.device)[index] ^ (epoch % 2 == 1)
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def random_shift(images: Tensor, pixels: int, draws: Draws, fill: str = "zeros") -> Tensor:
    """Move each image by -pixels..pixels in both directions: (B, C, H, W), same shape out.

    fill: "zeros" (black) or "reflect", which mirrors the image about its outermost row or column.
    """
    h, w = images.shape[2:]
    if fill not in ("zeros", "reflect"):
        raise ValueError(f"fill={fill!r}: a shift fills with zeros or reflect")
    if fill == "reflect" and pixels >= min(h, w):
        raise ValueError(f"fill='reflect' with a shift of {pixels} pixels needs images larger than {h}x{w}")
    offset = draws.randint(images, 2 * pixels + 1, 2, -1, 1)
    return _shifted(images, pixels, offset, "constant" if fill == "zeros" else fill)


def _shifted(images: Tensor, pixels: int, offset: Tensor, mode: str) -> Tensor:
    """Return the window (H, W) of each padded image that starts at its offset (2, B, 1): row, column."""
    b, c, h, w = images.shape
    padded = F.pad(images, (pixels,) * 4, mode=mode).contiguous()
    # Each row of the result is contiguous in the source: copying rows is seven times as fast as copying pixels.
    firsts = torch.arange(b * c, device=images.device).view(b, c, 1) * (h + 2 * pixels)
    firsts = firsts + offset[0][:, None] + torch.arange(h, device=images.device)  # (B, C, H), index of the row
    firsts = firsts * (w + 2 * pixels) + offset[1][:, None]
    windows = padded.as_strided((padded.numel() - w + 1, w), (1, 1))
    return windows.index_select(0, firsts.flatten()).view(b, c, h, w)


def random_affine(
    images: Tensor, rotation: float, zoom: float, shear: float, draws: Draws,
    fill: float | Tensor | None = 0.0,
) -> Tensor:  # fmt: skip
    """Rotate, zoom and shear each image about its centre in one bilinear resampling: (B, C, H, W), same shape out.

    rotation: largest angle in degrees, either way. zoom: the scale is log-uniform from 1 / (1 + zoom) to 1 + zoom.
    shear: largest angle in degrees of a shear along the rows, either way. fill: the colour outside the image, a number
    or one for each channel (C,); None mirrors the image about its outermost row or column.
    """
    draw = draws.rand(images, 3, -1) * 2 - 1
    return _affine(images, draw[0] * rotation, (draw[1] * math.log1p(zoom)).exp(), draw[2] * shear, fill)


def _affine(images: Tensor, angle: Tensor, scale: Tensor, shear: Tensor, fill: float | Tensor | None) -> Tensor:
    """Shear, scale and rotate each image clockwise by its own values (B,), as torchvision's `affine` does.

    Unscaled rotations by multiples of 90 degrees copy pixels, without rounding.
    """
    c, h, w = images.shape[1:]
    angle, shear = angle.deg2rad(), shear.deg2rad()
    # hardshrink: the cosine of 90 degrees in radians is not quite 0.
    cos, sin = (F.hardshrink(part, 1e-6).div(scale)[:, None, None] for part in (angle.cos(), angle.sin()))
    x = torch.arange(w, device=images.device) - (w - 1) / 2
    y = torch.arange(h, device=images.device)[:, None] - (h - 1) / 2
    rows = cos * y - sin * x  # (B, H, W), where each pixel comes from, relative to the centre
    columns = cos * x + sin * y + shear.tan()[:, None, None] * rows
    rows, columns = rows + (h - 1) / 2, columns + (w - 1) / 2
    if fill is None:
        rows, columns, source = _reflected(rows, h), _reflected(columns, w), images
    else:  # one more channel marks what lies inside
        source = torch.cat((images, torch.ones_like(images[:, :1])), dim=1)
    # With powers of two as sides, scaling the coordinates to -1..1 and back does not round them.
    tall, wide = (1 << (side - 1).bit_length() for side in (h, w))
    grid = torch.stack(((2 * columns + 1) / wide - 1, (2 * rows + 1) / tall - 1), dim=3)
    source = F.pad(source, (0, wide - w, 0, tall - h))
    taken = F.grid_sample(source, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if fill is not None:
        colour = fill.view(-1, 1, 1) if isinstance(fill, Tensor) else fill
        taken = taken[:, :c] + (1 - taken[:, c:]) * colour
    return taken.clamp_(0, 1)


def _reflected(place: Tensor, length: int) -> Tensor:
    """Mirror pixel coordinates into 0..length - 1 about the first and the last pixel, however far outside they are."""
    last = length - 1
    return last - (place.remainder(2 * last) - last).abs() if last else torch.zeros_like(place)


def random_resized_crop(images: Tensor, scale: tuple[float, float], ratio: tuple[float, float], draws: Draws) -> Tensor:
    """Crop a box from each image and enlarge it to (H, W), bilinearly.

    scale: the box's fraction of the area, uniform from low to high; ratio: its width over height, log-uniform. Unlike
    in torchvision's RandomResizedCrop, the box is not rounded to whole pixels, and a box longer than the image is cut
    to the image's side, where torchvision draws again up to ten times. A side is at least one pixel.
    """
    return _cropped(images, *_draw_boxes(images, scale, ratio, draws))


def _draw_boxes(
    images: Tensor, scale: tuple[float, float], ratio: tuple[float, float], draws: Draws
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return top, left, height and width in pixels, each (B,)."""
    h, w = images.shape[2:]
    draw = draws.rand(images, 4, -1)
    area = draw[0].mul(scale[1] - scale[0]).add(scale[0]).mul(h * w)
    aspect = draw[1].mul(math.log(ratio[1] / ratio[0])).add(math.log(ratio[0])).exp()
    height, width = (area / aspect).sqrt().clamp(1, h), (area * aspect).sqrt().clamp(1, w)
    return draw[2] * (h - height), draw[3] * (w - width), height, width


def _cropped(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Crop boxes, given in pixels (B,), and enlarge them to (H, W). Nothing outside a box is read."""
    b, _, h, w = images.shape
    rows, columns = _sampled(top, height, h), _sampled(left, width, w)
    grid = torch.stack((columns[:, None, :].expand(b, h, w), rows[:, :, None].expand(b, h, w)), dim=3)
    taken = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return taken.clamp_(0, 1)  # the four weights' sum is 1 up to rounding


def _sampled(start: Tensor, size: Tensor, length: int) -> Tensor:
    """Return the centres of `length` pixels that cover size (B,) from start (B,): (B, length), -1..1."""
    centres = (torch.arange(length, device=start.device) + 0.5) / length * size[:, None] + start[:, None]
    inside = centres.clamp((start + 0.5)[:, None], (start + size - 0.5)[:, None])
    return inside * (2 / length) - 1


@lru_cache(maxsize=4)
def _sides(count: int, seed: int, device: torch.device) -> Tensor:
    """Return which images start mirrored, (count,) bool. Cached: it takes 40 kernels."""
    return _hashed(torch.arange(count, device=device), seed) % 2 == 1


def _hashed(numbers: Tensor, seed: int) -> Tensor:
    """Hash int64 numbers (B,) and a seed of up to 64 bits to 32 bits; no product overflows int64."""
    state = numbers
    for word in (0, seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF):
        state = (state ^ word) & 0xFFFFFFFF
        for factor in (0x7FEB352D, 0x21F0AAAD):
            state = (state ^ (state >> 16)) * factor & 0xFFFFFFFF
            state = state ^ (state >> 15)
    return state
