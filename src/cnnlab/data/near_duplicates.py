"""Images that occur twice, exactly or nearly.

Exact copies have the same hash. For near copies, each image is described by the low frequencies of its grey values,
whitened: directions in which most images vary count little, distinctive ones much. The similarity of two images is
the cosine of these vectors. All images are compared with all others: 70,000 take half a minute on one core. (Candidates
from hashes took 7 s, but 85 more lines, and could miss one pair in 500.)

imagehash is no replacement: it hashes each image by itself, without whitening over the set.
"""

from __future__ import annotations

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnlab.data.imageset import Report, no_report
from cnnlab.data.packed import PackedImages, Pixels, chunks

NEAR = 0.96  # chosen by eye on Fashion-MNIST and CIFAR-10: docs/log.md
_SIDE, _FREQUENCIES = 16, 12
_PRIOR = 1000  # the statistics of natural images count as this many images
_MIN_CORRELATION = 0.8  # of the grey values of all pixels
_MOST_PARTNERS = 64  # pairs per image: thousands of frames of one scene would otherwise make millions of pairs
_BLOCK = 1024  # images compared with all others at a time


def same(images: Pixels) -> Tensor:
    """Return the index of the first image with the same pixels, mostly its own: (N, C, H, W) uint8 -> (N,) int64."""
    first: dict[bytes, int] = {}
    return torch.tensor([first.setdefault(key, i) for i, key in enumerate(_hashes(images))], dtype=torch.int64)


def shared(images: Pixels, others: Pixels) -> list[tuple[int, int]]:
    """Return (index in `others`, index in `images`) for each of `others` that also occurs in `images`."""
    if images.shape[1:] != others.shape[1:]:
        return []
    index = {key: i for i, key in enumerate(_hashes(images))}
    return [(i, index[key]) for i, key in enumerate(_hashes(others)) if key in index]


def _hashes(images: Pixels) -> list[bytes]:
    if isinstance(images, PackedImages):
        return images.hashes()
    return [hashlib.blake2b(row, digest_size=16).digest() for row in images.flatten(1).contiguous().numpy()]


def near(images: Pixels, threshold: float = NEAR, report: Report = no_report) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pairs of `images` (N, C, H, W) uint8 whose similarity is at least `threshold`, the most alike first.

    Return the indices of the first and of the second image, (P,) int64 each, and the similarity (P,). An image is
    paired with at most 64 later ones.
    """
    z = describe(images)
    pairs = []
    for start in range(0, len(z), _BLOCK):
        similarity = z[start : start + _BLOCK] @ z[start:].T  # (B, N - start)
        a, b = (similarity >= threshold).nonzero().unbind(1)
        a, b = a[b > a], b[b > a]
        rank = torch.arange(len(a)) - torch.searchsorted(a, a)  # of each pair among those of its first image
        a, b = a[rank < _MOST_PARTNERS], b[rank < _MOST_PARTNERS]
        alike = torch.cat([torch.zeros(0)] + [
            correlation(images[start + i], images[start + j]) for i, j in zip(a.split(1000), b.split(1000), strict=True)
        ]) >= _MIN_CORRELATION  # fmt: skip
        a, b = a[alike], b[alike]
        pairs.append((start + a, start + b, similarity[a, b]))
        report("comparing images", min(start + _BLOCK, len(z)), len(z))
    first, second, similarity = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    order = similarity.argsort(descending=True, stable=True)
    return first[order], second[order], similarity[order]


def describe(images: Pixels) -> Tensor:
    """Return unit vectors whose dot products are the similarities: (N, C, H, W) uint8 -> (N, D) float32."""
    side = min(_SIDE, images.shape[2])
    frequencies = min(_FREQUENCIES, side)
    waves = _cosines(side)[:frequencies]
    parts = []
    for part in chunks(images, 4096):
        grey = part.float().mean(1, keepdim=True)
        grey = F.interpolate(grey, size=(side, side), mode="bilinear", antialias=True)[:, 0]
        parts.append((waves @ grey @ waves.T).flatten(1)[:, 1:])  # without the mean brightness
    x = torch.cat(parts)
    # Ignore contrast, but do not amplify the noise of an empty image.
    x = x / x.norm(dim=1, keepdim=True).clamp_min(4 * side)
    # Mean and covariance of the set, shrunk towards natural images: their energy falls as one over frequency squared.
    n = len(x)
    x = x - x.sum(0) / (n + _PRIOR)
    covariance = x.T @ x / n
    f = torch.arange(frequencies).float()
    natural = 1 / (f[:, None] ** 2 + f**2).flatten()[1:]
    natural *= covariance.trace().clamp_min(1e-12) / natural.sum()
    covariance = (n * covariance + _PRIOR * natural.diag()) / (n + _PRIOR)
    values, directions = torch.linalg.eigh(covariance.double())
    values = values.clamp_min(float(values.max()) * 1e-4)  # what hardly varies is noise
    return F.normalize(x @ (directions / values.sqrt()).float())


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return the correlation of each pair's grey values, 0 for an empty image: (P, C, H, W) uint8 -> (P,), -1 to 1."""
    x, y = (t.float().mean(1).flatten(1) for t in (a, b))
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    result: Tensor = (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1)).clamp_min(1e-6)
    return result


def _cosines(n: int) -> Tensor:
    """Return the matrix of the discrete cosine transform, (n, n), with one frequency per row."""
    k, i = torch.arange(n).float()[:, None], torch.arange(n).float()
    waves = torch.cos(math.pi * (i + 0.5) * k / n) * math.sqrt(2 / n)
    waves[0] /= math.sqrt(2)
    return waves
