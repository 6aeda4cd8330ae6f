"""Build the documentation site: collect the pages, generate those that come from the code, run MkDocs.

`scripts/docs` installs MkDocs and runs this.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def collect(pages: Path, run_lessons: bool) -> None:
    """Copy all pages of the repository into the folder `pages`; generate reference/ and lessons/."""
    import site_lessons  # here, since these imports take a second
    import site_pages

    for path in ROOT.glob("*.md"):
        shutil.copyfile(path, pages / path.name)
    shutil.copytree(ROOT / "docs", pages / "docs", ignore=shutil.ignore_patterns("theme", ".*"))
    for folder in ("results", "records"):
        shutil.copytree(ROOT / "benchmarks" / folder, pages / "benchmarks" / folder)
    for name in ("reference", "lessons"):
        (pages / name).mkdir()
    for write in (site_pages.commands, site_pages.recipes, site_pages.python):
        (pages / "reference" / f"{write.__name__}.md").write_text(write(), encoding="utf-8")
    site_lessons.write(pages / "lessons", ROOT / "build" / "lessons" if run_lessons else None)


def main() -> int:
    """Build the documentation as a site. Warnings are errors. Return MkDocs' exit code."""
    parser = argparse.ArgumentParser(prog="scripts/docs", description=(main.__doc__ or "").partition(" Return")[0])
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "site", help="folder of the site; replaced. Default: build/site"
    )
    parser.add_argument(
        "--run-lessons", action="store_true",
        help="run the lessons, so that their pages show the outputs. Takes some minutes. Outputs are kept in "
        "build/lessons; a lesson runs again when its source or the package has changed. Default: pages without outputs",
    )  # fmt: skip
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    # MkDocs empties the folder first, so it must not hold anything else.
    if out.exists() and not (out / "search" / "search_index.json").exists() and any(out.iterdir()):
        parser.error(f"{out} is not empty and not a site; name another folder")
    with tempfile.TemporaryDirectory() as folder:
        collect(Path(folder), arguments.run_lessons)
        # The theme prints a long notice about a later MkDocs unless this variable is set; ours is below 2.
        env = {**os.environ, "CNNLAB_PAGES": folder, "NO_MKDOCS_2_WARNING": "1"}
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(ROOT / "mkdocs.yml")]
        done = subprocess.run([*command, "--site-dir", str(out)], env=env)
    if done.returncode == 0:
        print(f"{out / 'index.html'}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
