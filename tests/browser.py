"""Debian's Chromium, driven by Playwright: one page, and a record of its requests and script errors."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run"]  # fmt: skip


class Tab:
    """A page of the browser. requests: URLs requested since the last `go`; errors: uncaught errors of its scripts."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def go(self, url: str) -> None:
        """Open a page and wait until it has loaded."""
        self.requests.clear()
        self.errors.clear()
        self.page.goto(url, wait_until="load")

    def value(self, script: str, argument: Any = None) -> Any:
        """Evaluate a script in the page. argument: passed to it, if it is a function."""
        return self.page.evaluate(script, argument)


@contextmanager
def chromium(**context: Any) -> Iterator[Tab]:
    """Start Chromium with one tab; skip the test where Chromium or Playwright is missing. context: see Playwright."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install --group dev")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=QUIET)
        yield Tab(browser.new_page(**context))
        browser.close()
