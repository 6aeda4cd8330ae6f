"""Find the encoding of text from elsewhere: UTF-8, UTF-16, or GBK, which Chinese Windows and Excel write.

Other encodings are refused, never guessed: a Latin-1 file may be valid GBK, too, but not everyday Chinese.
"""

from __future__ import annotations

import codecs
import os
from collections import Counter
from collections.abc import Iterable

_PIECE = 1 << 20
_EVERYDAY = 0.75  # least share of characters in GB 2312: a Chinese text has nearly all, Big5 read as GBK half

# First bytes in GBK, and the number of distinct characters that suffices. 40% of Chinese characters have a first byte
# beyond Hangul's. Only distinct characters count, since a table of two labels repeats the same few.
_FIRST_HANZI, _AFTER_HANGUL, _ENOUGH = 0xB0, 0xC9, 20


def text_encoding(content: bytes) -> str:
    """Return a codec that decodes all of `content`; utf-8-sig if there is none, for errors that name the place."""
    if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16" if _decodes([content], "utf-16") else "utf-8-sig"
    head = content[:1000]
    for first, codec in ((0, "utf-16-be"), (1, "utf-16-le")):  # without a BOM: every other byte of ASCII is zero
        other = head[1 - first :: 2]
        if 2 * head[first::2].count(0) > len(other) > 1 and 0 not in other and _decodes([content], codec):
            return codec
    if content.isascii() or _decodes([content], "utf-8"):
        return "utf-8-sig"
    return "gb18030" if is_gbk(content) else "utf-8-sig"


def is_gbk(content: bytes) -> bool:
    """Return whether `content` is GBK (GB 18030): it decodes, and mostly to everyday Chinese.

    Japanese (EUC-JP) and Korean (CP949) use the same bytes: kana have the same codes as in GBK, and Hangul has those of
    the Chinese characters whose pinyin begins with A to R.
    """
    counts: Counter[str] = Counter()
    decoder = codecs.getincrementaldecoder("gb18030")()
    try:
        for at in range(0, len(content), _PIECE):
            text = decoder.decode(content[at : at + _PIECE], at + _PIECE >= len(content))
            counts.update(c for c in text if not c.isascii())
    except UnicodeDecodeError:
        return False
    # Chinese texts use の as well.
    if any("\u3040" <= c <= "\u30ff" and c != "の" for c in counts):
        return False
    first_bytes = [first for c in counts if (first := c.encode("gb18030")[0]) >= _FIRST_HANZI]
    if len(first_bytes) >= _ENOUGH and max(first_bytes) < _AFTER_HANGUL:
        return False
    total = counts.total()
    return total > 0 and sum(n for c, n in counts.items() if _is_everyday(c)) >= _EVERYDAY * total


def name_encoding(names: Iterable[bytes]) -> str | None:
    """Return the encoding of all file names: utf-8 or gb18030; None for another one."""
    raw = [name for name in names if not name.isascii()]
    if _decodes(raw, "utf-8"):
        return "utf-8"
    return "gb18030" if _decodes(raw, "gb18030") and is_gbk(b"\n".join(raw)) else None


def readable_name(name: str) -> str:
    """Return a file name as its author wrote it, if it was GBK.

    After unpacking on another system, its bytes are not UTF-8, or became letters of DOS's code page: `╒┼╚²` for `张三`.
    """
    if name.isascii():
        return name
    raw = os.fsencode(name) if any("\ud800" <= c <= "\udfff" for c in name) else None
    # People's names contain no box-drawing characters.
    if raw is None and any("\u2500" <= c <= "\u259f" for c in name):
        try:
            raw = name.encode("cp437")
        except UnicodeEncodeError:
            return name
    codec = name_encoding([raw]) if raw is not None else None
    return raw.decode(codec) if raw is not None and codec else name


def _is_everyday(c: str) -> bool:
    try:
        return len(c.encode("gb2312")) == 2
    except UnicodeEncodeError:
        return False


def _decodes(contents: Iterable[bytes], codec: str) -> bool:
    try:
        for content in contents:
            decoder = codecs.getincrementaldecoder(codec)()
            for at in range(0, max(1, len(content)), _PIECE):
                decoder.decode(content[at : at + _PIECE], at + _PIECE >= len(content))
    except UnicodeDecodeError:
        return False
    return True
