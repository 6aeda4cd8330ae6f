"""Build the documentation's site: collect the pages, generate those of the code, run MkDocs.

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


def collect(pages: Path, executed: Path | None) -> None:
    """Copy all pages of the repository into the folder `pages`; generate reference/ and lessons/."""
    import site_pages  # takes a second

    for path in ROOT.glob("*.md"):
        shutil.copyfile(path, pages / path.name)
    shutil.copytree(ROOT / "docs", pages / "docs", ignore=shutil.ignore_patterns("theme", ".*"))
    shutil.copytree(ROOT / "benchmarks" / "results", pages / "benchmarks" / "results")
    for name in ("reference", "lessons"):
        (pages / name).mkdir()
    for write in (site_pages.commands, site_pages.recipes, site_pages.python):
        (pages / "reference" / f"{write.__name__}.md").write_text(write(), encoding="utf-8")
    site_pages.write_lessons(pages / "lessons", executed)


def main() -> int:
    """Build the site into --out, warnings being errors. Return MkDocs' exit code."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site", help="folder of the site; replaced")
    parser.add_argument("--lessons", type=Path, help="folder of the lessons' notebooks after they have run")
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    # MkDocs empties the folder first.
    if out.exists() and not (out / "search" / "search_index.json").exists() and any(out.iterdir()):
        parser.error(f"{out} is not empty and not a site; name another folder")
    with tempfile.TemporaryDirectory() as folder:
        collect(Path(folder), arguments.lessons)
        # The theme prints a long notice about a later MkDocs unless this variable is set; ours is below 2.
        env = {**os.environ, "CNNLAB_PAGES": folder, "NO_MKDOCS_2_WARNING": "1"}
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(ROOT / "mkdocs.yml")]
        done = subprocess.run([*command, "--site-dir", str(out)], env=env)
    if done.returncode == 0:
        print(f"{out / 'index.html'}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
