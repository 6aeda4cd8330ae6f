"""Drop an image file's metadata, for files whose pixels are sound and whose metadata Pillow refuses to read."""

from __future__ import annotations

import struct

# Chunks and segments that pixels depend on: palette, transparency, and Adobe's marker, which says how a JPEG's colours
# are encoded.
_PNG = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_WEBP_METADATA = (b"EXIF", b"XMP ", b"ICCP")
_ADOBE = 14  # bytes of a whole Adobe marker, with its length
_APP0, _APP14, _APP15, _COMMENT, _SCAN = 0xE0, 0xEE, 0xEF, 0xFE, 0xDA


def without_metadata(content: bytes, *, keep_exif: bool = False) -> bytes | None:
    """Return a PNG, JPEG or WebP file without texts, colour profiles and EXIF; None for anything else.

    keep_exif: keep EXIF, which holds the orientation.
    """
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(content, keep_exif)
    if content.startswith(b"\xff\xd8"):
        return _jpeg(content, keep_exif)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return _webp(content, keep_exif)
    return None


def _png(content: bytes, keep_exif: bool) -> bytes:
    kept = (*_PNG, b"eXIf") if keep_exif else _PNG
    out, at = [content[:8]], 8
    while at + 8 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        if content[at + 4 : at + 8] in kept:
            out.append(content[at : at + 12 + length])
        at += 12 + length
    return b"".join(out)


def _jpeg(content: bytes, keep_exif: bool) -> bytes:
    out, at = [content[:2]], 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker, (length,) = content[at + 1], struct.unpack_from(">H", content, at + 2)
        if marker == _SCAN:
            break
        # A decoder ignores an Adobe marker that is too short, but Pillow refuses the file.
        colours = marker == _APP14 and length >= _ADOBE
        metadata = marker == _COMMENT or (_APP0 <= marker <= _APP15 and not colours)
        if not metadata or (keep_exif and content[at + 4 : at + 8] == b"Exif"):
            out.append(content[at : at + 2 + length])
        at += 2 + length
    return b"".join([*out, content[at:]])


def _webp(content: bytes, keep_exif: bool) -> bytes:
    out, at = [], 12
    while at + 8 <= len(content):
        kind, length = struct.unpack_from("<4sI", content, at)
        end = at + 8 + length + length % 2
        chunk = content[at:end]
        if kind == b"VP8X" and len(chunk) >= 9:
            # The flags say which metadata follow: profile 0x20, EXIF 0x08, XMP 0x04.
            chunk = chunk[:8] + bytes([chunk[8] & ~(0x24 if keep_exif else 0x2C)]) + chunk[9:]
        if kind not in _WEBP_METADATA or (keep_exif and kind == b"EXIF"):
            out.append(chunk)
        at = end
    body = b"WEBP" + b"".join(out)
    return b"RIFF" + struct.pack("<I", len(body)) + body
