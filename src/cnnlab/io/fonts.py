"""Text in figures: an installed font for every script, and widths as drawn.

matplotlib's own font has Latin, Greek, Cyrillic and more, but no Chinese, Japanese or Korean. `drawable` looks for an
installed font; words that none can draw become numbers, and `report_numbers` says which.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import Any

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from cnnlab.io.text import echo, escape

# The packages to install, by the first word of a letter's Unicode name; fonts-noto-core has all other letters.
_PACKAGES = (
    (("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC", "FULLWIDTH", "HALFWIDTH"),
     "fonts-noto-cjk (Debian, Ubuntu) or google-noto-sans-cjk-fonts (Fedora)"),
    (("EMOJI",), "fonts-symbola (Debian, Ubuntu) or gdouros-symbola-fonts (Fedora)"),
    ((), "fonts-noto-core (Debian, Ubuntu) or google-noto-sans-{script}-fonts (Fedora)"),
)  # fmt: skip
_DPI = (100, 110, 144, 720)  # of PNG files, and of the exact outlines in others
# The first that is installed and has a letter draws it: simplified Chinese before the other forms of the same letters.
_PREFERRED = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Microsoft YaHei", "PingFang SC", "Hiragino Sans GB",
    "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "SimHei", "Noto Sans CJK JP", "Noto Sans CJK KR",
)  # fmt: skip
# Fonts that have a box or nothing for every letter, and bitmaps in colour, which matplotlib cannot draw.
_USELESS = ("last resort", "lastresort", "adobe blank", "emoji", "fallback")
_MATHEMATICS = ("STIX", "cm")  # matplotlib's own, with few letters

_numbers: dict[str, int] = {}  # words that no font can draw, in the order in which they came
_reported = 0  # how many of them have been printed


def drawable(text: str) -> str:
    """Return a user's text for a figure: escaped, without math mode, each line at most 150 characters long.

    Words with letters that no installed font has become numbers: [1], [2], ...
    """
    lines = (escape(line) for line in text.split("\n"))
    lines = (line if len(line) <= 150 else f"{line[:75]}…{line[-75:]}" for line in lines)
    return numbered("\n".join(lines)).replace("$", r"\$")


def numbered(text: str) -> str:
    """Return `text` with a number for each word that no installed font can draw."""
    if all(_font_with(c) is not None for c in text):
        return text
    return "\n".join(" ".join(map(_word, line.split(" "))) for line in text.split("\n"))


def report_numbers() -> None:
    """Print the words that figures show as numbers, each word once, to standard error."""
    global _reported
    new = list(_numbers.items())[_reported:]
    _reported = len(_numbers)
    if new:
        words = ", ".join(f"[{number}] is {word}" for word, number in new)
        echo(
            f"no installed font has the letters of some names; in figures {words}; {remedy(word for word, _ in new)}",
            error=True,
        )


def remedy(words: Iterable[str]) -> str:
    """Return advice on which packages to install for the letters of `words` that no installed font has."""
    packages: dict[str, None] = {}
    for character in dict.fromkeys("".join(words)):
        if _font_with(character) is None:
            kind = "EMOJI" if unicodedata.category(character) == "So" else unicodedata.name(character, "?").split()[0]
            package = next(text for scripts, text in _PACKAGES if not scripts or kind in scripts)
            packages[package.format(script=kind.lower())] = None
    return f"install a font that has them: {'; '.join(packages)}"


def use_fonts(figure: Figure) -> None:
    """Give each text of `figure` the installed fonts that its letters need, or numbers for its words."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if (named := numbered(text.get_text())) != text.get_text():
            text.set_text(named)
        if extra := _extra_fonts(text.get_text()):
            text.set_fontfamily([*text.get_fontfamily(), *extra])


@lru_cache(4096)
def width(text: str, size: float) -> float:
    """Return the width in inches of the longest line of `text`, drawn with letters of `size` points.

    In PNG files letters are whole pixels wide, so the width varies with the resolution, by a sixth for small letters.
    The largest width is returned.
    """
    font = font_manager.FontProperties(family=[*_base(), *_extra_fonts(text)], size=size)
    lines = text.split("\n")
    measured = (_renderer(d).get_text_width_height_descent(line, font, False)[0] / d for line in lines for d in _DPI)
    return float(max(measured))


def shorten(text: str, inches: float, size: float) -> str:
    """Return `text`, its middle cut to an ellipsis if it is wider than `inches`: both ends tell names apart."""
    if width(text, size) <= inches:
        return text
    low, high = 2, len(text) - 1  # characters kept
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if width(_without_middle(text, middle), size) <= inches else (low, middle - 1)
    return _without_middle(text, low)


def wrap(text: str, inches: float, size: float, most: int = 4) -> str:
    """Return `text` in lines of at most `inches`; words that are wider are shortened, as is what follows line `most`.

    Lines end at spaces, and in Chinese between any two letters.
    """
    lines = [""]
    for word in _parts(text):
        if lines[-1] and width(lines[-1] + word.rstrip(), size) > inches:
            lines.append("")
        lines[-1] += word.lstrip() if not lines[-1] else word
    lines = [shorten(line.rstrip(), inches, size) for line in lines]
    if len(lines) > most:
        lines[most - 1 :] = [shorten(" … ".join((lines[most - 1], lines[-1])), inches, size)]
    return "\n".join(lines)


def _parts(text: str) -> list[str]:
    """Return the pieces of `text` between which a line may end; each has the space that follows it."""
    parts, start = [], 0
    for i in range(1, len(text)):
        if text[i - 1] == " " or min(text[i - 1], text[i]) >= "\u2e80":  # Chinese, Japanese, Korean
            parts.append(text[start:i])
            start = i
    return [*parts, text[start:]]


def _without_middle(text: str, kept: int) -> str:
    cut = text[: (kept + 1) // 2] + "…" + text[len(text) - kept // 2 :]
    # Half an escaped dollar would start a formula.
    return cut.replace("\\…", "…").replace("…$", "…")


def _word(word: str) -> str:
    """Return `word`, or the number that stands for it; punctuation around it stays."""
    if not any(_font_with(c) is None for c in word):
        return word
    end = len(word.rstrip(",.:;!?)]，。：；"))
    start = len(word[:end]) - len(word[:end].lstrip("(["))
    inside = word[start:end]
    return f"{word[:start]}[{_numbers.setdefault(inside, len(_numbers) + 1)}]{word[end:]}"


def _extra_fonts(text: str) -> list[str]:
    """Return the installed fonts that `text` needs besides the usual one."""
    found = dict.fromkeys(_font_with(c) for c in text)
    return [name for name in found if name]


@cache
def _font_with(character: str) -> str | None:
    """Return the name of an installed font with this letter, "" for the usual font, None if there is none."""
    if character in " \n" or not character.isprintable() or any(_has(path, character) for path in _base_files()):
        return ""
    for path, name in _fonts():
        if _has(path, character):
            return name
    return None


def _base() -> Sequence[str]:
    family = mpl.rcParams["font.family"]
    return [family] if isinstance(family, str) else family


@cache
def _renderer(dpi: int) -> RendererAgg:
    return RendererAgg(1, 1, dpi)


@cache
def _base_files() -> list[str]:
    return [font_manager.findfont(font_manager.FontProperties(family=[name])) for name in _base()]


@cache
def _fonts() -> list[tuple[str, str]]:
    """Return (file, name) of each installed font, the preferred ones first. Called only when letters are missing."""
    manager = font_manager.fontManager
    known = {entry.fname for entry in manager.ttflist}
    for path in font_manager.findSystemFonts():  # matplotlib's list may be older than an installed font
        if path not in known:
            try:
                manager.addfont(path)
            except (OSError, RuntimeError, ValueError):  # damaged, or of a kind that cannot be drawn
                continue

    def order(entry: Any) -> tuple[int, bool, bool, str]:
        rank = _PREFERRED.index(entry.name) if entry.name in _PREFERRED else len(_PREFERRED)
        return rank, entry.style != "normal", "Sans" not in entry.name, entry.name

    entries = sorted((e for e in manager.ttflist if _useful(e.name)), key=order)
    return [(entry.fname, entry.name) for entry in entries]


def _useful(name: str) -> bool:
    return not any(word in name.lower() for word in _USELESS) and not name.startswith(_MATHEMATICS)


def _has(path: str, character: str) -> bool:
    return ord(character) in _letters(path)


@cache
def _letters(path: str) -> frozenset[int]:
    try:
        font = font_manager.get_font(path)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError, ValueError):
        return frozenset()
