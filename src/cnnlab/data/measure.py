"""Measure how to reduce a source's files to eight bits: one range of values for deep greys, and one background.

Both are measured on training images and used for every image of the source. So an image's brightness does not depend on
its own extremes, and training, evaluation and prediction decode alike.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeVar

from cnnlab.io.decode import BadImage, Header, Source, ink, probe, value_range
from cnnlab.io.values import Values

_FAR = 4  # a value this many spans beyond the others is a dead pixel, a mark or missing data
_NEAR = 0.5  # the same for the values that maps and instruments use for missing data
_USUAL = {-32768.0, -32767.0, -9999.0, -99999.0, -999.0, 9999.0, 99999.0, 65535.0}
_SAMPLE = 256  # size of the smallest sample of transparent images that decides the background
_DARK = 96  # drawings with a mean level below this, of 255, get a white background
_FULL_SCALES = (1.0, 255.0, 1023.0, 4095.0, 16383.0, 65535.0)  # of 0..1, 8, 10, 12, 14 and 16 bits
T = TypeVar("T")


def survey(source: Source, content: bytes | None = None) -> tuple[Header, Values | None] | None:
    """Return an image's header and, for deep greys, its values; None for a file without a readable header.

    source, content: see `probe`. Damage is ignored here, since decoding will report it.
    """
    try:
        header = probe(source, content)
    except BadImage:
        return None
    values = None
    if header.deep:
        with contextlib.suppress(BadImage):
            values = value_range(source, content)
    return header, values


def common_range(found: Iterable[Values]) -> tuple[float, float, list[str]]:
    """Return the range of values, low and high, for all deep images, or 0, 0 if there are none, and warnings."""
    images = list(found)
    if not images:
        return 0.0, 0.0, []
    missing = _missing(images)
    notes = _missing_notes(images, missing)
    if not (ranges := [extremes for image in images if (extremes := image.without(missing))]):
        return 0.0, 1.0, notes
    lows, highs, inner_lows, inner_highs = zip(*ranges, strict=True)
    low, high, inner_low, inner_high = min(lows), max(highs), min(inner_lows), max(inner_highs)
    span = inner_high - inner_low
    if span > 0 and (high > inner_high + _FAR * span or low < inner_low - _FAR * span):
        notes.append(
            f"values range from {low:g} to {high:g}, but nearly all of each image lie within {inner_low:g} to "
            f"{inner_high:g}, so that range is used"
        )
        low, high = inner_low, inner_high
    return *_scale(low, high), notes


def _scale(low: float, high: float) -> tuple[float, float]:
    """Return the values that become 0 and 255: the full scale, unless low to high is a small part of it."""
    if low < 0:
        return low, high if high > low else low + 1
    full = next((full for full in _FULL_SCALES if high <= full), high)
    if high == low or high - low > full / 4:
        return 0.0, full
    return low if low > high / 4 else 0.0, high


def _missing(images: Sequence[Values]) -> set[float]:
    """Return the values that stand for missing data.

    Such a value is the lowest or highest of an image, fills more pixels than the image's tail, and is far from all
    others, in its image and in the whole source: -9999 among 0 to 1, for example, or 65535 among twelve bits. Usual
    values for missing data may be nearer, such as -9999 among heights of 0 to 3000.
    """

    def far(value: float) -> float:
        return _NEAR if value in _USUAL else _FAR

    candidates = set()
    for image in images:
        whole, rest = image.whole, image.between
        if whole is None or rest is None:
            continue
        below, above, span = rest.low - whole.low, whole.high - rest.high, rest.inner_high - rest.inner_low
        if whole.inner_low == whole.low and below > far(whole.low) * (span or above):
            candidates.add(whole.low)
        if whole.inner_high == whole.high and above > far(whole.high) * (span or below):
            candidates.add(whole.high)
    if not candidates:
        return candidates
    rests = [extremes for image in images if (extremes := image.without(candidates))]
    low, high = min(rest.inner_low for rest in rests), max(rest.inner_high for rest in rests)
    return {v for v in candidates if max(low - v, v - high) > far(v) * (high - low)}


def _missing_notes(images: Sequence[Values], missing: set[float]) -> list[str]:
    """Say which values stand for missing data, with their share of the pixels."""
    counts: Counter[str] = Counter()
    for image in images:
        counts.update(image.missing)
        if image.whole:
            ends = {image.whole.low: image.counts[0], image.whole.high: image.counts[1]}
            counts.update({f"{value:g}": count for value, count in ends.items() if value in missing})
    if not counts:
        return []
    pixels = sum(image.pixels for image in images)
    shares = ", ".join(f"{name} ({100 * count / pixels:.2g}%)" for name, count in counts.most_common(3))
    return [
        f"pixels of value {shares} are treated as missing data and ignored when the range is set; they become black or "
        "white"
    ]


def background_sample(transparent: Sequence[T]) -> Sequence[T]:
    """Return the transparent images whose `ink_level` decides the background."""
    return transparent[:: max(1, len(transparent) // _SAMPLE)]


def ink_level(source: Source, content: bytes | None = None) -> float | None:
    """Return the mean grey level of an image's opaque parts; None if it has none, or is damaged."""
    with contextlib.suppress(BadImage):
        return ink(source, content)
    return None


def common_background(levels: Iterable[float | None]) -> str:
    """Return white for dark drawings on a transparent background, else black. levels: see `ink_level`."""
    known = [level for level in levels if level is not None]
    return "white" if known and sum(known) < _DARK * len(known) else "black"
