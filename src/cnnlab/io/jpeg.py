"""Tell whether a JPEG file holds all of its pixels.

libjpeg fills in missing pixels with grey, and Pillow does not pass on its warning. A decoder that has all pixels skips
any bytes before the end marker; one that lacks some decodes these bytes as pixels. So bytes inserted there change the
pixels of a file that was cut off, and of no other.
"""

from __future__ import annotations

import io
import os
import re
from contextlib import suppress
from typing import IO

import numpy as np
from PIL import Image

_START, _END = b"\xff\xd8", b"\xff\xd9"
_SCAN_START = b"\xff\xda"
_MARKER = re.compile(rb"\xff+([^\x00\xff])", re.S)
_SCAN, _PROGRESSIVE, _ALONE = 0xDA, 0xC2, (0x01, *range(0xD0, 0xD8))  # markers; those without a length
_ZEROS = 64  # this many zero bytes at the end of a file cannot be pixels
# With all restart markers, since a decoder that lacks whole intervals only resumes after the next one.
_NOISE = b"".join(bytes(range(1, 250, 2)) + bytes([0xFF, 0xD0 + n]) for n in range(8))


def is_cut(file: IO[bytes], image: Image.Image) -> bool:
    """Return whether a JPEG file lacks pixels, although it was decoded. image: opened from `file`, and loaded.

    A progressive file that was cut in its last scan lacks only fine detail, and counts as whole. Raise OSError.
    """
    file.seek(max(0, file.seek(0, os.SEEK_END) - _ZEROS))
    zeros = not file.read().strip(b"\0")
    file.seek(0)
    if zeros and not file.read().rstrip(b"\0").endswith(_END):  # an unfinished download
        return True
    file.seek(0)
    if image.info.get("progressive"):
        return not has_all_scans(file.read())
    # Missing pixels are mid-grey, even where Pillow has inverted the colours of CMYK.
    last = np.asarray(image.getpixel((image.width - 1, image.height - 1)))
    if last.min() < 127 or last.max() > 128:
        return False
    content = file.read()
    end = content.rfind(_END)
    if end < content.rfind(_SCAN_START):  # the end marker of a thumbnail
        return False
    pixels = _pixels(content[:end].rstrip(b"\xff") + _NOISE + content[end:])
    return pixels is not None and not np.array_equal(pixels, np.asarray(image))


def with_end_marker(content: bytes) -> bytes | None:
    """Return a JPEG file with its end marker added, if that is all it lacks; else None."""
    if not content.startswith(_START) or content.endswith(_END):
        return None
    body = content.removesuffix(b"\xff")
    # Whole if bytes after the end do not matter, but the last ones do: trailing zeros are an unfinished download.
    pixels = _pixels(body + _END)
    if pixels is None or not has_all_scans(body):
        return None
    longer, shorter = _pixels(body + _NOISE + _END), _pixels(body[:-8] + _NOISE + _END)
    whole = longer is not None and np.array_equal(longer, pixels)
    return None if not whole or (shorter is not None and np.array_equal(shorter, pixels)) else body + _END


def has_all_scans(content: bytes) -> bool:
    """Return whether a progressive JPEG file has all bits of all coefficients; True for any other JPEG."""
    lacking: dict[int, list[int]] = {}  # component -> the bits that each of its 64 coefficients lacks
    at = 2
    while (found := _MARKER.search(content, at)) is not None:
        marker, at = found[1][0], found.end()
        if marker in _ALONE:
            continue
        segment = content[at + 2 : at + int.from_bytes(content[at : at + 2])]
        if marker == _SCAN and len(segment) >= 4 and len(segment) == 4 + 2 * segment[0]:
            first, last, bits = segment[-3], segment[-2], segment[-1] & 15
            for component in segment[1:-3:2]:
                if component in lacking:
                    lacking[component][first : last + 1] = [bits] * (min(last, 63) + 1 - first)
        elif marker == _PROGRESSIVE and len(segment) >= 6:
            lacking = {component: [99] * 64 for component in segment[6::3]}
        elif marker == _END[1]:
            break
        at += len(segment) + 2
    return not any(map(any, lacking.values()))


def _pixels(content: bytes) -> np.ndarray | None:
    """Return the pixels of a JPEG file, as they are stored; None if they cannot be decoded."""
    with suppress(Exception):  # Pillow's decoders raise nearly anything for a damaged file
        return np.asarray(Image.open(io.BytesIO(content), formats=("JPEG",)))
    return None
