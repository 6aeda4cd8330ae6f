"""The routes of the service and their answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from heapq import nlargest
from http import HTTPStatus
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from cnnlab import __version__
from cnnlab.io.errors import CnnlabError, unknown
from cnnlab.io.text import escape, plural, truncate
from cnnlab.serve.batching import Batcher, Model
from cnnlab.serve.metrics import TYPE, Metrics
from cnnlab.serve.multipart import images_of
from cnnlab.serve.openapi import description
from cnnlab.serve.settings import Limits, Refused

TOP = 3


@dataclass
class Note:
    """What the log says about a request: its images, how many of them failed, and why it was refused."""

    images: int = 0
    errors: int = 0
    error: str = ""


class Service:
    """The handlers of requests to the network `model`. threads: number of threads that decode images."""

    def __init__(self, model: Model, limits: Limits, threads: int, name: str) -> None:
        self.model, self.limits, self.threads, self.name = model, limits, threads, name
        self.classes, self.threshold = model.classes, model.threshold
        self.metrics = Metrics(__version__)
        self.stopping = False
        self.bodies = 0  # bytes in memory
        self.connections: Callable[[], int] = int
        self.dropped: Callable[[], int] = int
        self.batcher: Batcher

    def start(self) -> None:
        """Start the threads that decode and classify. Call it in the event loop that awaits their answers."""
        loop = asyncio.get_running_loop()
        self.batcher = Batcher(self.model, self.limits, self.threads, loop, self.metrics.batches.add)

    async def predict(self, request: Request) -> Response:
        """Classify the image or the images of the body."""
        top = _top(request)
        self._check_headers(request)
        deadline = asyncio.get_running_loop().time() + self.limits.seconds
        taken = 0
        try:
            body = bytearray()
            try:
                async with asyncio.timeout_at(deadline):
                    async for part in request.stream():
                        taken += self._take(len(part), len(body))
                        body += part
            except TimeoutError as error:
                raise Refused(408, f"the body did not arrive within {self.limits.seconds:g} s") from error
            images = images_of(request.headers.get("content-type", ""), bytes(body), self.limits.images)
            del body
            return await self._answer(request.scope["note"], images, top, deadline)
        finally:
            self.bodies -= taken

    def _check_headers(self, request: Request) -> None:
        """Raise Refused for a body that need not be read: too large, or compressed."""
        if int(request.headers.get("content-length", 0)) > self.limits.body:
            raise self._too_large()
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "a compressed body is not read; send it without Content-Encoding")

    def _too_large(self) -> Refused:
        return Refused(413, f"the body has more than {self.limits.body:,} bytes; make it smaller")

    def _take(self, size: int, before: int) -> int:
        """Count bytes that have arrived. Raise Refused beyond the limits."""
        if before + size > self.limits.body:
            raise self._too_large()
        if self.bodies + size > self.limits.bodies:
            raise Refused(503, "too many bytes are being received; send the request again", retry=1)
        self.bodies += size
        return size

    async def _answer(self, note: Note, images: list[tuple[str, bytes]], top: int, deadline: float) -> Response:
        names = [name for name, _ in images]
        note.images = len(images)
        try:
            async with asyncio.timeout_at(deadline):
                outcomes = await self.batcher.classify(images)
        except TimeoutError as error:
            raise Refused(503, f"no answer within {self.limits.seconds:g} s", retry=1) from error
        found = []
        for name, outcome in zip(names, outcomes, strict=True):
            if isinstance(outcome, np.ndarray):
                found.append({"image": name, **self._named(outcome, top)})
                continue
            assert outcome is not None
            note.errors += 1
            if len(outcomes) == 1 or outcome.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise outcome
            found.append({"image": name, "error": outcome.text})
        return _json({"images": found})

    def _named(self, row: np.ndarray, top: int) -> dict[str, Any]:
        """Return the most probable classes of an image, as `cnnlab predict --format json` does."""
        values = row.tolist()
        order = nlargest(top, range(len(values)), key=values.__getitem__)
        best = [{"label": self.classes[k], "probability": values[k]} for k in order]
        return {"top": best, "none_of_these": best[0]["probability"] < self.threshold}

    async def health(self, _: Request) -> Response:
        """Answer that the process is alive."""
        return _json({"status": "alive"})

    async def ready(self, _: Request) -> Response:
        """Answer whether an image would be accepted."""
        why = None
        if self.stopping:
            why = "the service is stopping"
        elif not self.batcher.alive:
            why = "a thread has ended; restart the service"
        elif self.batcher.held >= self.limits.max_queue:
            why = "the queue is full"
        if why:
            raise Refused(503, why, retry=1)
        return _json({"status": "ready"})

    async def figures(self, _: Request) -> Response:
        """Answer with the metrics."""
        text = self.metrics.text(queue_images=self.batcher.held, body_bytes=self.bodies,
                                 connections=self.connections(), log_lines_dropped=self.dropped())  # fmt: skip
        return Response(text, media_type=TYPE)

    async def openapi(self, _: Request) -> Response:
        """Answer with the description of these routes."""
        return _json(description(self.limits, self.classes))

    async def index(self, request: Request) -> Response:
        """Answer with a usage text."""
        classes = truncate(escape(", ".join(self.classes)))
        address = escape(str(request.base_url))
        token = "-H 'Authorization: Bearer TOKEN' " if "authorization" in request.headers else ""
        return PlainTextResponse(
            f"cnnlab {__version__} serves {self.name}: {plural(len(self.classes), 'class')} ({classes}).\n\n"
            f"    curl {token}-F image=@photo.jpg '{address}predict?top=3'\n\n"
            "Paths: POST /predict; GET /health, /ready, /metrics, /openapi.json\n"
        )


def make_app(service: Service) -> Starlette:
    """Return the application, to be wrapped in `AccessMiddleware`."""
    return Starlette(
        routes=[
            Route("/predict", service.predict, methods=["POST"]),
            Route("/health", service.health),
            Route("/ready", service.ready),
            Route("/metrics", service.figures),
            Route("/openapi.json", service.openapi),
            Route("/", service.index),
        ],
        exception_handlers={Refused: _refused, HTTPException: _http, ClientDisconnect: _gone, Exception: _failed},
    )


def refusal(refused: Refused) -> Response:
    """Return the answer to a request that is refused."""
    headers = {"Retry-After": str(refused.retry)} if refused.retry else {}
    if refused.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return _json({"error": escape(refused.text)}, refused.status, headers)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    request.scope["note"].error = error.text
    return refusal(error)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = {404: "there is no such path; GET / lists the paths",
            405: "this path does not take this method; GET / lists the paths and their methods"}  # fmt: skip
    request.scope["note"].error = text.get(error.status_code, error.detail)
    return _json({"error": request.scope["note"].error}, error.status_code, error.headers)


async def _gone(request: Request, _: Exception) -> Response:
    """Return status 499 for the log, as nginx does. Nobody reads this answer."""
    request.scope["note"].error = "the client disconnected"
    return _json({"error": "the client disconnected"}, 499)


async def _failed(*_: object) -> Response:
    return _json({"error": "the service failed on this request; its log says why"}, 500)


def _top(request: Request) -> int:
    """Return the number of classes asked for. Raise Refused."""
    try:
        for key in request.query_params:
            if key != "top":
                raise unknown("option", key, ["top"])
    except CnnlabError as error:
        raise Refused(400, str(error)) from error
    text = request.query_params.get("top", str(TOP))
    if not (text.isascii() and text.isdecimal() and len(text) < 7 and int(text)):
        raise Refused(400, f"top={truncate(escape(text), 40)}: must be a whole number from 1")
    return int(text)


def _json(content: Any, status: int = 200, headers: Any = None) -> Response:
    text = json.dumps(content, allow_nan=False)
    return Response(text, status, headers, media_type="application/json")
