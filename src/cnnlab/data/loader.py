"""Batches built on the device, from a uint8 set that is kept there if it fits. There are no worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnlab.data.augment import Augmentation
from cnnlab.data.balance import balanced_order, loss_weights
from cnnlab.data.draws import Draws
from cnnlab.data.feeder import Feeder
from cnnlab.data.imageset import ImageSet
from cnnlab.data.own_augment import OwnAugmentation
from cnnlab.data.packed import Pixels, measured
from cnnlab.device.world import World
from cnnlab.io.decode import Decoding
from cnnlab.io.errors import CnnlabError, reason


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The conversion of uint8 images to the network's input, in training, evaluation and prediction.

    channels, native_size: channels and side of the source's images; image_size: side of the network's input; mean, std:
    per channel, of pixels scaled to 0..1; background, low, high, interpolation, lows, highs: see `Decoding`.
    """

    channels: int
    native_size: int
    image_size: int
    fit: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    background: str = "black"
    low: float = 0.0
    high: float = 0.0
    interpolation: str = "bilinear"
    lows: tuple[float, ...] = ()
    highs: tuple[float, ...] = ()

    @classmethod
    def of(
        cls, images: Pixels, *, image_size: int, fit: str, normalize: bool, decoding: Decoding | None = None
    ) -> Preprocessing:
        """Return the preprocessing for the training images (N, C, H, W) uint8.

        normalize: use their mean and standard deviation; otherwise 0 and 1. decoding: how the image files were decoded.
        Default: with `fit`, and without a range of values. Published weights bring their own mean and standard
        deviation: see `data.expected.preprocessing_for`.
        """
        channels, height = images.shape[1], images.shape[2]
        decoding = decoding or Decoding(channels, height, fit)
        mean, std = [0.0] * channels, [1.0] * channels
        if normalize:
            # Counts of the 256 values give the exact moments without a float copy of the whole set.
            counted = torch.zeros(channels, 256, dtype=torch.int64)
            for part in measured(images):
                for c in range(channels):
                    counted[c] += torch.bincount(part[:, c].flatten(), minlength=256)
            values = torch.arange(256, dtype=torch.float64) / 255
            for c, counts in enumerate(counted.double()):
                mean[c] = float(counts @ values / counts.sum())
                std[c] = float((counts @ (values - mean[c]) ** 2 / counts.sum()).sqrt()) or 1.0
        return cls(
            channels=channels,
            native_size=height,
            image_size=image_size or height,
            fit=decoding.fit,
            mean=tuple(mean),
            std=tuple(std),
            background=decoding.background,
            low=decoding.low,
            high=decoding.high,
            interpolation=decoding.interpolation,
            lows=decoding.lows,
            highs=decoding.highs,
        )

    @property
    def decoding(self) -> Decoding:
        """How an image file is decoded before anything else."""
        return Decoding(
            self.channels,
            self.native_size,
            self.fit,
            self.background,
            self.low,
            self.high,
            self.interpolation,
            self.lows,
            self.highs,
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Resize and normalize: (B, C, H, W) uint8 -> (B, C, image_size, image_size) float32 on the same device."""
        return self.normalized(self.resized(images))

    def resized(self, images: Tensor) -> Tensor:
        """Resize and scale to 0..1, unnormalized: (B, C, H, W) uint8 -> (B, C, image_size, image_size) float32."""
        # On a CPU the first form takes thirty times as long; on a GPU it is one kernel instead of two.
        x = images.div(255) if images.is_cuda else images.float().div_(255)
        if x.shape[2] == self.image_size:
            return x
        size = [self.image_size, self.image_size]
        if self.interpolation == "bicubic":
            return F.interpolate(x, size=size, mode="bicubic", antialias=self.image_size < x.shape[2]).clamp_(0, 1)
        if self.image_size < x.shape[2]:
            return F.interpolate(x, size=size, mode="bilinear", antialias=True)
        return enlarged(x, self.image_size, as_channels=x.is_cuda)

    def normalized(self, x: Tensor) -> Tensor:
        """Subtract the mean and divide by the standard deviation: same shape out. May work in place."""
        if not any(self.mean) and all(s == 1 for s in self.std):
            return x
        mean, std = _moments(self.mean, self.std, x.device)
        return x.sub_(mean).div_(std)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a run's folder."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """Restore from `to_dict`."""
        lists = {key: tuple(values[key]) for key in ("mean", "std", "lows", "highs")}
        return cls(**{**values, **lists})


def enlarged(x: Tensor, side: int, as_channels: bool = False) -> Tensor:
    """Enlarge images bilinearly: (B, C, H, W) -> (B, C, side, side).

    as_channels: treat all images as channels of one image. A GPU then uses one thread per value; otherwise one thread
    loops over all images of the batch.
    """
    # Called directly: with deterministic algorithms on a GPU, F.interpolate takes some 35 kernels instead of one, for
    # the sake of a backward pass that is not needed here.
    larger = torch.ops.aten.upsample_bilinear2d
    b, c, h, w = x.shape
    if not as_channels or b * c * side**2 >= 2**31:
        return larger(x, [side, side], False)  # type: ignore[no-any-return]
    together = x.reshape(1, b * c, h, w).contiguous(memory_format=torch.channels_last)
    return larger(together, [side, side], False).contiguous().view(b, c, side, side)  # type: ignore[no-any-return]


def in_layout(x: Tensor, layout: torch.memory_format) -> Tensor:
    """Convert x (B, C, H, W) to the memory format `layout`. With one channel, return a view of the same memory."""
    b, c, h, w = x.shape
    if layout == torch.channels_last and c == 1 and x.is_contiguous():
        return x.as_strided((b, c, h, w), (h * w, 1, w, 1))  # else torch would copy it
    return x.to(memory_format=layout)


class Loader:
    """Batches of an image set.

    Iterating yields the whole set in order. `shuffled` yields it in random order with augmentation. Both depend only on
    the seed and the epoch, so any epoch can be repeated. No image is dropped: the last batch may be smaller, or larger
    by one.

    own: the user's augmentation, applied after `augmentation` and before images are mixed. balance: as in a recipe, for
    shuffled batches. passes: how often a shuffled epoch goes over the set. resident: whether the set is kept on the
    device. Default: if it fits. world: the processes among which each batch is divided. Without `own`, the
    batches depend on neither `resident` nor `world`.
    """

    def __init__(
        self,
        images: ImageSet,
        preprocessing: Preprocessing,
        batch_size: int,
        device: torch.device,
        *,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 - it is frozen
        own: OwnAugmentation | None = None,
        balance: str = "none",
        passes: int = 1,
        memory_format: torch.memory_format = torch.contiguous_format,
        resident: bool | None = None,
        world: World | None = None,
    ) -> None:
        self.feeder = Feeder(images.images, images.labels, device, resident)
        self._passes, self._images = passes, len(images)
        self.count = len(images) * passes  # images in an epoch
        self.preprocessing = preprocessing
        self.device = device
        self._num_classes = len(images.classes)
        self._augmentation, self._own = augmentation, own
        self._layout = memory_format
        self._balanced = images.labels if balance == "sampler" else None
        weights = loss_weights(images, balance)
        self._weights = None if weights is None else weights.to(device)[:, None]  # (N, 1)
        sizes = [batch_size] * (len(images) // batch_size)
        rest = len(images) % batch_size
        if rest == 1 and sizes:
            sizes[-1] += 1  # batch norm cannot train on a single image, and none is dropped
        elif rest:
            sizes.append(rest)
        self._sizes = sizes * passes
        self._world = world or World()

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self._sizes)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches in order: images (B, C, H, W) float32, labels (B,)."""
        return self.for_rank(World())

    def for_rank(self, world: World) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this process's share of the batches, in order. Whole batches are dealt out one by one."""
        batches = torch.arange(self._images).split(self._sizes[: len(self._sizes) // self._passes])
        mine = batches[world.rank :: world.size]
        for images, labels, _ in self.feeder(torch.cat([torch.arange(0), *mine]), [len(batch) for batch in mine]):
            yield in_layout(self.preprocessing(images), self._layout), labels

    def shuffled(self, seed: int, epoch: int, size: int = 0, start: dict[str, Any] | None = None) -> Batches:
        """Return the batches of an epoch, in random order and augmented.

        size: side in pixels to which the images are downscaled at the end; 0 keeps the preprocessing's. start: a state
        from `Batches.state` to continue from. Labels are (B,) class indices. If images are mixed or differ in weight,
        they are (B, K) probabilities, times the image's weight; the weights of a batch have mean 1.
        """
        # The order is drawn on the host, so it is the same on every device.
        host = torch.Generator().manual_seed(_mix(seed, epoch, 0))
        here = torch.Generator(self.device).manual_seed(_mix(seed, epoch, 1))
        order = torch.cat([self._order(host) for _ in range(self._passes)])
        done = 0
        if start is not None:
            done = start["done"]
            try:
                host.set_state(_state(start["host"]))
                if start["kind"] == self.device.type:
                    here.set_state(_state(start["here"]))
                else:  # the state of another kind of device cannot be restored
                    here.manual_seed(_mix(seed, epoch, 1, done))
            except (ValueError, RuntimeError) as error:
                raise CnnlabError(f"the batches' place in the checkpoint is damaged: {reason(error, 100)}") from error
        return Batches(self._batches(order, done, seed, epoch, size, host, here), self._sizes, host, here, done)

    def _order(self, generator: torch.Generator) -> Tensor:
        """Return the order of one pass over the set, (N,) int64."""
        if self._balanced is not None:
            return balanced_order(self._balanced, generator)
        return torch.randperm(self._images, generator=generator)

    def _batches(
        self, order: Tensor, done: int, seed: int, epoch: int, size: int, host: torch.Generator, here: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        parts = order.split(self._sizes)[done:]  # image indices of each batch
        if not parts:
            return
        rows = [self._world.rows(len(part)) for part in parts]
        mine = [part[own] for part, own in zip(parts, rows, strict=True)]
        mean_color, _ = _moments(self.preprocessing.mean, self.preprocessing.std, self.device)
        mean_color = mean_color.flatten()  # holes are filled with the mean colour
        batches = self.feeder(torch.cat(mine), [len(part) for part in mine])
        for number, (images, labels, index) in enumerate(batches, done):
            part = parts[number - done]
            draws = Draws(here, len(part), rows[number - done])
            x = self.preprocessing.resized(images)
            x = self._augmentation.apply(x, index, self._images, epoch, seed, draws, mean_color)
            x = self._own(x, _mix(seed, epoch, 2, number)) if self._own else x
            if self._weights is not None:  # scaled to mean 1 over the whole batch
                weights = self._weights[index] * (len(part) / self._weights[part.to(self.device)].sum())
                labels = F.one_hot(labels, self._num_classes) * weights  # (B, K)
            x, y, other, share = self._augmentation.mix(x, labels, draws, host)
            if other is not None and share is not None:
                if y.ndim == 1:
                    y, other = F.one_hot(y, self._num_classes), F.one_hot(other, self._num_classes)
                y = y * share[:, None] + other * (1 - share[:, None])  # (B, K)
            x = self.preprocessing.normalized(x)
            if size and size != x.shape[2]:
                x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
            yield in_layout(x, self._layout), y


class Batches(Iterator[tuple[Tensor, Tensor]]):
    """The batches of one epoch, from `Loader.shuffled`: images (B, C, H, W) float32, labels.

    Each batch is this process's share. images: size of the last batch over all processes.
    """

    def __init__(
        self,
        batches: Iterator[tuple[Tensor, Tensor]],
        sizes: list[int],
        host: torch.Generator,
        here: torch.Generator,
        done: int,
    ) -> None:
        self._batches, self._sizes, self._host, self._here, self._done = batches, sizes, host, here, done
        self.images = 0

    def __next__(self) -> tuple[Tensor, Tensor]:
        batch = next(self._batches)
        self.images = self._sizes[self._done]
        self._done += 1
        return batch

    def state(self) -> dict[str, Any]:
        """Return the position as plain values: number of batches yielded, and both generators' states.

        The order of the images is not included: it is drawn from the seed and the epoch's number.
        """
        kind = self._here.device.type
        host, here = (bytes(g.get_state().tolist()).hex() for g in (self._host, self._here))
        return {"done": self._done, "kind": kind, "host": host, "here": here}


def _state(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


@lru_cache(maxsize=8)
def _moments(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (C, 1, 1) on the device. Cached: a copy per batch would stall a GPU."""
    return torch.tensor(mean, device=device)[:, None, None], torch.tensor(std, device=device)[:, None, None]


def _mix(*numbers: int) -> int:
    """Mix several small numbers into a 63-bit seed (steps of splitmix64)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
