"""Shared by both servers, `cnnlab ui` and `cnnlab serve`: the listening socket, and checks of who may talk to it."""

from __future__ import annotations

import hmac
import ipaddress
import os
import socket

from cnnlab.io.errors import CnnlabError, reason


def listen(host: str, port: int) -> socket.socket:
    """Return a socket bound to `host` and `port`; port 0 takes a free one. Raise CnnlabError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise CnnlabError(f"--host {host}: {reason(error)}; give a name or an address of this machine") from error
    listener = socket.socket(family, kind, protocol)
    if os.name != "nt":  # on Windows this would let two servers share a port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise CnnlabError(
            f"port {port} of {host} cannot be used: {reason(error)}; choose another with --port"
        ) from error
    return listener


def is_loopback(listener: socket.socket) -> bool:
    """Return whether only this machine can reach a bound socket."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def host_in_url(host: str) -> str:
    """Return a host as URLs write it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def host_headers(port: int, *names: str) -> tuple[str, ...]:
    """Return the valid Host headers of requests to `names` at `port`. Clients leave out HTTP's default port."""
    return (*(f"{name}:{port}" for name in names), *(names if port == 80 else ()))


def is_foreign(origin: str | None, site: str | None, own: str) -> bool:
    """Return whether a request's Origin and Sec-Fetch-Site headers show a page of another origin than `own`."""
    return site not in (None, "same-origin", "none") or origin not in (None, own)


def is_secret(given: str, secret: str) -> bool:
    """Return whether a text is the secret, comparing in constant time."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), secret.encode())
