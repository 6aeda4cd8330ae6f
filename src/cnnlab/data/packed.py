"""Images stored in files and read row by row: the `ImageSet.images` of a set that does not fit in memory.

A row is the index of an image in the concatenated shards. Only requested rows are read, with positioned reads, so no
part of a file stays in the process's memory. Threads decode encoded images a few batches ahead of their use (Pillow
releases the GIL).
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cnnlab.device.hardware import available_cores
from cnnlab.io.decode import BadImage, Decoding, decode, square_pixels
from cnnlab.io.errors import CnnlabError, reason

_AHEAD = 1 << 27  # bytes of decoded batches that wait for their use; two batches may be more
_MOST_AHEAD = 8  # batches
_TASK = 1 << 20  # bytes of decoded images in one task of a thread
_CHUNK = 1 << 25  # bytes of decoded images at a time in a pass over a set
_COPIED = 1 << 30  # bytes of decoded images in the largest packed set that may be read into memory
_SAMPLE = 100_000  # encoded images from which the mean and standard deviation of a larger set are computed


@dataclass(frozen=True, eq=False)
class Shards:
    """The files of a packed set.

    paths: S files; firsts: offset of each file in their concatenation, (S + 1,); starts: offset of each of the N images
    there, (N + 1,) int64, or None if all images take the same number of bytes; shape: (C, H, W) of raw pixels, or None
    if the images are encoded; ids: N strings; digests: (N, 16) uint8, the hash of each image's bytes; side: the usual
    side of an image, in pixels.
    """

    paths: Sequence[Path]
    firsts: Sequence[int]
    starts: NDArray[np.int64] | None
    shape: tuple[int, int, int] | None
    ids: Sequence[str]
    digests: NDArray[np.uint8]
    side: int
    _handles: dict[int, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        weakref.finalize(self, _close, self._handles)

    def read(self, row: int, into: memoryview | None = None) -> bytes:
        """Return the bytes of an image. Raise CnnlabError if they cannot be read.

        into: a buffer of their length to write them to; then return b"".
        """
        if self.starts is None:
            assert self.shape is not None
            size = self.shape[0] * self.shape[1] * self.shape[2]
            start = row * size
        else:
            start, size = int(self.starts[row]), int(self.starts[row + 1] - self.starts[row])
        shard = bisect_right(self.firsts, start) - 1
        buffer = memoryview(bytearray(size)) if into is None else into
        try:
            done = _read_at(self._handle(shard), buffer, start - self.firsts[shard], self._lock)
        except OSError as error:
            raise CnnlabError(f"cannot read {self.paths[shard]}: {reason(error)}; restore it from a copy") from error
        if done != size:
            raise CnnlabError(f"{self.paths[shard]} is incomplete; pack the set again, or restore it from a copy")
        return bytes(buffer) if into is None else b""

    def _handle(self, shard: int) -> int:
        if shard not in self._handles:
            with self._lock:
                if shard not in self._handles:
                    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
                    self._handles[shard] = os.open(self.paths[shard], flags)
        return self._handles[shard]


class PackedImages:
    """Some rows of a packed set, decoded alike: (N, C, H, W) uint8, none of it in memory.

    Indexing reads: `images[index]`, `images[2:5]` and `images[7]` are tensors. `take` selects rows without reading.
    """

    dtype = torch.uint8
    ndim = 4

    def __init__(self, shards: Shards, rows: NDArray[np.int64], how: Decoding) -> None:
        self._shards, self._rows, self._how = shards, rows, how
        self.shape = (len(rows), how.channels, how.size, how.size)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels."""
        return len(self) * self._row_bytes

    @property
    def encoded(self) -> bool:
        """Whether the images are stored as image files, not as pixels."""
        return self._shards.shape is None

    @property
    def side(self) -> int:
        """The usual side of an image as stored, in pixels."""
        return self._shards.side

    @property
    def _row_bytes(self) -> int:
        return self.shape[1] * self.shape[2] * self.shape[3]

    def take(self, index: Tensor) -> PackedImages:
        """Return the rows at `index` (M,) int64, without reading them."""
        return PackedImages(self._shards, self._rows[index.numpy()], self._how)

    def __getitem__(self, key: int | slice | Tensor) -> Tensor:
        if isinstance(key, int):
            return next(self.batches([torch.tensor([range(len(self))[key]])]))[0]
        index = torch.arange(len(self))[key] if isinstance(key, slice) or key.dtype == torch.bool else key.cpu()
        return next(self.batches([index]))

    def __iter__(self) -> Iterator[Tensor]:
        for part in chunks(self):
            yield from part

    def split(self, count: int) -> Iterator[Tensor]:
        """Yield the images in order, `count` at a time."""
        return self.batches(torch.arange(len(self)).split(count))

    def batches(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the images at each index (B,) int64, reading a bounded number of batches ahead.

        Raise CnnlabError for an image that cannot be read, when its batch is due.
        """
        largest = max(map(len, parts), default=0) * self._row_bytes
        ahead = max(2, min(_MOST_AHEAD, _AHEAD // max(1, largest)))
        waiting: deque[tuple[Tensor, list[Future[None]]]] = deque()
        finalizing = sys.is_finalizing  # at the interpreter's end, modules are gone before generators
        pool = ThreadPoolExecutor(available_cores(), thread_name_prefix="read images")
        try:
            for part in parts:
                waiting.append(self._start(pool, part))
                if len(waiting) > ahead:
                    yield _done(*waiting.popleft())
            while waiting:
                yield _done(*waiting.popleft())
        finally:
            if not finalizing():
                pool.shutdown(cancel_futures=True)

    def hashes(self) -> list[bytes]:
        """Return the hash of each image's stored bytes, without reading them."""
        return [row.tobytes() for row in self._shards.digests[self._rows]]

    def fingerprint(self) -> bytes:
        """Return bytes that identify the images and how they are decoded, without reading them."""
        return repr(self._how).encode() + self._shards.digests[self._rows].tobytes()

    def sample(self, count: int) -> PackedImages:
        """Return at most `count` of the images, evenly spaced."""
        if len(self) <= count:
            return self
        return self.take(torch.linspace(0, len(self) - 1, count, dtype=torch.float64).round().long())

    def _start(self, pool: ThreadPoolExecutor, part: Tensor) -> tuple[Tensor, list[Future[None]]]:
        images = torch.empty((len(part), *self.shape[1:]), dtype=torch.uint8)
        pixels, rows = images.numpy(), self._rows[part.numpy()].tolist()
        step = max(1, _TASK // self._row_bytes)
        starts = range(0, len(rows), step)
        return images, [pool.submit(self._fill, pixels[i : i + step], rows[i : i + step]) for i in starts]

    def _fill(self, pixels: NDArray[np.uint8], rows: Sequence[int]) -> None:
        shards, how = self._shards, self._how
        for place, row in enumerate(rows):
            if shards.shape == pixels.shape[1:]:
                shards.read(row, memoryview(pixels[place]).cast("B"))
            elif shards.shape is not None:
                stored = np.frombuffer(shards.read(row), np.uint8).reshape(shards.shape)
                pixels[place] = _resized(stored, shards.ids[row], how)
            else:
                pixels[place] = decode(shards.ids[row], how, shards.read(row))

    @classmethod
    def joined(cls, parts: Sequence[PackedImages]) -> PackedImages:
        """Concatenate several splits of one packed set, which are decoded alike."""
        return cls(parts[0]._shards, np.concatenate([part._rows for part in parts]), parts[0]._how)


Pixels = Tensor | PackedImages
"""(N, C, H, W) uint8, in memory or read from files."""


def take(images: Pixels, index: Tensor) -> Pixels:
    """Return the images at `index` (M,) int64; those of a packed set are not read."""
    return images[index] if isinstance(images, Tensor) else images.take(index)


def join(parts: Sequence[Pixels]) -> Pixels:
    """Concatenate the images of several splits of one source."""
    packed = [part for part in parts if isinstance(part, PackedImages)]
    return PackedImages.joined(packed) if packed else torch.cat([part for part in parts if isinstance(part, Tensor)])


def chunks(images: Pixels, most: int = 1 << 30) -> Iterator[Tensor]:
    """Yield the images in order, at most `most` at a time. The bytes of a packed set's chunks are bounded, too."""
    if isinstance(images, PackedImages):
        most = max(1, min(most, _CHUNK // max(1, images.nbytes // max(1, len(images)))))
    yield from images.split(most)


def measured(images: Pixels) -> Iterator[Tensor]:
    """Yield the images from which mean and standard deviation are computed.

    These are all images or, of more encoded images, 100,000 evenly spaced ones.
    """
    if isinstance(images, PackedImages):
        yield from chunks(images.sample(_SAMPLE) if images.encoded else images)
    else:
        yield images


def in_memory(images: Pixels, what: str) -> Tensor:
    """Return the images as a tensor. Raise CnnlabError for a packed set of over a gigabyte.

    what: the caller's task, for the error message.
    """
    if isinstance(images, Tensor):
        return images
    if images.nbytes > _COPIED:
        raise CnnlabError(
            f"{what} needs all images in memory, and these are {images.nbytes / 1e9:.1f} GB; take a source of fewer or "
            "smaller images"
        )
    return torch.cat([images[:0], *chunks(images)])


def _resized(stored: NDArray[np.uint8], name: str, how: Decoding) -> NDArray[np.uint8]:
    """Fit stored pixels (C, H, W) as `how` says, as if they came from an image file."""
    count = stored.shape[0]
    if count in (1, 3):
        pixels = stored[0] if count == 1 else np.ascontiguousarray(stored.transpose(1, 2, 0))
        return square_pixels(Image.fromarray(pixels), name, how)
    if count != how.channels:
        raise BadImage(f"{name} has {count} channels, {how.channels} are expected")
    single = Decoding(1, how.size, how.fit, interpolation=how.interpolation)
    return np.concatenate([square_pixels(Image.fromarray(band), name, single) for band in stored])


def _done(images: Tensor, tasks: Sequence[Future[None]]) -> Tensor:
    for task in tasks:
        task.result()
    return images


def _read_at(handle: int, buffer: memoryview, start: int, lock: threading.Lock) -> int:
    """Fill `buffer` from byte `start` of a file on. Return the number of bytes read: fewer only at the file's end."""
    done = 0
    while done < len(buffer):
        if hasattr(os, "preadv"):
            count = os.preadv(handle, [buffer[done:]], start + done)
        else:  # Windows
            with lock:
                os.lseek(handle, start + done, os.SEEK_SET)
                content = os.read(handle, len(buffer) - done)
            count = len(content)
            buffer[done : done + count] = content
        if count == 0:
            break
        done += count
    return done


def _close(handles: dict[int, int]) -> None:
    for handle in handles.values():
        os.close(handle)
