"""The limits of the service, and the error of a request beyond them."""

from __future__ import annotations

from dataclasses import dataclass

from cnnlab.io.errors import CnnlabError


@dataclass(frozen=True)
class Limits:
    """Limits of the service. Raise CnnlabError for values that contradict each other.

    max_batch: images per batch; max_wait: milliseconds that a batch waits for more images. max_queue: images accepted
    and not yet answered. body: bytes per request; bodies: bytes of all requests together. pixels: per image; images:
    per request. connections: open at the same time. seconds: from a request's headers to its answer, and again for
    reading the answer; header_seconds: for the headers; idle_seconds: between the requests of a connection; linger:
    seconds in which to read what a client still sends after its answer, since closing at once could lose the answer.
    """

    max_batch: int = 32
    max_wait: float = 0.0
    max_queue: int = 256
    body: int = 32 << 20
    bodies: int = 256 << 20
    pixels: int = 50_000_000
    images: int = 64
    connections: int = 256
    seconds: float = 30.0
    header_seconds: float = 10.0
    idle_seconds: float = 15.0
    linger: float = 2.0

    def __post_init__(self) -> None:
        if self.images > self.max_queue:
            raise CnnlabError(
                f"--max-images {self.images}: more than the queue holds; give at most --max-queue {self.max_queue}"
            )


class Refused(Exception):
    """A refused request. status: HTTP status; text: one line; retry: seconds until the client may try again, or 0."""

    def __init__(self, status: int, text: str, retry: int = 0) -> None:
        super().__init__(text)
        self.status, self.text, self.retry = status, text, retry
