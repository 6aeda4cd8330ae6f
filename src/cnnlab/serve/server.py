"""Start the service, uvicorn on our own listener, and stop it gracefully on signals."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

import numpy as np
import uvicorn
from PIL import Image

from cnnlab.io.decode import bombs_refused
from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.http import host_headers, host_in_url
from cnnlab.serve.access import AccessMiddleware
from cnnlab.serve.batching import Model
from cnnlab.serve.connections import Connection
from cnnlab.serve.log import Log
from cnnlab.serve.service import Service, make_app
from cnnlab.serve.settings import Limits

_LAST = 0.1  # seconds after a signal in which requests are still accepted: clients may have just sent them
_SLACK = 4.0  # seconds for stopping, beyond those of a request


class Server(uvicorn.Server):
    """uvicorn's server. The first SIGTERM or SIGINT stops it gracefully, the second at once.

    on_start: called once it listens.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self.on_start: Callable[[], object] = int
        service.connections = lambda: len(self.server_state.connections)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Stop gracefully; on a second signal, at once."""
        if self.service.stopping:
            os._exit(128 + sig)
        self.service.stopping = self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the threads, then listen."""
        self.service.start()
        await super().startup(sockets)
        self.on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer the requests under way, each as the last one of its connection, then stop."""
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        await asyncio.sleep(_LAST)
        await super().shutdown(sockets)


@contextmanager
def images_bounded(pixels: int) -> Iterator[None]:
    """Refuse images of more than `pixels` pixels before they are decoded, in the whole process."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = pixels
    try:
        with bombs_refused():
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def make_server(
    model: Model,
    listener: socket.socket,
    *,
    limits: Limits,
    log: Log,
    name: str,
    token: str | None = None,
    host: str = "localhost",
    check_host: bool = True,
    decoders: int = 1,
) -> Server:
    """Return the server of a network on a bound socket; `run(sockets=[listener])` serves until a signal.

    name: the network's name. token: what requests must send; None: no token. host: the name of this machine in the
    address that users are given. check_host: without a token, refuse requests from other pages and for other hosts.
    decoders: number of threads that decode images.
    """
    service = Service(model, limits, decoders, name)
    service.dropped = lambda: log.dropped
    address, port = listener.getsockname()[:2]
    names = dict.fromkeys((host_in_url(address), host_in_url(host), "localhost", "127.0.0.1", "[::1]"))
    hosts = host_headers(port, *names)
    wrapped = AccessMiddleware(make_app(service), service.metrics, log, token, hosts if check_host else ())
    config = uvicorn.Config(
        wrapped,
        http=partial(Connection, service, log),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        backlog=limits.connections,
        timeout_keep_alive=limits.idle_seconds,  # type: ignore[arg-type]
        timeout_graceful_shutdown=limits.seconds + _SLACK,  # type: ignore[arg-type]
    )
    return Server(config, service)


def serve(server: Server, listener: socket.socket, log: Log) -> None:
    """Serve until SIGTERM or SIGINT; then answer the accepted requests, and return."""
    with images_bounded(server.service.limits.pixels):
        server.run(sockets=[listener])
        ended = server.service.batcher.close()
        log.close()
    if not ended:  # a thread is in a decoder or in the network, which must not outlive the interpreter
        os._exit(0)


def try_out(model: Model, limits: Limits) -> None:
    """Classify black images once, so that a broken network fails at the start. Raise CnnlabError."""
    how = model.decoding
    for count in {1, limits.max_batch}:
        try:
            found = model.probabilities(np.zeros((count, how.channels, how.size, how.size), np.uint8))
        except CnnlabError:
            raise
        except Exception as error:
            raise CnnlabError(f"the network cannot run: {reason(error, 200)}; export it again") from error
        if found.shape != (count, len(model.classes)):
            raise CnnlabError("the network's classes are not those that its file names; export it again")
