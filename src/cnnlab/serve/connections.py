"""uvicorn's HTTP connection, with limits on the number of connections and on the time of each phase."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from cnnlab.serve.log import Log
from cnnlab.serve.service import Service

_SLACK = 2.0  # extra seconds for writing the answer


class _Transport:
    """A transport whose `close` is replaced."""

    def __init__(self, transport: asyncio.BaseTransport, close: Callable[[], None]) -> None:
        self._transport, self.close = transport, close

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Connection(H11Protocol):
    """A connection with a deadline for each phase: its headers, its request, and the time after an answer."""

    def __init__(self, service: Service, log: Log, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.service, self.log, self.limits = service, log, service.limits
        self._deadline: asyncio.TimerHandle | None = None
        self._lingers = False  # answered, while the body still arrives
        self._finished = False  # its last answer is written; data that still arrives is dropped

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept a connection. Beyond the limit, answer 503 and close it; beyond twice the limit, abort it."""
        self._close_transport = transport.close
        super().connection_made(_Transport(transport, self._close))  # type: ignore[arg-type]
        self._within(self.limits.header_seconds)
        if len(self.connections) > 2 * self.limits.connections:
            self.transport.abort()
        elif len(self.connections) > self.limits.connections:
            self._refuse(503, "too many connections; send the request again")

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers."""
        super().connection_lost(exc)
        self._within(None)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """Process data. The first byte of the next request starts the deadline for its headers."""
        if self._finished:
            return
        if self._idle and self._deadline is None:
            self._within(self.limits.header_seconds)
        super().data_received(data)
        if self._lingers and self.conn.their_state is not h11.SEND_BODY:
            self._lingers = False
            if self._idle:
                self._within(self.limits.idle_seconds)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer a client that has sent its whole request and closed its side."""
        waits = not self._idle and not self.cycle.more_body
        if waits:
            self.cycle.keep_alive = False
        else:
            self.transport.close()
        return waits

    def handle_events(self) -> None:
        """Start a request and its deadline."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before and not self.cycle.response_complete:
            self._lingers = False
            self._within(self.limits.seconds, self._overdue)

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of a body that was refused."""
        if not self.transport.is_closing():
            self._lingers = self.conn.their_state is h11.SEND_BODY
            self._within(self.limits.linger if self._lingers else None)
        super().on_response_complete()
        if self._lingers:
            self._unset_keepalive_if_required()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - clients get no details
        """Answer malformed HTTP."""
        if self.cycle is not None and not self.cycle.response_complete:
            if self.cycle.response_started:
                self.transport.abort()
                return
            self.cycle.disconnected = True  # its task ends
            self.cycle.message_event.set()
        self._refuse(400, "not a valid HTTP request")

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _within(self, seconds: float | None, late: Callable[[], None] | None = None) -> None:
        """Replace the deadline. seconds: None for no deadline. late: called at its end. Default: `_late`."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, late or self._late)

    def _overdue(self) -> None:
        """Give the service time to answer that the request took too long, even after a stall of the whole process."""
        self._within(_SLACK)

    def _late(self) -> None:
        self._deadline = None
        headers = self._idle and self.conn.their_state is h11.IDLE
        if headers and not self._finished and self.conn.trailing_data[0]:
            self._refuse(408, f"the headers did not arrive within {self.limits.header_seconds:g} s")
        else:
            self.transport.abort()

    def _close(self) -> None:
        """Close once the client has read its answer. It has as long for that as a request may take."""
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.SEND_BODY:
            self._finish()
        else:
            self._close_transport()
            self._within(self.limits.seconds)

    def _finish(self) -> None:
        """Send nothing more, but keep reading for a moment: closing at once could lose the answer."""
        self._finished = True
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._within(self.limits.linger)

    def _refuse(self, status: int, text: str) -> None:
        """Send an error without a request, and finish."""
        if self.transport.is_closing() or self._finished:
            return
        body = json.dumps({"error": text}).encode()
        retry = "Retry-After: 1\r\n" if status == HTTPStatus.SERVICE_UNAVAILABLE else ""
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n{retry}Connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self._finish()
        self.service.metrics.requests["other", status] += 1
        self.log(method="-", path="-", status=status, client=self.client[0] if self.client else "-", error=text)
