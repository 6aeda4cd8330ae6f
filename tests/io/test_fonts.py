"""Letters of all scripts are drawn with installed fonts. Words that no font covers become numbers, with a note."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure

from cnnlab.io import figures, fonts
from pictures import check_texts, pixels

CJK = "猫狗手写"


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """Forget the numbers and the fonts that were found, before and after each test."""

    def clear() -> None:
        fonts._numbers.clear()
        fonts._reported = 0
        for cached in (fonts._font_with, fonts._fonts, fonts.width):
            cached.cache_clear()

    clear()
    yield
    clear()


@pytest.fixture
def without_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide all fonts but matplotlib's own."""
    own = [e for e in font_manager.fontManager.ttflist if "mpl-data" in e.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", list)


@pytest.fixture
def with_font(without_fonts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A font with black squares as CJK letters, installed after matplotlib has listed the fonts."""
    pen = TTGlyphPen(None)
    for i, corner in enumerate(((50, 0), (50, 800), (950, 800), (950, 0))):
        (pen.lineTo if i else pen.moveTo)(corner)
    pen.closePath()
    square, name = pen.glyph(), "Test Sans CJK"
    builder = FontBuilder(1000, isTTF=True)
    glyphs = [".notdef", *(f"g{i}" for i in range(len(CJK)))]
    builder.setupGlyphOrder(glyphs)
    builder.setupCharacterMap({ord(c): g for c, g in zip(CJK, glyphs[1:], strict=True)})
    builder.setupGlyf(dict.fromkeys(glyphs, square))
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 50)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, sTypoDescender=-200, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    path = tmp_path / "cjk.ttf"
    builder.save(path)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(path)])
    return name


def test_an_installed_font_draws_cjk_letters(with_font: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fonts.drawable("狗 dog 猫") == "狗 dog 猫"
    rows = [[np.zeros((8, 8, 3), np.uint8)]] * 2
    figure = figures.samples(rows, ["猫", "手写 dog"])
    check_texts(figure)
    assert figure.axes[0].get_yticklabels()[0].get_fontfamily()[-1] == with_font
    assert capsys.readouterr().err == ""
    plain = Figure(figsize=(1, 1))
    plain.text(0.3, 0.4, "猫", size=30)
    black = (pixels(plain) == 0).all(2)
    assert black.sum() > 700, "the square of the font, not an empty box"


@pytest.mark.parametrize(
    "name", ["猫", "猫 cat", "ねこ", "고양이", "แมว", "बिल्ली", "🦖", "𠮷", "a猫b", "(猫, 狗)", "猫→狗"]
)
@pytest.mark.usefixtures("without_fonts")
def test_without_a_font_words_become_numbers(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [[np.zeros((8, 8, 3), np.uint8)]] * 2
    figure = figures.samples(rows, [name, "dog"])
    figures.png(figure)
    first, second = (label.get_text() for label in figure.axes[0].get_yticklabels())
    assert "[1]" in first
    assert second == "dog"
    line = capsys.readouterr().err
    assert "[1]" in line
    assert "fonts-" in line
    figures.png(figures.samples(rows, [name, "dog"]))
    assert capsys.readouterr().err == "", "said once"


@pytest.mark.parametrize(
    ("words", "packages"),
    [
        (["猫"], ["fonts-noto-cjk"]), (["ねこ", "고양이"], ["fonts-noto-cjk"]),
        (["ไทย"], ["fonts-noto-core", "google-noto-sans-thai-fonts"]),
        (["हिन्दी"], ["fonts-noto-core", "google-noto-sans-devanagari-fonts"]),
        (["தமிழ்"], ["fonts-noto-core"]), (["አማርኛ"], ["fonts-noto-core"]), (["ខ្មែរ"], ["fonts-noto-core"]),
        (["🦖"], ["fonts-symbola"]), (["猫 cat", "ไทย"], ["fonts-noto-cjk", "fonts-noto-core"]),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("without_fonts")
def test_the_package_that_has_the_script_is_named(words: list[str], packages: list[str]) -> None:
    text = fonts.remedy(words)
    assert all(package in text for package in packages)
    assert ("fonts-noto-cjk" in text) == ("fonts-noto-cjk" in packages)


@pytest.mark.parametrize("name", ["x" * 60, "a long name of a class " * 4, "猫" * 40])
@pytest.mark.parametrize("dpi", [100, 144])
def test_long_names_fit_at_every_resolution(name: str, dpi: int) -> None:
    figure = figures.samples([[np.zeros((8, 8, 3), np.uint8)]] * 2, [name, "dog"])
    figure.set_dpi(dpi)
    check_texts(figure)


@pytest.mark.usefixtures("without_fonts")
def test_different_names_have_different_numbers() -> None:
    names = ["猫", "狗", "猫1", "猫2", "猫 黑"]
    assert len({fonts.drawable(name) for name in names}) == len(names)
    assert fonts.drawable("猫") == fonts.drawable("猫")


@pytest.mark.parametrize("name", ["café", "Ёлка", "γάτα", "قطة", "naïve – “x”", "→ ± ×", "tab\there"])
@pytest.mark.usefixtures("without_fonts")
def test_the_usual_font_has_many_letters(name: str) -> None:
    assert "[1]" not in fonts.drawable(name)


@pytest.mark.usefixtures("without_fonts")
def test_texts_set_by_callers_are_drawn_without_missing_letters() -> None:
    """For example the legend and labels of `d2l.Animator`, which the user sets."""
    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 2], [1, 2], label="训练")
    axes.set_xlabel("周期")
    axes.set_title("精度")
    axes.legend()
    assert figures.svg(figure).count("<svg") == 1
    assert figures.png(figure)


@pytest.mark.parametrize("text", ["x" * 400, "W" * 80, "word " * 60, "手" * 100, "a$b" * 50, ""])
def test_shortened_and_wrapped_texts_fit(text: str) -> None:
    drawn = fonts.drawable(text)
    short = fonts.shorten(drawn, 2, 9)
    assert fonts.width(short, 9) <= 2
    lines = fonts.wrap(drawn, 2, 9).split("\n")
    assert len(lines) <= 4
    assert all(fonts.width(line, 9) <= 2 for line in lines)
    assert fonts.shorten("short", 2, 9) == "short"


def test_shortening_keeps_both_ends_of_a_name() -> None:
    short = fonts.shorten("runs/" + "x" * 200 + "-007", 2, 9)
    assert short.startswith("runs/")
    assert short.endswith("-007")
