"""The images in a request's body: a single one as is, or several as multipart/form-data (RFC 7578)."""

from __future__ import annotations

import re
from urllib.parse import unquote

from cnnlab.io.text import escape, truncate
from cnnlab.serve.settings import Refused

_PARAMETER = re.compile(r';\s*([\w!#$&+.^`|~-]+\*?)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))')
_MOST_HEADERS = 8192  # bytes of a part's headers
_MOST_PARAMETERS = 2048  # characters: the time of the pattern is quadratic in them
RAW = "image"
"""The name of an image that is sent without one."""


def images_of(content_type: str, body: bytes, most: int) -> list[tuple[str, bytes]]:
    """Return the (name, content) of each image in a body. most: images that a request may have. Raise Refused."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return _parts(_parameters(content_type).get("boundary", ""), body, most)
    if kind and kind != "application/octet-stream" and not kind.startswith("image/"):
        raise Refused(
            415,
            f"Content-Type {truncate(escape(kind), 80)} is not accepted; send an image as image/* or "
            "application/octet-stream, or several as multipart/form-data (curl: -F image=@FILE)",
        )
    if not body:
        raise Refused(400, "the request has no body; send an image")
    return [(RAW, body)]


def _parts(boundary: str, body: bytes, most: int) -> list[tuple[str, bytes]]:
    if not 1 <= len(boundary) <= 70:
        raise Refused(400, "the Content-Type multipart/form-data names no boundary")
    mark = b"--" + boundary.encode("utf-8", "surrogateescape")
    if not body.startswith(mark) and (at := body.find(b"\r\n" + mark)) >= 0:  # a preamble
        body = body[at + 2 :]
    if not body.startswith(mark):
        raise Refused(400, "the multipart body does not start with its boundary")
    found: list[tuple[str, bytes]] = []
    start, mark = len(mark), b"\r\n" + mark
    while not body.startswith(b"--", start):
        end = body.find(mark, start)
        if end < 0:
            raise Refused(400, "the multipart body is cut off: its last boundary is missing")
        if len(found) == most:
            raise Refused(413, f"the request has more than {most:,} images; send them in several requests")
        found.append(_part(body, start, end, len(found) + 1))
        start = end + len(mark)
    if not found:
        raise Refused(400, "the multipart body has no image")
    return found


def _part(body: bytes, start: int, end: int, number: int) -> tuple[str, bytes]:
    """Return the name and the content of the part between two boundaries."""
    line = body.find(b"\r\n", start, end)
    blank = body.find(b"\r\n\r\n", start, min(end, start + _MOST_HEADERS))
    if line < 0 or blank < 0 or body[start:line].strip(b" \t"):
        raise Refused(400, f"part {number} of the multipart body has no headers, or too long ones")
    headers = {}
    for header in body[line + 2 : blank].decode("utf-8", "replace").split("\r\n"):
        key, _, value = header.partition(":")
        headers[key.strip().lower()] = value.strip()
    names = _parameters(headers.get("content-disposition", ""))
    if "filename*" in names:
        name = unquote(names["filename*"].rpartition("'")[2])
    elif "filename" in names:
        name = names["filename"]
    elif headers.get("content-type", "").lower().startswith("image/"):
        name = names.get("name", "")
    else:
        raise Refused(
            400,
            f"part {number} of the multipart body is not a file; options go into the address, as in /predict?top=3",
        )
    return truncate(escape(name)) or f"{RAW} {number}", body[blank + 4 : end]


def _parameters(header: str) -> dict[str, str]:
    """Return the parameters of a header, such as {"name": "a"} of `form-data; name="a"`."""
    found = _PARAMETER.findall(header[:_MOST_PARAMETERS])
    return {key.lower(): re.sub(r'\\(["\\])', r"\1", quoted) or plain for key, quoted, plain in found}
