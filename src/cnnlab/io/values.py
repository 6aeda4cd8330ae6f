"""Summarize the pixel values of an image of more than eight bits: 16 bits, 32 bits or floating point."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_HUGE = 1e30  # such values stand for missing data
_NAMES = {"nan": "NaN", "inf": "Inf", "-inf": "-Inf"}
_TAIL = 0.001  # share of the pixels at each end that are outside the inner range; at least one pixel


class Extremes(NamedTuple):
    """The lowest and highest value of pixels, of all and of the middle 99.8%."""

    low: float
    high: float
    inner_low: float
    inner_high: float


@dataclass(frozen=True)
class Values:
    """A summary of the values of one image.

    pixels: their number. missing: value -> number of pixels, for NaN, Inf, huge values and the file's own value for
    missing data; at most three. They are left out of what follows. whole: the extremes; None without any pixel.
    between: the extremes of the values between the lowest and the highest; None if there are none. counts: pixels with
    the lowest and with the highest value.
    """

    pixels: int
    missing: Mapping[str, int]
    whole: Extremes | None
    between: Extremes | None
    counts: tuple[int, int]

    def without(self, values: Container[float]) -> Extremes | None:
        """Return the extremes, without the lowest and highest value where `values` has them; None if none is left."""
        whole, between = self.whole, self.between
        if whole is None or (whole.low not in values and whole.high not in values):
            return whole
        if between is None:
            kept = [value for value in (whole.low, whole.high) if value not in values]
            return Extremes(*kept * 4) if kept else None
        low = between if whole.low in values else whole
        high = between if whole.high in values else whole
        return Extremes(low.low, high.high, low.inner_low, high.inner_high)


def summarize(pixels: np.ndarray, nodata: float | None = None) -> Values:
    """Summarize the values of an image. nodata: the file's value for missing data."""
    bad = ~(np.abs(pixels) < _HUGE)  # also NaN
    if nodata is not None and abs(nodata) < _HUGE:
        bad |= pixels == nodata
    names, numbers = np.unique(pixels[bad], return_counts=True)
    missing = {
        _NAMES.get(f"{name:g}", f"{name:g}"): int(number) for name, number in zip(names[:3], numbers, strict=False)
    }
    ordered = np.sort(pixels[~bad])
    if not ordered.size:
        return Values(pixels.size, missing, None, None, (0, 0))
    start = int(np.searchsorted(ordered, ordered[0], "right"))
    stop = int(np.searchsorted(ordered, ordered[-1], "left"))
    between = _extremes(ordered[start:stop]) if start < stop else None
    return Values(pixels.size, missing, _extremes(ordered), between, (start, ordered.size - stop))


def _extremes(ordered: np.ndarray) -> Extremes:
    tail = min(math.ceil(_TAIL * ordered.size), (ordered.size - 1) // 2)
    low, high, inner_low, inner_high = (float(ordered[i]) for i in (0, -1, tail, -1 - tail))
    return Extremes(low, high, inner_low, inner_high)
