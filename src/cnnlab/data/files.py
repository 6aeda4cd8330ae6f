"""Read labelled image files into an ImageSet, with the same decoding, checks and warnings for every source."""

from __future__ import annotations

import contextlib
import hashlib
import re
import unicodedata
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from cnnlab.data.imageset import ImageSet, SourceOptions
from cnnlab.data.measure import background_sample, common_background, common_range, ink_level, survey
from cnnlab.device.hardware import available_cores
from cnnlab.io.decode import (
    BadImage,
    Decoding,
    Item,
    NoSuchImage,
    bombs_refused,
    channel_values,
    decode_checked,
    probe,
)
from cnnlab.io.errors import CnnlabError
from cnnlab.io.text import escape, plural
from cnnlab.recipe import LARGEST_SIDE

# For images of different sizes: large enough to recognise objects, small enough for a laptop.
_DEFAULT_SIZE = 64
_QUOTES = str.maketrans("\u2018\u2019\u201c\u201d\u2010\u2011\u2013", "''\"\"---")
_SAMPLE = 1000  # at least this many images of a data set decide how all are decoded
_FEW_LEVELS = 32  # of 256: 12-bit colours in a 16-bit file leave 16
_QUEUE = 1024  # images whose headers are read ahead
_UNIFORM = 0.1  # with this share of single-colour images in a class, something is wrong
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Part:
    """The N files of one split. labels: class indices; groups, weights: see `ImageSet`."""

    files: Sequence[Path | Item]
    labels: Sequence[int]
    groups: Sequence[str] | None = None
    weights: Sequence[float] | None = None


@dataclass(frozen=True)
class Listing:
    """What a source holds, before any file is decoded.

    root: the folder that ids are relative to. name: the source's name in messages. classes: K names. parts: split ->
    files. notes: how the source was read; warnings: suspected problems. Both are reported with the training
    images.
    """

    root: Path
    name: str
    classes: list[str]
    parts: Mapping[str, Part]
    passed_over: Mapping[str, list[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def id_of(self, file: Path | Item) -> str:
        """Return a file's path, relative to the root if it is below it, or the name of an item."""
        if isinstance(file, Item):
            return file.name
        return (file.relative_to(self.root) if file.is_relative_to(self.root) else file).as_posix()


@dataclass(frozen=True)
class Sizes:
    """The sizes (width, height) of images. middle: median of their longer sides; square: whether all are square."""

    smallest: tuple[int, int]
    largest: tuple[int, int]
    middle: int
    square: bool

    @classmethod
    def of(cls, sizes: Sequence[tuple[int, int]]) -> Sizes | None:
        """Summarize the sizes of images; None if there are none."""
        if not sizes:
            return None
        ends = sorted(set(sizes), key=lambda size: (size[0] * size[1], size))
        return cls(ends[0], ends[-1], sorted(map(max, sizes))[len(sizes) // 2], all(w == h for w, h in sizes))


@dataclass(frozen=True)
class SurveyResult:
    """The result of a survey of the training images, before `SourceOptions` choose a size."""

    channels: int
    background: str
    low: float
    high: float
    lows: tuple[float, ...]
    highs: tuple[float, ...]
    sizes: Sizes | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def read_images(listing: Listing, split: str, options: SourceOptions) -> ImageSet | None:
    """Return the images of one split: (N, C, H, W) uint8, H = W; None if the source has no such split.

    C is the number of channels of the training images; 3 for a mix of grey and colour. For the side, see `side_for`.

    Raise CnnlabError for a damaged image; with `options.skip_bad`, damaged images are skipped and listed in
    `ImageSet.skipped`.
    """
    if split not in listing.parts:
        return None
    with bombs_refused():
        return _read(listing, listing.parts[split], split, options)


def refused(bad: BadImage) -> CnnlabError:
    """Return the error that says why an image of a source cannot be used, and what to do."""
    absent = isinstance(bad, NoSuchImage)
    remedy = "" if ";" in str(bad) else "correct its path, or " if absent else "repair or remove it, or "
    return CnnlabError(f"{bad}; {remedy}leave such files out with --skip-bad")


def _read(listing: Listing, part: Part, split: str, options: SourceOptions) -> ImageSet:
    how, notes, warnings = (options.decoding, [], []) if options.decoding else _decoding(listing, options)
    files, labels = part.files, np.array(part.labels, np.int64)
    images = np.empty((len(files), how.channels, how.size, how.size), np.uint8)
    good, skipped = [], []
    first_skipped: dict[int, str] = {}  # of each class
    odd: dict[str, list[Path | Item]] = defaultdict(list)

    def read(i: int) -> BadImage | list[str]:
        try:
            images[i], remarks = decode_checked(files[i], how)
        except BadImage as error:
            return error
        return remarks

    # Pillow releases the GIL while it decodes and resizes, so threads use all cores.
    with ThreadPoolExecutor(available_cores()) as pool:
        for i, bad in enumerate(pool.map(read, range(len(files)))):
            if isinstance(bad, list):
                good.append(i)
                for remark in bad:
                    odd[remark].append(files[i])
            elif options.skip_bad:
                skipped.append(str(bad))
                first_skipped.setdefault(part.labels[i], str(bad))
            else:
                pool.shutdown(cancel_futures=True)
                raise refused(bad)
            options.report(f"reading {Path(listing.name).name}, {split}", i + 1, len(files))
    emptied = sorted(set(part.labels) - set(labels[good].tolist()))
    if emptied:
        name, why = listing.classes[emptied[0]], first_skipped[emptied[0]]
        raise CnnlabError(
            f"no {split} image of class {name} in {listing.name} could be read; the first: {why}; correct the files, "
            "or remove the class"
        )
    images = images[good] if skipped else images
    return ImageSet(
        torch.from_numpy(images),
        torch.from_numpy(labels[good]),
        [listing.id_of(files[i]) for i in good],
        list(listing.classes),
        tuple(skipped),
        dict(listing.passed_over),
        how,
        (*warnings, *warnings_of(listing, split, _seen(images, odd), labels[good])),
        None if part.groups is None else [part.groups[i] for i in good],
        None if part.weights is None else torch.tensor([part.weights[i] for i in good], dtype=torch.float32),
        (*listing.notes, *notes),
    )


@dataclass
class DecodedStats:
    """Observations on the decoded images of one split.

    low, high: extremes of all their values; uniform: (N,) bool, whether an image is a single colour; odd: remark of
    `decode_checked` -> (number of files, the first file).
    """

    low: int
    high: int
    uniform: np.ndarray
    odd: Mapping[str, tuple[int, str]]


def _seen(images: np.ndarray, odd: Mapping[str, list[Path | Item]]) -> DecodedStats:
    rows = images.reshape(*images.shape[:2], -1)
    uniform = (rows.min(2) == rows.max(2)).all(1)
    return DecodedStats(
        int(images.min()), int(images.max()), uniform, {r: (len(files), str(files[0])) for r, files in odd.items()}
    )


def warnings_of(listing: Listing, split: str, seen: DecodedStats, labels: np.ndarray) -> Iterator[str]:
    """Yield warnings about the decoded images of a split and, for the training split, about the source."""
    for remark, (count, file) in seen.odd.items():
        yield f"{count:,} {split} images {remark}; the first: {escape(file)}"
    if 0 < seen.high - seen.low < _FEW_LEVELS:
        yield (
            f"the {split} images use only the values {seen.low} to {seen.high} of 0 to 255, nearly one colour; "
            "multiply masks or class numbers so that they fill 0 to 255, and save colours with 8 bits"
        )
    classes = len(listing.classes)
    uniform = np.bincount(labels[seen.uniform], minlength=classes)
    for name, count, total in zip(listing.classes, uniform, np.bincount(labels, minlength=classes), strict=True):
        if count >= max(2, _UNIFORM * total):
            yield f"{count:,} of {total:,} {split} images of class {escape(name)} are a single colour after decoding"
    if split != "train":
        return
    same = defaultdict(list)
    for name in listing.classes:
        same[_loosely(name)].append(name)
    if alike := [names for names in same.values() if len(names) > 1]:
        more = f" ({plural(len(alike) - 1, 'more such case')})" if len(alike) > 1 else ""
        yield f"classes {', '.join(map(escape, alike[0]))} have nearly the same name{more}: are they the same class?"
    with ThreadPoolExecutor(available_cores()) as pool:
        tests = listing.parts["test"].files if "test" in listing.parts else ()
        faults = list(filter(None, in_order(pool, _fault, tests, _QUEUE)))
    if faults:
        yield f"{len(faults):,} test images cannot be read, and would stop an evaluation; the first: {faults[0]}"
    yield from listing.warnings


def _fault(file: Path | Item) -> str:
    """Return what is wrong with the header of an image file, or ""."""
    if isinstance(file, Item):
        return ""
    try:
        probe(file)
    except BadImage as error:
        return str(error)
    return ""


def _loosely(name: str) -> str:
    """Return a class's name without letter case, spaces between words, and what a file manager adds to a copy.

    Full-width letters and curved quotes become plain ones; invisible characters are removed.
    """
    name = unicodedata.normalize("NFKC", name).translate(_QUOTES)
    name = "".join(c for c in name if unicodedata.category(c) != "Cf")
    name = re.sub(r"( - | )(copy|kopie|copie|copia|副本)( ?\(?\d+\)?)?$|\s*\(\d+\)$", "", name.casefold().strip())
    return re.sub(r"(?<=\w)[\s_-]+(?=\w)", "", name)


def copies(listing: Listing, trained: Sequence[str]) -> int | None:
    """Return how many files of the test split are identical to a training file; None if there is no test split.

    trained: ids of the training images. Only files of equal size are read.
    """
    if "test" not in listing.parts:
        return None
    files = [file for file in listing.parts["test"].files if isinstance(file, Path)]
    sizes: dict[int, list[Path]] = {}
    for name in trained:
        with contextlib.suppress(OSError):  # it may be gone by now
            sizes.setdefault((listing.root / name).stat().st_size, []).append(listing.root / name)
    digests: dict[Path, bytes] = {}

    def digest(file: Path) -> bytes:
        if file not in digests:
            with file.open("rb") as stream:
                digests[file] = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).digest()
        return digests[file]

    count = 0
    for file in files:
        with contextlib.suppress(OSError):
            count += any(digest(file) == digest(other) for other in sizes.get(file.stat().st_size, ()))
    return count


def _decoding(listing: Listing, options: SourceOptions) -> tuple[Decoding, list[str], list[str]]:
    """Choose channels, size, background and range of values from the training images.

    Return these, notes on how the images were made to fit, and warnings.
    """
    found = survey_files(listing, options.background)
    how = Decoding(
        found.channels, side_for(found.sizes, options, listing.name), options.fit, found.background, found.low,
        found.high, options.interpolation, found.lows, found.highs,
    )  # fmt: skip
    return how, [*found.notes, *fitting_note(found.sizes, how)], list(found.warnings)


def survey_files(listing: Listing, background: str) -> SurveyResult:
    """Choose channels, background and range of values from the headers and, if needed, pixels of training images."""
    files = listing.parts["train"].files
    if isinstance(files[0], Item):  # opening an item may decode it
        files = files[:: max(1, len(files) // _SAMPLE)]
    with ThreadPoolExecutor(available_cores()) as pool:
        surveyed = {
            file: result for file, result in zip(files, in_order(pool, survey, files, _QUEUE), strict=True) if result
        }
        transparent = [file for file, (header, _) in surveyed.items() if header.transparent]
        if background == "auto":
            background = common_background(pool.map(ink_level, background_sample(transparent)))
    channels = _channels(listing, {file: header.channels for file, (header, _) in surveyed.items()})
    lows, highs = (), ()
    if channels in (1, 3):
        low, high, warnings = common_range(extremes for _, extremes in surveyed.values() if extremes)
    else:
        low, high, warnings = 0.0, 0.0, []
        deep = [file for file, (_, extremes) in surveyed.items() if extremes]
        with ThreadPoolExecutor(available_cores()) as pool:
            found = list(zip(*pool.map(channel_values, deep), strict=True))
        lows, highs, remarks = zip(*map(common_range, found), strict=True) if found else ((), (), ())
        warnings = [f"channel {c}: {text}" for c, texts in enumerate(remarks) for text in texts]
    notes = [f"the images have {channels} channels"] * (channels not in (1, 3))
    if any(str(file).lower().endswith(".npy") for file in surveyed):
        notes.append("in .npy arrays, the smaller of the first and last axis is taken as the channel axis")
    sizes = Sizes.of([header.size for header, _ in surveyed.values()])
    return SurveyResult(channels, background, low, high, lows, highs, sizes, tuple(notes), tuple(warnings))


def in_order(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """Yield the results in order, like `pool.map`, but submit only `ahead` items at a time, not all at once."""
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for task in waiting:
            task.cancel()


def side_for(sizes: Sizes | None, options: SourceOptions, name: str) -> int:
    """Return the side of the decoded images, in pixels.

    It is `options.image_size` or, if that is 0, the side of square images of one size, else 64. For
    `options.size_limit`, see `SourceOptions`. Raise CnnlabError, naming the source, if the images are too large.
    """
    if options.image_size:
        return options.image_size
    if sizes is not None and sizes.smallest == sizes.largest and sizes.square:
        side = min(sizes.middle, options.size_limit or sizes.middle)
        if side > LARGEST_SIDE:
            raise CnnlabError(f"the images of {name} are {side} pixels a side; set image_size to a smaller one")
        return side
    return min(options.size_limit, sizes.middle) if options.size_limit and sizes is not None else _DEFAULT_SIZE


def _channels(listing: Listing, counts: dict[Path | Item, int]) -> int:
    """Return the number of channels for all images: 3 for grey and colour. Raise CnnlabError for any other mix."""
    found = sorted(set(counts.values()))
    if not found:
        return 3
    if len(found) > 1 and found != [1, 3]:
        first = {count: next(file for file, n in counts.items() if n == count) for count in found}
        totals = Counter(counts.values())
        each = ", ".join(f"{totals[count]:,} of {count} (such as {first[count]})" for count in found)
        raise CnnlabError(f"the images of {listing.name} differ in their channels: {each}; convert or remove some")
    return found[-1]


def fixed_fit_note(path: Path, fit: str, wanted: str) -> str:
    """Return a note on stored pixels that were fitted in another way than the recipe's."""
    return f"the pixels of {path} were stored with fit={fit}, so fit={wanted} is not applied"


def fitting_note(sizes: Sizes | None, how: Decoding) -> Iterator[str]:
    """Yield a note on how images of other sizes become squares of `how.size`, if there are any."""
    same = (how.size, how.size)
    if sizes is None or sizes.smallest == sizes.largest == same:
        return
    span = " to ".join(f"{w}x{h}" for w, h in dict.fromkeys((sizes.smallest, sizes.largest)))
    ways = {"pad": "whole, with bars", "crop": "their middle square", "stretch": "with other proportions"}
    fit = "" if sizes.square else f", {ways[how.fit]} (fit={how.fit}; --set fit=pad, crop or stretch)"
    yield f"images of {span} pixels become {how.size}x{how.size}{fit}"
