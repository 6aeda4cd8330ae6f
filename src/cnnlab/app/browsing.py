"""Browse the images of a source by split, class and group. Files are decoded only when they are shown."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cnnlab.data import SourceOptions, absolute, data_folder, is_listed, list_files, load_images
from cnnlab.data.imageset import viewable
from cnnlab.inspect.report.thumbnails import SIDE, data_uri
from cnnlab.io.decode import BadImage, Decoding, bombs_refused, decode, probe
from cnnlab.io.errors import CnnlabError

SPLITS = ("train", "validation", "test")
_KEPT = 2  # sources in memory
_MOST = 200  # images in an answer
_MOST_GROUPS = 2000  # groups of a split that the page offers


class Shown:
    """A source's images by split. labels: the class of each image, by split; groups: likewise, if a split has any."""

    def __init__(self, source: str, options: SourceOptions) -> None:
        self.listing = list_files(source, options) if is_listed(source) else None
        self.sets: dict[str, Any] = {}
        if self.listing is not None:
            self.classes = self.listing.classes
            parts = self.listing.parts
            self.labels = {split: np.asarray(part.labels) for split, part in parts.items()}
            self.groups = {split: list(part.groups) for split, part in parts.items() if part.groups is not None}
            return
        for split in SPLITS:
            found = load_images(source, split, options)
            if found is not None:
                self.sets[split] = found
        self.classes = next(iter(self.sets.values())).classes
        self.labels = {split: found.labels.numpy() for split, found in self.sets.items()}
        self.groups = {split: found.groups for split, found in self.sets.items() if found.groups is not None}

    def places(self, split: str) -> dict[str, int]:
        """Return the index of each image of a split by its id."""
        if self.listing is None:
            return {name: i for i, name in enumerate(self.sets[split].ids)} if split in self.sets else {}
        files = self.listing.parts[split].files if split in self.listing.parts else ()
        return {self.listing.id_of(file): i for i, file in enumerate(files)}

    def image(self, split: str, i: int) -> tuple[str, str | None]:
        """Return the id of an image and its picture as a data URI, or None if it cannot be read."""
        if self.listing is None:
            found = self.sets[split]
            return found.ids[i], data_uri(viewable(found.images[i]))
        file = self.listing.parts[split].files[i]
        name = self.listing.id_of(file)
        try:
            how = Decoding(channels=probe(file).channels, size=SIDE)
            return name, data_uri(viewable(torch.from_numpy(decode(file, how).copy())))
        except BadImage:
            return name, None


class Browser:
    """The browsed sources. The last few stay in memory."""

    def __init__(self, data_dir: Path | None) -> None:
        self.options = SourceOptions(data_dir=data_folder(data_dir))
        self._kept: OrderedDict[str, Shown] = OrderedDict()
        self._lock = threading.Lock()

    def summary(self, source: str) -> dict[str, Any]:
        """Return the classes of a source and the number of images by split, class and group. Raise CnnlabError.

        Files are listed anew. data: the source with an absolute path, as runs record it.
        """
        with self._lock:
            if is_listed(source):
                self._kept.pop(source, None)
        shown = self._shown(source)
        counts = {split: Counter(labels.tolist()) for split, labels in shown.labels.items()}
        groups = {split: Counter(map(str, names)) for split, names in shown.groups.items()}
        return {
            "source": source,
            "data": absolute(source),
            "classes": shown.classes,
            "splits": list(shown.labels),
            "counts": {split: [count[k] for k in range(len(shown.classes))] for split, count in counts.items()},
            "groups": {split: sorted(count.items())[:_MOST_GROUPS] for split, count in groups.items()},
            "all_groups": {split: len(count) for split, count in groups.items()},
            "notes": [*shown.listing.notes, *shown.listing.warnings] if shown.listing else [],
        }

    def images(
        self, source: str, split: str, k: int | None, group: str | None, start: int, count: int
    ) -> dict[str, Any]:
        """Return up to `count` images of a split, from `start` on. k, group: only these. Raise CnnlabError."""
        shown = self._shown(source)
        if split not in shown.labels:
            raise CnnlabError(f"{source} has no split {split!r}; it has {', '.join(shown.labels)}")
        labels, groups = shown.labels[split], shown.groups.get(split)
        places: Sequence[int] = range(len(labels)) if k is None else np.flatnonzero(labels == k).tolist()
        if group is not None:
            places = [i for i in places if groups is not None and str(groups[i]) == group]
        with bombs_refused():
            rows = [
                {
                    "id": name,
                    "label": int(labels[i]),
                    "picture": picture,
                    "group": None if groups is None else groups[i],
                }
                for i in places[start : start + min(count, _MOST)]
                for name, picture in [shown.image(split, i)]
            ]
        return {"total": len(places), "start": start, "images": rows}

    def pictures(self, source: str, wanted: Sequence[tuple[str | None, str]]) -> list[str | None]:
        """Return the picture of each wanted (split or None for any, id), or None if it is missing or unreadable.

        Raise CnnlabError.
        """
        shown = self._shown(source)
        splits = {split for split, _ in wanted if split} or set(shown.labels)
        places = {split: shown.places(split) for split in splits & set(shown.labels)}
        with bombs_refused():
            return [
                next(
                    (shown.image(s, at[name])[1] for s, at in places.items() if split in (s, None) and name in at), None
                )
                for split, name in wanted
            ]

    def _shown(self, source: str) -> Shown:
        with self._lock:
            if source not in self._kept:
                self._kept[source] = Shown(source, self.options)
            self._kept.move_to_end(source)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return self._kept[source]
