"""The queue of the service: threads decode images, and one thread runs the network on batches of them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Protocol

import numpy as np

from cnnlab.io.decode import BadImage, Decoding, TooLarge, decode
from cnnlab.io.errors import out_of_memory, reason
from cnnlab.serve.settings import Limits, Refused


class Model(Protocol):
    """The exported network that is served."""

    @property
    def classes(self) -> list[str]:
        """The names of the K classes."""

    @property
    def decoding(self) -> Decoding:
        """How to decode an image file into its input."""

    @property
    def threshold(self) -> float:
        """The probability below which an image is none of the classes."""

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """(B, C, H, W) uint8 -> (B, K)."""


@dataclass
class Request:
    """The images of a request, and the outcome of each: its probabilities (K,), or why there are none.

    left: number of images without an outcome. dropped: the request has ended, so its remaining images are skipped.
    """

    images: list[tuple[str, bytes]]
    answered: asyncio.Future[None]
    outcomes: list[np.ndarray | Refused | None] = field(default_factory=list)
    left: int = 0
    dropped: bool = False

    def __post_init__(self) -> None:
        self.left = len(self.images)
        self.outcomes = [None] * self.left


Place = tuple[Request, int]
"""An image of a request, by its index."""


class Batcher:
    """Decode and classify images. Those that arrive while the network runs form its next batch.

    threads: number of threads that decode. on_batch: called in the event loop with the size of each batch.
    """

    def __init__(
        self,
        model: Model,
        limits: Limits,
        threads: int,
        loop: asyncio.AbstractEventLoop,
        on_batch: Callable[[int], None],
    ) -> None:
        self.model, self.limits, self.loop, self.on_batch = model, limits, loop, on_batch
        self._decoding = model.decoding
        self.held = 0  # images accepted and not yet answered
        self._files: SimpleQueue[Place | None] = SimpleQueue()
        self._pixels: SimpleQueue[tuple[Place, np.ndarray] | None] = SimpleQueue()
        self._decoders = [threading.Thread(target=self._decode, name="decode", daemon=True) for _ in range(threads)]
        self._runner = threading.Thread(target=self._run, name="network", daemon=True)
        for thread in (*self._decoders, self._runner):
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether all threads are running."""
        return all(thread.is_alive() for thread in (*self._decoders, self._runner))

    async def classify(self, images: list[tuple[str, bytes]]) -> Sequence[np.ndarray | Refused | None]:
        """Return the probabilities (K,) of each image, or why there are none. Raise Refused if the queue is full."""
        if self.held + len(images) > self.limits.max_queue:
            raise Refused(503, "the queue is full; send the request again", retry=1)
        request = Request(images, self.loop.create_future())
        self.held += len(images)
        try:
            for i in range(len(images)):
                self._files.put((request, i))
            await request.answered
        finally:
            request.dropped = True  # the rest of a request that timed out is skipped
        return request.outcomes

    def close(self, seconds: float = 1.0) -> bool:
        """End the threads. Return whether they ended in time."""
        for _ in self._decoders:
            self._files.put(None)
        self._pixels.put(None)
        deadline = time.monotonic() + seconds
        for thread in (*self._decoders, self._runner):
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in (*self._decoders, self._runner))

    # These run in the threads.

    def _decode(self) -> None:
        while (place := self._files.get()) is not None:
            request, i = place
            if request.dropped:
                self._answer([(place, None)])
                continue
            name, content = request.images[i]
            request.images[i] = (name, b"")  # frees the bytes while the other images wait
            try:
                self._pixels.put((place, decode(name, self._decoding, content)))
            except Exception as error:  # decoders raise nearly anything for a damaged file
                self._answer([(place, _refusal(name, error))])

    def _run(self) -> None:
        while (first := self._pixels.get()) is not None:
            batch = [first]
            deadline = time.monotonic() + self.limits.max_wait / 1000
            while len(batch) < self.limits.max_batch:
                try:
                    found = self._pixels.get(timeout=max(0.0, deadline - time.monotonic()))
                except Empty:
                    break
                if found is None:
                    self._pixels.put(None)
                    break
                batch.append(found)
            # Read once for each image: the event loop may set it meanwhile.
            dropped = [place[0].dropped for place, _ in batch]
            wanted = [one for one, late in zip(batch, dropped, strict=True) if not late]
            self._answer([(place, None) for (place, _), late in zip(batch, dropped, strict=True) if late])
            if wanted:
                self._answer(self._classified(wanted), len(wanted))

    def _classified(self, batch: list[tuple[Place, np.ndarray]]) -> list[tuple[Place, np.ndarray | Refused | None]]:
        places = [place for place, _ in batch]
        try:
            rows = self.model.probabilities(np.stack([pixels for _, pixels in batch]))
            nan = Refused(500, "the network failed: its probabilities are NaN")  # only of this image
            return [(place, row if np.isfinite(row).all() else nan) for place, row in zip(places, rows, strict=True)]
        except Exception as error:  # the service answers and lives on
            status = 503 if out_of_memory(error) else 500
            refusal = Refused(status, f"the network failed: {reason(error, 200)}", retry=status == 503)
            return [(place, refusal) for place in places]

    def _answer(self, outcomes: list[tuple[Place, np.ndarray | Refused | None]], size: int = 0) -> None:
        if not outcomes:
            return
        with suppress(RuntimeError):  # the loop has ended, and no request waits
            self.loop.call_soon_threadsafe(self._deliver, outcomes, size)

    # This runs in the event loop.

    def _deliver(self, outcomes: list[tuple[Place, np.ndarray | Refused | None]], size: int) -> None:
        self.held -= len(outcomes)
        if size:
            self.on_batch(size)
        for (request, i), outcome in outcomes:
            request.outcomes[i] = outcome
            request.left -= 1
            if not request.left and not request.answered.done():
                request.answered.set_result(None)


def _refusal(name: str, error: Exception) -> Refused:
    if isinstance(error, BadImage):
        return Refused(413 if isinstance(error, TooLarge) else 422, str(error))
    if out_of_memory(error):
        return Refused(503, f"out of memory while decoding {name}", retry=1)
    return Refused(422, f"{name} cannot be read: {reason(error, 200)}")
