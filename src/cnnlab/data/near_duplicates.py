"""Images that are there twice: pixel for pixel, and nearly.

Exactly alike: a hash of the pixels, and where two agree, the pixels.

Nearly alike: each image becomes some hundred numbers, the low frequencies of its grey values, whitened, so that what
most images of the set share counts little and what tells them apart counts much; how near two images are is the cosine
between their numbers. Candidates are found by perceptual hashes, the signs of random projections of these numbers, in
tables of some bits each; so many tables that a pair as near as is asked for meets in one of them in 499 cases of
500. No image is compared with all others. After M. Charikar, Similarity estimation techniques from rounding algorithms,
STOC 2002.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

NEAR = 0.96  # chosen by eye on Fashion-MNIST and CIFAR-10: docs/log.md
_SIDE, _FREQUENCIES = 16, 12
_PRIOR = 1000  # the set's own statistics count as many images, those of natural images as so many
_LEAST_CORRELATION = 0.8  # of all pixels' grey values
_MISSED = 1 / 500
_REACH = 64  # images compared with each in a bucket, should it be that large
_CHUNK = 1 << 16
_SECRET = secrets.randbits(64)


@dataclass(frozen=True)
class Pairs:
    """Pairs of images: first < second, by their numbers, (P,) int64 each; likeness: the cosine, (P,)."""

    first: Tensor
    second: Tensor
    likeness: Tensor

    def __len__(self) -> int:
        return len(self.first)


def same(images: Tensor) -> Tensor:
    """(N, C, H, W) uint8 -> (N,) int64: the number of the first image with just these pixels, mostly its own."""
    _, place, counts = np.unique(fingerprints(images), return_inverse=True, return_counts=True)
    firsts = torch.arange(len(images))
    different: dict[int, list[int]] = {}  # by fingerprint, images that are not alike: nearly always one
    for image in (counts[place] > 1).nonzero()[0].tolist():
        others = different.setdefault(int(place[image]), [])
        equal = next((other for other in others if torch.equal(images[other], images[image])), None)
        if equal is None:
            others.append(image)
        else:
            firsts[image] = equal
    return firsts


def shared(images: Tensor, others: Tensor) -> list[tuple[int, int]]:
    """(number in `others`, number in `images`) of each of `others` that is, pixel for pixel, among `images`."""
    if images.shape[1:] != others.shape[1:]:
        return []
    keys = fingerprints(images)
    order = np.argsort(keys, kind="stable")
    wanted = fingerprints(others)
    at = np.searchsorted(keys[order], wanted)
    met = [(i, int(order[p])) for i, p in enumerate(at.tolist()) if p < len(keys) and keys[order[p]] == wanted[i]]
    return [(i, j) for i, j in met if torch.equal(others[i], images[j])]


def fingerprints(images: Tensor) -> NDArray[np.uint64]:
    """(N, C, H, W) uint8 -> (N,) uint64: equal for equal images, and for others only by an accident of 1 in 2^63.

    Other numbers in each process, so that nobody can make images that agree.
    """
    flat = images.flatten(1).numpy()
    width = flat.shape[1]
    draw = np.random.default_rng(_SECRET).integers(0, 2**63, -(-width // 8), dtype=np.uint64)
    odd = draw * np.uint64(2) + np.uint64(1)
    if width % 8:
        flat = np.pad(flat, ((0, 0), (0, -width % 8)))
    keys = np.einsum("nw,w->n", np.ascontiguousarray(flat).view(np.uint64), odd)  # modulo 2^64
    return np.asarray(keys)


def near(images: Tensor, least: float = NEAR) -> Pairs:
    """All pairs of `images` (N, C, H, W) uint8, no two of them exactly alike, whose likeness is at least `least`.

    Of images that are all alike (thousands of frames of one scene) each is compared with some only.
    """
    z = describe(images)
    first, second = candidates(z, least)
    likeness = (z[first] * z[second]).sum(1)
    parts = zip(first.split(1000), second.split(1000), strict=True)
    keep = torch.cat([correlation(images[a], images[b]) for a, b in parts]) >= _LEAST_CORRELATION
    order = likeness[keep].argsort(descending=True, stable=True)
    return Pairs(first[keep][order], second[keep][order], likeness[keep][order])


def describe(images: Tensor) -> Tensor:
    """(N, C, H, W) uint8 -> (N, D) float32 of length 1, whose products say how alike two images are."""
    side = min(_SIDE, images.shape[2])
    kept = min(_FREQUENCIES, side)
    parts = []
    for part in images.split(4096):
        grey = part.float().mean(1, keepdim=True)
        grey = F.interpolate(grey, size=(side, side), mode="bilinear", antialias=True)[:, 0]
        waves = _cosines(side)[:kept]
        parts.append((waves @ grey @ waves.T).flatten(1)[:, 1:])  # without the mean brightness
    x = torch.cat(parts)
    # Contrast counts for nothing, but noise on an empty image is not blown up to one.
    x = x / x.norm(dim=1, keepdim=True).clamp_min(4 * side)
    # Mean and covariance of the set; in a small one, rather of natural images: energy as one over frequency squared.
    n = len(x)
    x = x - x.sum(0) / (n + _PRIOR)
    covariance = x.T @ x / n
    f = torch.arange(kept).float()
    usual = 1 / (f[:, None] ** 2 + f**2).flatten()[1:]
    usual *= covariance.trace().clamp_min(1e-12) / usual.sum()
    covariance = (n * covariance + _PRIOR * usual.diag()) / (n + _PRIOR)
    values, directions = torch.linalg.eigh(covariance.double())
    values = values.clamp_min(float(values.max()) * 1e-4)  # what hardly varies is noise
    return F.normalize(x @ (directions / values.sqrt()).float())


def candidates(z: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Pairs of rows of `z` (N, D), of length 1, with a product of at least `least`, each once: (first, second).

    One that has just that is missed with a chance of 1 in 500, a nearer one with less.
    """
    n = len(z)
    bits = max(1, min(62, math.ceil(math.log2(max(n, 2)))))
    together = (1 - math.acos(max(-1.0, min(least, 1.0))) / math.pi) ** bits  # in one table
    tables = max(1, math.ceil(math.log(_MISSED) / math.log1p(-min(together, 1 - 1e-9))))
    generator = torch.Generator().manual_seed(0)
    found: list[Tensor] = []
    for _ in range(tables):
        planes = torch.randn(z.shape[1], bits, generator=generator)
        powers = 2 ** torch.arange(bits)
        keys = torch.cat([((part @ planes > 0) * powers).sum(1) for part in z.split(_CHUNK)])
        order = keys.argsort(stable=True)
        sorted_keys = keys[order]
        for step in range(1, min(_REACH, n - 1) + 1):
            equal = (sorted_keys[step:] == sorted_keys[:-step]).nonzero().flatten()
            if not len(equal):
                break
            a, b = order[equal], order[equal + step]
            fits = torch.cat(
                [(z[i] * z[j]).sum(1) >= least for i, j in zip(a.split(_CHUNK), b.split(_CHUNK), strict=True)]
            )
            a, b = a[fits], b[fits]
            found.append(torch.minimum(a, b) * n + torch.maximum(a, b))
    pairs = torch.cat(found).unique() if found else torch.zeros(0, dtype=torch.int64)
    return pairs // n, pairs % n


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """(P, C, H, W) uint8 each -> (P,): how the grey values of each pair go together, -1 to 1; 0 for an empty image."""
    x, y = (t.float().mean(1).flatten(1) for t in (a, b))
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    found: Tensor = (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1)).clamp_min(1e-6)
    return found


def _cosines(n: int) -> Tensor:
    """The discrete cosine transform of n values: (n, n), a frequency a row."""
    k, i = torch.arange(n).float()[:, None], torch.arange(n).float()
    waves = torch.cos(math.pi * (i + 0.5) * k / n) * math.sqrt(2 / n)
    waves[0] /= math.sqrt(2)
    return waves
