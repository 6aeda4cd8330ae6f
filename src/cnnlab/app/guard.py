"""Access control of the page: only a browser on this machine that knows the token, and only from the page itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cnnlab.io.http import is_foreign, is_secret

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Middleware that refuses requests without the token, from other pages, and to other hosts.

    The address that the command prints contains the token. The token is exchanged for a cookie, so that nobody copies
    it along with the address. hosts: the accepted Host headers. They exclude a name that an attacker points at this
    machine (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, token: str, hosts: Sequence[str]) -> None:
        self.app, self.token, self.hosts = app, token, hosts
        self.cookie = f"cnnlab-{hosts[0].rpartition(':')[2]}"  # with the port: all ports of a host share their cookies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request or pass it on; add the headers to each answer."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        answer = self._answer(scope) if scope["type"] == "http" else PlainTextResponse("not found", 404)
        await (answer or self.app)(scope, receive, with_headers)

    def _answer(self, scope: Scope) -> Response | None:
        """Return a refusal or the redirect that sets the cookie; None for a request to pass on."""
        headers = Headers(scope=scope)
        if headers.get("host") not in self.hosts:
            return PlainTextResponse("this host is not served", 403)
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        own = f"http://{headers['host']}"
        foreign = is_foreign(origin, site, own)
        if foreign or (scope["method"] not in ("GET", "HEAD") and origin != own):
            return PlainTextResponse("requests of other pages are refused", 403)
        if scope["method"] == "GET" and scope["path"] == "/":
            given = parse_qs(scope["query_string"].decode("ascii", "replace")).get("token", [""])[0]
            if given and is_secret(given, self.token):
                answer = RedirectResponse("/", 303)
                answer.set_cookie(self.cookie, self.token, httponly=True, samesite="strict")
                return answer
        cookies: dict[str, Any] = cookie_parser(headers.get("cookie", ""))
        if not is_secret(str(cookies.get(self.cookie, "")), self.token):
            return PlainTextResponse("open the address that `cnnlab ui` printed; it holds the token", 403)
        return None
