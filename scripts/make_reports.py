"""Write the reports that docs/report.md shows: their pages, screenshots of them, and a table of facts about them.

python scripts/make_reports.py fashion-mnist=runs/A cifar-10=runs/B   # from runs
python scripts/make_reports.py                                        # redraw the same reports with the current page

It needs Chromium, and Playwright from the group dev.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "reports"
PICTURES = ROOT / "docs" / "images"
FACTS = PAGES / "facts.json"  # {name: the commit that it was trained with, which the page does not say}
LARGEST = 5_000_000  # bytes of a page
WIDTH, HEIGHT = 900, 940  # CSS pixels of a picture, which has twice as many pixels
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
# The pictures of each report that docs/report.md shows.
SHOWN = {"fashion-mnist": ("top", "confusion"), "cifar-10": ("cell", "images", "inside")}
_PAYLOAD = re.compile(r'<script[^>]* id="payload"[^>]*>(.*?)</script>', re.DOTALL)
_START, _END = "<!-- reports: written by `python scripts/make_reports.py` -->\n", "<!-- end of reports -->"
_CHINESE = {"validation": "验证集", "test": "测试集"}
_ROWS = {
    "report.md": ("report", "recipe", "accuracy (95%)", "measured on", "seed", "trained on", "date", "commit"),
    "report.zh.md": ("报告", "配方", "精度（95%）", "测量所用图像", "随机种子", "训练硬件", "日期", "提交"),
}


def payload(page: str) -> dict[str, Any]:
    """Return the payload of a report's page."""
    match = _PAYLOAD.search(page)
    if match is None:
        raise ValueError("no report: its payload is missing")
    return dict(json.loads(match[1]))


def write_page(name: str, run: Path) -> None:
    """Write docs/reports/NAME.html from a run's folder, on the split that the run was selected on."""
    from cnnlab import report

    made = report(run, folder=PAGES)
    if len(made.html) > LARGEST:
        raise SystemExit(
            f"the report of {run} has {len(made.html):,} bytes; at most {LARGEST:,} are meant for the site"
        )
    PAGES.mkdir(exist_ok=True)
    made.save(PAGES / f"{name}.html", force=True)


def table(page: str) -> str:
    """Return the table of the reports for docs/`page`, one column each, so that it fits on a narrow screen."""
    chinese = page.endswith(".zh.md")
    columns = [_ROWS[page]]
    for name, commit in json.loads(FACTS.read_text(encoding="utf-8")).items():
        run = payload((PAGES / f"{name}.html").read_text(encoding="utf-8"))["runs"][0]
        e, environment = run["evaluation"], dict(run["environment"])
        low, high = e["intervals"]["accuracy"]
        n, split, threads = f"{e['images']:,}", e["split"], environment["threads"]
        measured = f"{_CHINESE[split]} {n} 幅" if chinese else f"{n} {split} images"
        used = f"{threads} 个线程" if chinese else "1 thread" if threads == "1" else f"{threads} threads"
        columns.append((
            f"[{name}](reports/{name}.html)", f"`{run['recipe']}`", f"{e['accuracy']:.4f} ({low:.3f}–{high:.3f})",
            measured, str(run["seed"]), f"{environment['processor']} ({environment['cpu_capability']}), {used}",
            environment["date"][:10], f"`{commit}`",
        ))  # fmt: skip
    head, *rows = (f"| {' | '.join(row)} |" for row in zip(*columns, strict=True))
    return "\n".join([head, "|---" * len(columns) + "|", *rows]) + "\n"


def write_tables() -> None:
    """Write the tables into the pages of docs/."""
    for name in _ROWS:
        file = ROOT / "docs" / name
        before, start, rest = file.read_text(encoding="utf-8").partition(_START)
        file.write_text(before + start + table(name) + _END + rest.partition(_END)[2], encoding="utf-8")


def take_pictures(name: str) -> None:
    """Write docs/images/report-NAME-PART-light.png and -dark.png for each shown part of a page."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        for scheme in SCHEMES:
            tab = browser.new_page(
                viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=2, color_scheme=scheme, locale="en-US",
                reduced_motion="reduce",
            )  # fmt: skip
            tab.goto((PAGES / f"{name}.html").as_uri())
            for part in SHOWN[name]:
                _save(_picture(tab, part), PICTURES / f"report-{name}-{part}-{scheme}.png")
            tab.close()
        browser.close()


def _picture(tab: Any, part: str) -> bytes:
    """Return a screenshot of the top, of the images of the most frequent mistake (cell), or of the section `part`."""
    if part == "top":  # below the toolbar
        y = tab.evaluate("document.querySelector('.kicker').getBoundingClientRect().top + scrollY - 28")
        clip = {"x": 0, "y": y, "width": WIDTH, "height": HEIGHT}
        return bytes(tab.screenshot(full_page=True, clip=clip))
    tab.evaluate("id => document.querySelector(`#${id} h2`).scrollIntoView()", "confusion" if part == "cell" else part)
    if part == "cell":
        tab.locator(".pair").first.click()
    png = bytes(tab.screenshot())
    tab.keyboard.press("Escape")
    return png


def _save(png: bytes, file: Path) -> None:
    """Write a screenshot with 256 colours: a third of the bytes, with no visible difference."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as picture:
        picture.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
            file, optimize=True
        )


def main() -> None:
    """Write pages, pictures and tables of the named runs; without any, of the existing pages."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("runs", nargs="*", metavar="NAME=RUN", help="name of the page, and the folder of a run")
    parser.add_argument("--commit", help="the commit that the runs were trained with. Default: HEAD")
    arguments = parser.parse_args()
    facts = json.loads(FACTS.read_text(encoding="utf-8")) if FACTS.exists() else {}
    head = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    named = dict(one.partition("=")[::2] for one in arguments.runs)
    if unknown := named.keys() - SHOWN.keys():
        parser.error(f"{', '.join(unknown)}: not a report of docs/report.md, which are {', '.join(SHOWN)}")
    for name, run in named.items():
        write_page(name, Path(run))
        facts[name] = (
            arguments.commit or subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()
        )
        FACTS.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if not named:
        from cnnlab.inspect.report.page import render

        for name in facts:
            file = PAGES / f"{name}.html"
            file.write_text(render(payload(file.read_text(encoding="utf-8"))), encoding="utf-8")
    for name in named or facts:
        take_pictures(name)
    write_tables()


if __name__ == "__main__":
    main()
