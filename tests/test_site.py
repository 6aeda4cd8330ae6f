"""The documentation's site: it builds without a warning, its links hold, and viewing it asks no other host."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import cnnlab as package
from cnnlab.recipe import SETTINGS
from cnnlab.recipes import RECIPES

ROOT = Path(__file__).resolve().parent.parent
MAKE = ROOT / "scripts" / "make_site.py"
pytestmark = pytest.mark.slow

# What a browser fetches without being asked; of <link> all but those kinds that only tell where something is.
FETCHED = {"src", "srcset", "data", "poster", "background", "xlink:href", "action", "formaction", "manifest", "ping"}
TELLING = {"canonical", "author", "license", "alternate", "help", "next", "prev", "search", "edit"}
OUTSIDE = re.compile(r"\s*([a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
IN_STYLE = re.compile(r"""(?:url\(\s*|@import\s+(?!url))['"]?([^'")\s]+)""")


class Page(HTMLParser):
    """fetches: addresses that the page makes a browser fetch; links: those that a reader may follow; ids; policy."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetches: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.policy = ""
        self._style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self._style = tag == "style"
        self.ids.add(found.get("id", ""))
        for name, value in found.items():
            if name == "srcset":
                self.fetches += [part.split()[0] for part in value.split(",") if part.strip()]
            elif name in FETCHED or (name == "href" and tag not in ("a", "area", "link", "base")):
                self.fetches.append(value)
            elif name == "style":
                self.fetches += IN_STYLE.findall(value)
        if tag == "a":
            self.links.append(found.get("href", ""))
        if tag == "link" and not set(found.get("rel", "").split()) & TELLING:
            self.fetches.append(found.get("href", ""))
        if tag == "base":
            self.fetches.append(found.get("href", ""))
        if found.get("http-equiv", "").lower() == "refresh":
            self.fetches.append(found.get("content", "").partition("=")[2])
        if found.get("http-equiv", "").lower() == "content-security-policy":
            self.policy = found.get("content", "")

    def handle_data(self, data: str) -> None:
        if self._style:
            self.fetches += IN_STYLE.findall(data)


def outside(addresses: list[str]) -> list[str]:
    return [address for address in addresses if OUTSIDE.match(address)]


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://a.example/x.js"></script>',
        '<script src="//a.example/x.js"></script>',
        '<link rel="stylesheet" href="https://a.example/x.css">',
        '<link rel=preconnect href=" HTTPS://a.example">',
        '<img src="http://a.example/x.png">',
        '<img srcset="a.png 1x, https://a.example/x.png 2x">',
        '<p style="background: url(https://a.example/x.png)">',
        "<style>@import 'https://a.example/x.css';</style>",
        "<style>@import url(https://a.example/x.css);</style>",
        "<style>@font-face { src: url( '//a.example/x.woff2' ) }</style>",
        '<svg><use href="https://a.example/x.svg#a"/></svg>',
        '<iframe src="https://a.example"></iframe>',
        '<object data="https://a.example"></object>',
        '<meta http-equiv="refresh" content="0; url=https://a.example">',
        '<base href="https://a.example">',
        '<form action="https://a.example">',
    ],
)
def test_the_check_finds_outside_hosts(text: str) -> None:
    assert len(outside(Page(text).fetches)) == 1


def test_the_check_lets_the_rest_be() -> None:
    page = Page(
        '<a href="https://a.example">x</a><img src="x.png"><img src="data:image/svg+xml,//x"><script>//x</script>'
        '<link rel="canonical" href="https://a.example"><style>p { background: url("data:image/png;base64,//8=") }</style>'
    )
    assert outside(page.fetches) == []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers.python"):
        if importlib.util.find_spec(name.partition(".")[0]) is None or importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install --group docs")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, str(MAKE), "--out", str(out)], capture_output=True, text=True, timeout=300,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "warning" not in said.lower(), said
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {p.relative_to(site).as_posix(): Page(p.read_text(encoding="utf-8")) for p in site.rglob("*.html")}


def test_every_page_of_the_repository_is_there(site: Path) -> None:
    for path in (*ROOT.glob("README*.md"), *ROOT.glob("docs/*.md")):
        name = path.relative_to(ROOT).with_suffix(".html").as_posix().replace("README.html", "index.html")
        assert (site / name).is_file(), name
    assert not (site / "docs" / "theme").exists()


def test_nothing_comes_from_another_host(site: Path, pages: dict[str, Page]) -> None:
    assert len(pages) > 10
    for name, page in pages.items():
        assert outside(page.fetches) == [], name
        # scripts could ask at run time: the browser is told to refuse
        assert page.policy.startswith("default-src 'self' "), name
        assert not re.search(r"https?:|\*", page.policy), name
        assert page.fetches, name
    styles = list(site.rglob("*.css"))
    assert styles
    for path in styles:
        assert outside(IN_STYLE.findall(path.read_text(encoding="utf-8"))) == [], path


def test_links_within_the_site_hold(site: Path, pages: dict[str, Page]) -> None:
    count = 0
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if name == "404.html" or not link or parts.scheme or parts.netloc:  # 404: from the server's root
                continue
            target = ((site / name).parent / unquote(parts.path)).resolve() if parts.path else (site / name)
            if target.is_dir():
                target /= "index.html"
            assert target.is_file(), (name, link)
            assert target.is_relative_to(site.resolve())
            if parts.fragment and target.suffix == ".html" and not parts.fragment.startswith("__"):
                other = pages[target.relative_to(site.resolve()).as_posix()]
                assert unquote(parts.fragment) in other.ids, (name, link)
            count += 1
    assert count > 200


def test_reference_pages_name_everything(site: Path) -> None:
    commands, recipes, python = (
        re.sub("<[^>]+>", "", (site / "reference" / f"{name}.html").read_text(encoding="utf-8"))
        for name in ("commands", "recipes", "python")
    )
    for name in ("cnnlab train", "cnnlab kaggle submit", "cnnlab grade", "cnnlab list", "--skip-bad", "--roster"):
        assert name in commands, name
    for name in (*RECIPES, *SETTINGS):
        assert name in recipes, name
    for name in set(package.__all__) - {"__version__"}:
        assert name in python, name
    assert "Go on with an interrupted run" in commands


def test_both_languages_can_be_searched(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    texts = {entry["location"]: entry["title"] + entry["text"] for entry in index["docs"]}
    assert any("竞赛" in text for text in texts.values())
    assert any("evaluate_run" in text for text in texts.values())
    assert index["config"]["pipeline"] == ["stemmer", "stopWordFilter"]
    words = re.split(index["config"]["separator"], "手写数字, a LeNet-5 net")
    assert [w for w in words if w] == [*"手写数字", "a", "LeNet", "5", "net"]


def test_a_folder_with_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    command = [sys.executable, str(MAKE), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "holds something else" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "years"
