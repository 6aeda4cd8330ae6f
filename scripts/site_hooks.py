"""Hooks of MkDocs, named in mkdocs.yml.

They add new pages to the menu, set the language of Chinese pages, turn formulas into MathML, and write a search index
for pages opened from disk.
"""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOG = logging.getLogger("mkdocs.hooks.cnnlab")
CHINESE = ".zh.md"
# A line break inside a Chinese sentence, where a browser would insert a space. There may be asterisks around it. After
# punctuation, code, a link or a Latin word may follow, but no digit: it may be the number of a list item.
_WRAPPED = re.compile(
    "(?:(?<=[\u3000-\u9fff\uff00-\uffef”])(\\**)\n *(\\**)(?=[\u3000-\u9fff\uff00-\uffef“])"
    "|(?<=[、。，：；！？）])\n *(?=[A-Za-z(\\[`]))"
)
_FENCE = re.compile("(^ *```.*?^ *```$)", re.DOTALL | re.MULTILINE)
# The output of pymdownx.arithmatex for a formula.
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.+?)\\[)\]]</\1>', re.DOTALL)
# Pages that mention everything rank low in the search.
_BOOSTS = {"docs/log.md": 0.3, "CHANGELOG.md": 0.3, "docs/errata.md": 0.5, "reference/": 0.7}

# A figure and its deviation, or the ends of a range, in a table row: in narrow columns, the line would break there.
_ROW = re.compile(r"^\|.*", re.MULTILINE)
_PAIR = re.compile(r"(?<=\d) (±|to) (?=\d)")


def arrange(nav: list[Any], folder: Path) -> list[Any]:
    """Return the menu `nav` of mkdocs.yml for the pages in `folder`, without pages that do not exist.

    A pattern such as docs/*.md is replaced by the pages that no line names; a pattern in .zh.md, by Chinese pages.
    """
    named = {line for line in _lines(nav) if "*" not in line}
    rest = {path.relative_to(folder).as_posix() for path in folder.rglob("*.md")} - named

    def pages(item: Any) -> list[Any]:
        if isinstance(item, dict):
            ((title, inside),) = item.items()
            if isinstance(inside, str):
                return [item] if pages(inside) else []
            entries = [page for one in inside for page in pages(one)]
            return [{title: entries}] if entries else []
        if "*" in item:
            chinese = item.endswith(CHINESE)
            return sorted(p for p in rest if Path(p).match(item) and p.endswith(CHINESE) == chinese)
        if not (folder / item).is_file():
            LOG.info("in the menu, but missing: %s", item)
            return []
        return [item]

    return [page for one in nav for page in pages(one)]


def _lines(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for inside in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from _lines(inside)


def on_config(config: Any) -> Any:
    """Complete the menu before any page is read."""
    config.nav = arrange(config.nav, Path(config.docs_dir))
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return a page's Markdown with corrected line breaks, and set its rank in the search."""
    page.meta["search"] = {"boost": next((b for start, b in _BOOSTS.items() if page.file.src_uri.startswith(start)), 1)}
    markdown = _ROW.sub(lambda row: _PAIR.sub("\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", row[0]), markdown)
    if not page.file.src_uri.endswith(CHINESE):
        return markdown
    parts = _FENCE.split(markdown)  # text, fenced code, text, ...
    parts[::2] = [_WRAPPED.sub(r"\1\2", text) for text in parts[::2]]
    return "".join(parts)


def on_page_content(output: str, **_: Any) -> str:
    """Return a page's content with its formulas as MathML, which a browser renders without a script."""
    from latex2mathml import converter

    def mathml(match: re.Match[str]) -> str:
        kind = "block" if match[1] == "div" else "inline"
        return converter.convert(" ".join(html.unescape(match[2]).split()), display=kind)

    return _FORMULA.sub(mathml, output)


def on_page_context(context: Any, page: Any, config: Any, **_: Any) -> Any:
    """Set the language of the page and of the theme's texts. Browsers choose the glyphs of characters by it."""
    config.theme["language"] = "zh" if page.file.src_uri.endswith(CHINESE) else "en"
    return context


def on_post_build(config: Any) -> None:
    """Write the search index as a script too: a page opened from disk may not read JSON."""
    folder = Path(config.site_dir) / "search"
    index = (folder / "search_index.json").read_text(encoding="utf-8")
    (folder / "search_index.js").write_text(f"var __index = {index}", encoding="utf-8")
