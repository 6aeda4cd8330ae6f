"""Find exact and near-duplicates among the images of a source, within and across its splits."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cnnlab.data import STORE, SourceOptions, data_folder, load_images, near_duplicates
from cnnlab.data.imageset import Report, no_report, viewable
from cnnlab.data.packed import Pixels, join, take
from cnnlab.data.store import open_store
from cnnlab.io import figures as plots
from cnnlab.io.csv import quoted
from cnnlab.io.errors import CnnlabError, expand
from cnnlab.recipe import LARGEST_SIDE

_PICTURED = 60


@dataclass(frozen=True)
class Pair:
    """Two similar images. parts: their splits; labels: their classes, "" if unlabelled; similarity: 1 is exact."""

    parts: tuple[str, str]
    ids: tuple[str, str]
    labels: tuple[str, str]
    similarity: float

    @property
    def disagrees(self) -> bool:
        """Whether the two images have different labels."""
        return all(self.labels) and self.labels[0] != self.labels[1]

    def __str__(self) -> str:
        images = (
            f"{part} {quoted(id_)}" + (f" ({quoted(label)})" if label else "")
            for part, id_, label in zip(self.parts, self.ids, self.labels, strict=True)
        )
        return f"{self.similarity:.3f}  {'  '.join(images)}"


@dataclass(frozen=True)
class Duplicates:
    """The duplicates in a source.

    counts: images in each split; threshold: None if near-duplicates were not searched for; exact: each image paired
    with the first that has the same pixels; near: pairs of other images, the most alike first.
    """

    source: str
    counts: dict[str, int]
    threshold: float | None
    exact: list[Pair]
    near: list[Pair]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "images": self.counts}

    def to_text(self, most: int = 20) -> str:
        """Return the number of pairs within and across splits, and the first `most` pairs of each kind."""
        images = ", ".join(f"{name} {count:,}" for name, count in self.counts.items())
        lines = [f"{self.source}: {sum(self.counts.values()):,} images ({images})"]
        kinds = [("exact duplicates", self.exact)]
        if self.threshold is not None:
            kinds.append((f"near-duplicates (similarity {self.threshold:g} or more)", self.near))
        for kind, pairs in kinds:
            where = Counter(" and ".join(dict.fromkeys(pair.parts)) for pair in pairs)
            lines.append(f"{kind}: {', '.join(f'{n:,} in {name}' for name, n in where.items()) or 'none'}")
            if wrong := sum(pair.disagrees for pair in pairs):
                lines.append(f"  {wrong:,} of these pairs have two different labels")
            lines += [f"  {pair}" for pair in pairs[:most]]
            if len(pairs) > most:
                lines.append(f"  and {len(pairs) - most:,} more; --json lists all")
        return "\n".join(lines)


def duplicates(
    source: str,
    *,
    threshold: float | None = near_duplicates.NEAR,
    data_dir: str | Path | None = None,
    image_size: int = 0,
    columns: str = "",
    skip_bad: bool = False,
    picture: Path | None = None,
    report: Report = no_report,
) -> Duplicates:
    """Find images of `source` that occur more than once, within and across its splits.

    threshold: the smallest similarity of near-duplicates, 0.5 to 1; None finds exact duplicates only. image_size: of a
    folder's images, as in training; columns: of a table, see `Recipe`. picture: a PNG file for the first pairs. Raise
    CnnlabError if an argument is out of range, or the source cannot be read.
    """
    if threshold is not None and not 0.5 <= threshold <= 1:
        raise CnnlabError(f"similarity {threshold}: choose a number from 0.5 to 1")
    if not 0 <= image_size <= LARGEST_SIDE:
        raise CnnlabError(f"image_size={image_size}: choose 1 to {LARGEST_SIDE} pixels, or 0 for the usual")
    if picture is not None:
        plots.check_png(picture)
    options = SourceOptions(
        data_dir=data_folder(data_dir), image_size=image_size, columns=columns, skip_bad=skip_bad, report=report
    )
    images, places = _load(source, options)
    first = near_duplicates.same(images)
    unique = (first == torch.arange(len(images))).nonzero().flatten()
    exact = [(int(first[i]), i, 1.0) for i in range(len(images)) if first[i] != i]
    near: list[tuple[int, int, float]] = []
    if threshold is not None and images.shape[2] > 1:  # a single pixel has no frequencies
        a, b, similarity = near_duplicates.near(take(images, unique), threshold, report)
        near = list(zip(unique[a].tolist(), unique[b].tolist(), similarity.tolist(), strict=True))

    def pair(a: int, b: int, similarity: float) -> Pair:
        parts, ids, labels = zip(places[a], places[b], strict=True)
        return Pair(parts, ids, labels, round(similarity, 4))

    found = Duplicates(
        source,
        dict(Counter(part for part, _, _ in places)),
        threshold,
        [pair(*found) for found in exact],
        [pair(*found) for found in near],
    )
    if picture is not None and (exact or near):
        titled = [
            (f"{p.similarity:.3f}{'!' if p.disagrees else ''} {' '.join(dict.fromkeys(p.parts))}",
             [viewable(images[i]) for i in (a, b)])
            for p, (a, b, _) in zip([*found.exact, *found.near][:_PICTURED], [*exact, *near][:_PICTURED], strict=True)
        ]  # fmt: skip
        plots.save(picture, plots.pairs(titled))
    return found


def _load(source: str, options: SourceOptions) -> tuple[Pixels, list[tuple[str, str, str]]]:
    """Return the images of all splits (N, C, H, W), and the split, id and label of each; "" if unlabelled."""
    images: list[Pixels] = []
    places = []
    for part in ("train", "validation", "test"):
        image_set = load_images(source, part, options)
        if image_set is not None:
            options = options.like(image_set)
            images.append(image_set.images)
            labels = [image_set.classes[k] for k in image_set.labels.tolist()]
            places += [(part, id_, label) for id_, label in zip(image_set.ids, labels, strict=True)]
    if source.startswith(STORE):
        store = open_store(expand(source.removeprefix(STORE)))
        images.append(store.test_images)
        places += [("test", id_, "") for id_ in store.test_ids]
    return join(images), places
