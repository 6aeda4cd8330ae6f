"""Divide labelled images by group: all images of a patient, a video or a camera stay on one side.

Groups are dealt out one after the other, large ones first, each to the part that is furthest from its share of the
group's classes (as scikit-learn's StratifiedGroupKFold does for equal parts). The best of several random orders is
kept. No class is left in a single part if two groups have it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from cnnlab.data import near_duplicates
from cnnlab.data.imageset import ImageSet, Report, no_report
from cnnlab.data.packed import Pixels, take
from cnnlab.io.csv import quoted
from cnnlab.io.errors import CnnlabError
from cnnlab.io.text import plural, truncate

_TRIES = 50  # random orders at most: docs/log.md
_WORK = 100_000  # group placements to weigh over all orders together; one order is always tried


@dataclass(frozen=True)
class Grouping:
    """The groups of N images.

    units: (N,) int64 in 0..G-1, images of one unit stay together; names: the group name of each image; by: a
    description of the groups; tied: the number of images that are kept together with near duplicates.
    """

    units: Tensor
    names: list[str]
    by: str
    tied: int = 0

    @property
    def count(self) -> int:
        """The number of units, G."""
        return int(self.units.max()) + 1


def group_names(images: ImageSet, group: str) -> tuple[list[str], str] | None:
    """Return the group name of each image, and a description of the groups; None without groups.

    group: see `Recipe`. Raise CnnlabError, naming the first one, if images have no group.
    """
    if group == "none" or (group == "auto" and images.groups is None):
        return None
    if group == "auto":
        assert images.groups is not None
        names, by = [_text(name) for name in images.groups], "the source's groups"
        remedy = "fill in the column of groups, or set group=none"
    elif group == "parent":
        folders = zip(images.ids, images.labels.tolist(), strict=True)
        names, by = [_folder(id_, images.classes[k]) for id_, k in folders], "the parent folder"
        remedy = "each class needs a folder per group, as in class/patient7/1.png; or set group to an expression"
    else:
        pattern = re.compile(group)
        names, by = [_matched(pattern, id_) for id_ in images.ids], f"the expression {quoted(group)}"
        remedy = "correct the expression, which is searched in each of these names, or set group=none"
    if without := [id_ for id_, name in zip(images.ids, names, strict=True) if not name.strip()]:
        raise CnnlabError(
            f"group={truncate(group, 60)}: {len(without):,} of {plural(len(names), 'image')} have no group; the first: "
            f"{quoted(without[0])}; {remedy}"
        )
    return names, by


def _text(name: object) -> str:
    """Return a group name from the caller as a string: "" for None and pandas' NaN."""
    return "" if name is None or name != name else str(name)


def _folder(id_: str, class_name: str) -> str:
    """Return the folders between the class folder and the file; without a class folder, all folders of the file."""
    parts = PurePosixPath(id_).parts[:-1]
    depth = next((i + 1 for i, part in enumerate(parts) if _plain(part) == _plain(class_name)), 0)
    return "/".join(parts[depth:])


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _matched(pattern: re.Pattern[str], id_: str) -> str:
    found = pattern.search(id_)
    return "" if found is None else (found[1] if pattern.groups else found[0]) or ""


def grouping_of(images: ImageSet, group: str, duplicates: bool, report: Report = no_report) -> Grouping | None:
    """Return the groups of `images`; None if there are no groups and `duplicates` is not set.

    duplicates: join groups that share exact or near duplicates.
    """
    named = group_names(images, group)
    if named is None and not duplicates:
        return None
    names, by = named or ([""] * len(images), "")
    first: dict[str, int] = {}  # image of each name
    pairs = _duplicates(images.images, report) if duplicates else []
    edges = [*pairs, *((first.setdefault(name, i), i) for i, name in enumerate(names) if named)]
    a, b = np.array(edges, np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(a)), (a, b)), shape=(len(images), len(images)))
    units = torch.from_numpy(connected_components(graph, directed=False)[1]).long()
    return Grouping(units, names, by, len({i for pair in pairs for i in pair}))


def _duplicates(images: Pixels, report: Report) -> list[tuple[int, int]]:
    """Return pairs of images that are exact or near copies.

    Use one thread, so that a run finds the same pairs with any number of cores.
    """
    first = near_duplicates.same(images)
    unique = (first == torch.arange(len(images))).nonzero().flatten()
    pairs = [(a, b) for b, a in enumerate(first.tolist()) if a != b]
    if images.shape[2] > 1:  # a single pixel has no frequencies
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            a, b, _ = near_duplicates.near(take(images, unique), report=report)
        finally:
            torch.set_num_threads(threads)
        pairs += zip(unique[a].tolist(), unique[b].tolist(), strict=True)
    return pairs


def deal(labels: Tensor, units: Tensor, shares: Sequence[float], seed: int) -> Tensor:
    """Divide images into parts that have the given shares of each class, as far as the units allow.

    Return the part of each image, (N,) int64. labels, units: (N,) int64. With two parts, a unit that holds all images
    of a class goes to part 0, the training part. The same arguments give the same parts on every machine.
    """
    classes, number = int(labels.max()) + 1, int(units.max()) + 1
    pairs, counts = (units * classes + labels).unique(return_counts=True)
    members: list[list[tuple[int, int]]] = [[] for _ in range(number)]  # (class, images) of each unit
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        members[pair // classes].append((pair % classes, count))
    dealer = _Dealer(members, torch.bincount(labels, minlength=classes).tolist(), shares, pin=len(shares) == 2)
    generator = torch.Generator().manual_seed(seed)
    sizes = [sum(count for _, count in unit) for unit in members]
    tries = max(1, min(_TRIES, _WORK // (number * len(shares))))
    orders = [torch.randperm(number, generator=generator).tolist() for _ in range(tries)]
    dealt = [dealer.deal(sorted(order, key=lambda unit: -sizes[unit].bit_length())) for order in orders]
    best = min(range(tries), key=lambda i: dealt[i][0])
    return torch.tensor(dealt[best][1])[units]


class _Dealer:
    """A greedy division of units among parts.

    members: (class, images) of each unit; totals: images of each class; pin: send units with a whole class to part 0.
    """

    def __init__(
        self, members: list[list[tuple[int, int]]], totals: list[int], shares: Sequence[float], *, pin: bool
    ) -> None:
        # All images together count as one more class.
        self._all = len(totals)
        self._members = [[*unit, (self._all, sum(count for _, count in unit))] for unit in members]
        self._totals, self._shares, self._pin = [*totals, sum(totals)], shares, pin
        self._units = Counter(k for unit in members for k, _ in unit)

    def deal(self, order: Sequence[int]) -> tuple[tuple[int, float], list[int]]:
        """Deal out the units in this order; return the cost and the part of each unit.

        The cost is (classes in a single part, distance from the shares).
        """
        parts, totals = range(len(self._shares)), self._totals
        # Distance of each part from its share of each class, in images.
        off = [[-share * total for total in totals] for share in self._shares]
        weight = [[1 / (share * total**2) if total else 0.0 for total in totals] for share in self._shares]
        seen: list[set[int]] = [set() for _ in totals]
        left, place = dict(self._units), [0] * len(self._members)

        def pinned(unit: int) -> bool:
            return self._pin and any(self._units[k] == 1 for k, _ in self._members[unit][:-1])

        def cost(part: int, unit: int) -> float:
            return sum(n * (n + 2 * off[part][k]) * weight[part][k] for k, n in self._members[unit])

        for unit in sorted(order, key=lambda unit: not pinned(unit)):
            last = [k for k, _ in self._members[unit][:-1] if left[k] == 1 < self._units[k] and len(seen[k]) == 1]
            banned = set().union(*(seen[k] for k in last))
            free = [part for part in parts if part not in banned]
            part = 0 if pinned(unit) or not free else min(free, key=lambda part: cost(part, unit))
            place[unit] = part
            for k, n in self._members[unit]:
                off[part][k] += n
                seen[k].add(part)
                left[k] = left.get(k, 0) - 1
        single = sum(len(seen[k]) == 1 < units for k, units in self._units.items())
        distance = sum(x * x * w for row, ws in zip(off, weight, strict=True) for x, w in zip(row, ws, strict=True))
        return (single, distance + self._unlikeness(off)), place

    def _unlikeness(self, off: list[list[float]]) -> float:
        """Return how much the class shares of the parts differ from those of the whole."""
        whole, unlike = self._totals[-1], 0.0
        for share, row in zip(self._shares, off, strict=True):
            held = max(row[-1] + share * whole, 1.0)
            for x, total in zip(row[:-1], self._totals[:-1], strict=True):
                unlike += ((x + share * total) / held - total / whole) ** 2
        return unlike


def stratified_folds(labels: Tensor, folds: int, seed: int) -> Tensor:
    """Return the fold of each image with `labels` (N,): (N,) int64 in 0..folds-1.

    The folds differ by at most one image, in total and within each class.
    """
    generator = torch.Generator().manual_seed(seed)
    fold, dealt = torch.empty(len(labels), dtype=torch.int64), 0
    for k in labels.unique(sorted=True).tolist():
        members = (labels == k).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator)
        fold[members[order]] = (torch.arange(len(members)) + dealt) % folds
        dealt += len(members)
    return fold


def share_difference(labels: Tensor, part: Tensor) -> float:
    """Return the largest difference between a class's share of `part` (M,) and of all `labels` (N,), 0 to 1."""
    classes = int(labels.max()) + 1
    whole, some = (torch.bincount(t, minlength=classes).double() / max(1, len(t)) for t in (labels, part))
    return float((whole - some).abs().max())
