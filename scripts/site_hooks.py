"""What the site needs that MkDocs does not do; mkdocs.yml names this file, and MkDocs calls its functions.

A menu that takes in new pages, Chinese pages that say so, and an index for pages opened from the disk.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOG = logging.getLogger("mkdocs.hooks.cnnlab")
CHINESE = ".zh.md"
# A line that ends in Chinese goes on in the next without a space; a browser would put one there.
_WRAPPED = re.compile("(?<=[\u3000-\u9fff\uff00-\uffef”])\n *(?=[\u3000-\u9fff\uff00-\uffef“])")

# A figure and its deviation, or the two ends of a range, in a table: columns would become so narrow as to part them.
_ROW = re.compile(r"^\|.*", re.MULTILINE)
_PAIR = re.compile(r"(?<=\d) (±|to) (?=\d)")


def arrange(nav: list[Any], folder: Path) -> list[Any]:
    """The menu `nav` of mkdocs.yml for the pages in `folder`: patterns become pages, what is not there is left out.

    A pattern, as docs/*.md, stands for the pages that no other line names; for Chinese ones if it ends so itself.
    """
    named = {line for line in _lines(nav) if "*" not in line}
    rest = {path.relative_to(folder).as_posix() for path in folder.rglob("*.md")} - named

    def pages(item: Any) -> list[Any]:
        if isinstance(item, dict):
            ((title, inside),) = item.items()
            if isinstance(inside, str):
                return [item] if pages(inside) else []
            found = [page for one in inside for page in pages(one)]
            return [{title: found}] if found else []
        if "*" in item:
            chinese = item.endswith(CHINESE)
            return sorted(p for p in rest if Path(p).match(item) and p.endswith(CHINESE) == chinese)
        if not (folder / item).is_file():
            LOG.info("in the menu, but not there: %s", item)
            return []
        return [item]

    return [page for one in nav for page in pages(one)]


def _lines(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for inside in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from _lines(inside)


def on_config(config: Any) -> Any:
    """Before anything is read."""
    config.nav = arrange(config.nav, Path(config.docs_dir))
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A page's text, before it is rendered."""
    markdown = _ROW.sub(lambda row: _PAIR.sub("\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", row[0]), markdown)
    return _WRAPPED.sub("", markdown) if page.file.src_uri.endswith(CHINESE) else markdown


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """A page of the site: a browser chooses the shape of its characters by its language."""
    return output.replace('<html lang="en"', '<html lang="zh"', 1) if page.file.src_uri.endswith(CHINESE) else output


def on_post_build(config: Any) -> None:
    """All is written. A page opened from the disk may read no JSON, but may run a script."""
    folder = Path(config.site_dir) / "search"
    index = (folder / "search_index.json").read_text(encoding="utf-8")
    (folder / "search_index.js").write_text(f"var __index = {index}", encoding="utf-8")
