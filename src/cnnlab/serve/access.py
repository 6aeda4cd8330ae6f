"""Middleware of the service: access control, the log of requests, and the metrics."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cnnlab.io.errors import reason
from cnnlab.io.http import is_foreign, is_secret
from cnnlab.io.text import escape, truncate
from cnnlab.serve.log import Log
from cnnlab.serve.metrics import Metrics
from cnnlab.serve.service import Note, refusal
from cnnlab.serve.settings import Refused

_OPEN = ("/health", "/ready")  # for probes, which have no token
_PATHS = (*_OPEN, "/predict", "/metrics", "/openapi.json", "/")


class AccessMiddleware:
    """Middleware that refuses requests without the token, and logs and counts each request.

    token: what requests must send, or None. hosts: the accepted Host headers if there is no token. They keep another
    page in a browser on this machine, and a name that an attacker points at it (DNS rebinding), from reading answers.
    Empty: any.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, log: Log, token: str | None, hosts: Sequence[str]) -> None:
        self.app, self.metrics, self.log, self.token, self.hosts = app, metrics, log, token, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        start = time.perf_counter()
        note = scope["note"] = Note()
        status = 0

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            refused = self._refusal(scope)
            if refused is not None:
                note.error = refused.text
            await (refusal(refused) if refused is not None else self.app)(scope, receive, send_counted)
        except Exception as error:  # it was answered with 500
            note.error = f"{type(error).__name__}: {truncate(reason(error))}"
        finally:
            self._count(scope, note, status or 499, time.perf_counter() - start)

    def _count(self, scope: Scope, note: Note, status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in _PATHS else "other"
        self.metrics.requests[path, status] += 1
        if path == "/predict":
            self.metrics.seconds.add(seconds)
            if status == 200:
                self.metrics.images["ok"] += note.images - note.errors
            self.metrics.images["error"] += note.images if status != 200 else note.errors
        client = scope.get("client")
        entry: dict[str, Any] = {
            "method": truncate(scope["method"], 20), "path": truncate(escape(scope["path"])), "status": status,
            "seconds": round(seconds, 6), "client": truncate(client[0], 60) if client else "-",
            "images": note.images, "bad_images": note.errors,
        }  # fmt: skip
        self.log(**entry, **({"error": truncate(escape(note.error), 400)} if note.error else {}))

    def _refusal(self, scope: Scope) -> Refused | None:
        headers = Headers(scope=scope)
        if self.token is not None:
            kind, _, given = headers.get("authorization", "").partition(" ")
            if scope["path"] not in _OPEN and not (kind.lower() == "bearer" and is_secret(given.strip(), self.token)):
                return Refused(401, "the token is missing or wrong; send it as the header Authorization: Bearer TOKEN")
        elif self.hosts:
            host = headers.get("host", "")
            if host.lower() not in self.hosts:
                return Refused(
                    403,
                    f"the host {truncate(escape(host), 80)} is not served; use {self.hosts[0]}, or start the service "
                    "with --token or --no-token",
                )
            if is_foreign(headers.get("origin"), headers.get("sec-fetch-site"), f"http://{host}"):
                return Refused(403, "requests from other web pages are refused; send them from a program of your own")
        return None
