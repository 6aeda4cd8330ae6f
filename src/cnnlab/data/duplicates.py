"""Images of a source that are there twice, exactly or nearly, within its parts and across them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnnlab.data import STORE, SourceOptions, data_folder, load_images, near_duplicates
from cnnlab.data.imageset import Report, no_report
from cnnlab.data.store import open_store
from cnnlab.io import figures as plots
from cnnlab.io.csv import quoted
from cnnlab.io.errors import CnnlabError, expand
from cnnlab.recipe import LARGEST_SIDE

_PICTURED = 60


@dataclass(frozen=True)
class Double:
    """Two images that are alike: part, id and class of each ("" where it has none), and how much: 1 is exactly."""

    parts: tuple[str, str]
    ids: tuple[str, str]
    labels: tuple[str, str]
    likeness: float

    @property
    def disagrees(self) -> bool:
        """Have they two labels, and different ones?"""
        return all(self.labels) and self.labels[0] != self.labels[1]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {"parts": self.parts, "ids": self.ids, "labels": self.labels, "likeness": self.likeness}


@dataclass(frozen=True)
class Duplicates:
    """What `duplicates` found. counts: images of each part; least: of the likeness of `near`, None: not looked for.

    exact: each image with the first that has the same pixels; near: pairs of others, the nearest first.
    """

    source: str
    counts: dict[str, int]
    least: float | None
    exact: list[Double]
    near: list[Double]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "source": self.source,
            "images": self.counts,
            "least_likeness": self.least,
            "exact": [d.to_dict() for d in self.exact],
            "near": [d.to_dict() for d in self.near],
        }

    def told(self, most: int = 20) -> str:
        """For people: counts by parts, then the first `most` pairs of each kind."""
        images = ", ".join(f"{name} {count:,}" for name, count in self.counts.items())
        lines = [f"{self.source}: {sum(self.counts.values()):,} images ({images})"]
        kinds = [("exactly alike", self.exact)]
        if self.least is not None:
            kinds.append((f"nearly alike (likeness {self.least:g} or more)", self.near))
        for what, pairs in kinds:
            where = Counter(" and ".join(dict.fromkeys(pair.parts)) for pair in pairs)
            lines.append(f"{what}: {', '.join(f'{n:,} in {name}' for name, n in where.items()) or 'none'}")
            if wrong := sum(pair.disagrees for pair in pairs):
                lines.append(f"  {wrong:,} of these pairs have two different labels")
            for pair in pairs[:most]:
                sides = zip(pair.parts, pair.ids, pair.labels, strict=True)
                named = [f"{part} {quoted(id_)}{f' ({quoted(label)})' if label else ''}" for part, id_, label in sides]
                lines.append(f"  {pair.likeness:.3f}  {'  '.join(named)}")
            if len(pairs) > most:
                lines.append(f"  and {len(pairs) - most:,} more; --json names all")
        return "\n".join(lines)


def duplicates(
    source: str,
    *,
    least: float | None = near_duplicates.NEAR,
    data_dir: str | Path | None = None,
    image_size: int = 0,
    skip_bad: bool = False,
    picture: Path | None = None,
    report: Report = no_report,
) -> Duplicates:
    """Find images of `source` that are there twice, within its parts and across them.

    least: how alike images must be to count as nearly the same, up to 1; None: only those that are exactly. image_size:
    of a folder's images, as for a training. picture: a PNG file to draw the pairs into. Raises: CnnlabError.
    """
    if least is not None and not 0.5 <= least <= 1:
        raise CnnlabError(f"likeness {least}: choose a number from 0.5 to 1")
    if not 0 <= image_size <= LARGEST_SIDE:
        raise CnnlabError(f"image_size={image_size}: choose 1 to {LARGEST_SIDE} pixels, or 0 for the usual")
    if picture is not None:
        plots.check_png(picture)
    parts = _parts(source, SourceOptions(data_dir=data_folder(data_dir), image_size=image_size, skip_bad=skip_bad,
                                         report=report))  # fmt: skip
    whole = torch.cat([part.images for part in parts])
    numbers = torch.arange(len(whole))
    firsts = near_duplicates.same(whole)
    again, own = (firsts != numbers).nonzero().flatten(), (firsts == numbers).nonzero().flatten()
    exact = [(int(firsts[i]), i, 1.0) for i in again.tolist()]
    near: list[tuple[int, int, float]] = []
    if least is not None and whole.shape[2] > 1:  # a single pixel has no frequencies
        found = near_duplicates.near(whole[own], least)
        near = list(zip(own[found.first].tolist(), own[found.second].tolist(), found.likeness.tolist(), strict=True))
    told = {pair: _double(parts, *pair) for pair in (*exact, *near)}
    if picture is not None:
        _draw(picture, whole, told)
    counts = {part.name: len(part.images) for part in parts}
    return Duplicates(source, counts, least, [told[pair] for pair in exact], [told[pair] for pair in near])


@dataclass(frozen=True)
class _Part:
    name: str
    images: Tensor
    ids: list[str]
    labels: list[str]  # empty: of unlabelled images


def _parts(source: str, options: SourceOptions) -> list[_Part]:
    found = []
    for name in ("train", "validation", "test"):
        images = load_images(source, name, options)
        if images is not None:
            labels = [images.classes[k] for k in images.labels.tolist()]
            found.append(_Part(name, images.images, images.ids, labels))
    if source.startswith(STORE):
        store = open_store(expand(source.removeprefix(STORE)))
        if len(store.test_images):
            found.append(_Part("test", store.test_images, store.test_ids, []))
    return found


def _double(parts: list[_Part], one: int, other: int, likeness: float) -> Double:
    (a, i, x), (b, j, y) = (_place(parts, at) for at in (one, other))
    return Double((a, b), (i, j), (x, y), round(likeness, 4))


def _place(parts: list[_Part], at: int) -> tuple[str, str, str]:
    """Part, id and label of image number `at` of all."""
    for part in parts:
        if at < len(part.images):
            return part.name, part.ids[at], part.labels[at] if part.labels else ""
        at -= len(part.images)
    raise IndexError(at)


def _draw(path: Path, whole: Tensor, pairs: dict[tuple[int, int, float], Double]) -> None:
    """The first pairs, side by side, each with its likeness and its parts; a `!` where the labels differ."""
    shown = []
    for (a, b, _), pair in list(pairs.items())[:_PICTURED]:
        head = f"{pair.likeness:.3f}{'!' if pair.disagrees else ''} {' '.join(dict.fromkeys(pair.parts))}"
        shown.append((head, [whole[i].permute(1, 2, 0).numpy() for i in (a, b)]))
    if shown:
        plots.save(path, plots.pairs(shown))
