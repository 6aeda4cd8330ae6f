"""Measure how a source's files become eight bits: one range of values for deep greys, one background.

Both are measured on all training images and used for every image of the source, so that an image's brightness does not
depend on its own extremes, and so that training, evaluation and prediction decode alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import TypeVar

from cnnlab.io.decode import BadImage, Extremes, Header, Source, ink, probe, value_range

_FAR = 4  # spans beyond the middle 99.8% from which a value is a dead pixel, a mark or missing data
_SAMPLE = 256  # transparent images that decide the background, at least
_DARK = 96  # mean level of 255 below which drawings get a white ground
_FULL_SCALES = (1.0, 255.0, 1023.0, 4095.0, 16383.0, 65535.0)  # of 0..1, 8, 10, 12, 14 and 16 bits
T = TypeVar("T")


def survey(source: Source, content: bytes | None = None) -> tuple[Header, Extremes | None] | None:
    """Return an image's header and, for deep greys, its extremes; None for a file without a header.

    source, content: see `probe`. What is damaged is left out, since decoding will name it.
    """
    try:
        header = probe(source, content)
    except BadImage:
        return None
    extremes = None
    if header.deep:
        with contextlib.suppress(BadImage):
            extremes = value_range(source, content)
    return header, extremes


def common_range(found: Iterable[Extremes]) -> tuple[float, float, list[str]]:
    """Return the one range of values that all deep images are scaled by, (0, 0) if there are none; and warnings."""
    ranges = list(found)
    if not ranges:
        return 0.0, 0.0, []
    lows, highs, inner_lows, inner_highs = zip(*ranges, strict=True)
    low, high, inner_low, inner_high = min(lows), max(highs), min(inner_lows), max(inner_highs)
    notes, span = [], inner_high - inner_low
    if span > 0 and (high > inner_high + _FAR * span or low < inner_low - _FAR * span):
        notes.append(
            f"values range from {low:g} to {high:g}, but 99.8% of each image lies within {inner_low:g} to "
            f"{inner_high:g}, so that range is used"
        )
        low, high = inner_low, inner_high
    if low < 0:
        return low, max(high, low + 1), notes
    # The full scale, unless the values use a small part of it.
    full = next((full for full in _FULL_SCALES if high <= full), high)
    return 0.0, full if high > full / 4 else max(high, 1e-6), notes


def background_sample(transparent: Sequence[T]) -> Sequence[T]:
    """Return those of the transparent images whose `ink_level` decides the background."""
    return transparent[:: max(1, len(transparent) // _SAMPLE)]


def ink_level(source: Source, content: bytes | None = None) -> float | None:
    """Return the mean grey level of an image's opaque parts; None if it has none, or is damaged."""
    with contextlib.suppress(BadImage):
        return ink(source, content)
    return None


def common_background(levels: Iterable[float | None]) -> str:
    """Return white for dark drawings on a transparent ground, else black. levels: see `ink_level`."""
    known = [level for level in levels if level is not None]
    return "white" if known and sum(known) < _DARK * len(known) else "black"
