"""Make the documentation's site: collect the pages, write those that the code itself knows best, run MkDocs.

`scripts/docs` runs this where it can be sure that MkDocs is installed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import cnnlab
from cnnlab import cli, competition, tables
from cnnlab.recipe import SETTINGS, TYPES, Recipe
from cnnlab.recipes import RECIPES

ROOT = Path(__file__).resolve().parent.parent


def collect(pages: Path) -> None:
    """Lay out all pages in the folder `pages` as they lie in the repository; those of reference/ are written."""
    for path in ROOT.glob("README*.md"):
        shutil.copyfile(path, pages / path.name)
    shutil.copytree(ROOT / "docs", pages / "docs", ignore=shutil.ignore_patterns("theme", ".*"))
    shutil.copytree(ROOT / "benchmarks" / "results", pages / "benchmarks" / "results")
    reference = pages / "reference"
    reference.mkdir()
    for name, text in (("commands", commands()), ("recipes", recipes()), ("python", python())):
        (reference / f"{name}.md").write_text(text, encoding="utf-8")


def commands() -> str:
    """Every command, as its --help says it."""
    lines = ["# Commands", "", "What `cnnlab COMMAND --help` says, all on one page.", ""]
    root: Any = typer.main.get_command(cli.app)
    return "\n".join([*lines, *_command(root, "cnnlab", None)]) + "\n"


def _command(command: Any, name: str, parent: Any) -> Iterator[str]:
    context: Any = typer.Context(command, parent, name)
    yield from (f"## {context.command_path}", "", *_plain(command.help or "").splitlines(), "")
    yield from ("```text", command.get_usage(context).removeprefix("Usage: "), "```", "")
    records = [record for param in command.params if (record := param.get_help_record(context)) is not None]
    if records:
        yield from ("| | |", "|---|---|", *(f"| `{what}` | {_cell(text)} |" for what, text in records), "")
    for sub, inner in getattr(command, "commands", {}).items():
        yield from _command(inner, sub, context)


def recipes() -> str:
    """Every named recipe with what it changes, and every setting."""
    plain = Recipe()
    lines = ["# Recipes and settings", "", "A recipe decides everything about a training. `cnnlab train --recipe NAME`",
             "takes one; `--set NAME=VALUE` changes a setting. What is not named has its default.", "",
             "| recipe | | settings |", "|---|---|---|"]  # fmt: skip
    for name, line in tables.known_things("recipes")["recipes"].items():
        recipe = RECIPES[name]
        changed = [key for key in SETTINGS if key != "name" and getattr(recipe, key) != getattr(plain, key)]
        values = ", ".join(f"`{key}={getattr(recipe, key)}`" for key in changed)
        lines.append(f"| `{name}` | {_cell(line)} | {values} |")
    lines += ["", "## Settings", "", "| setting | default | values | |", "|---|---|---|---|"]
    for name, field in SETTINGS.items():
        values = ", ".join(f"`{v}`" for v in field.metadata["choices"]) or TYPES[name].__name__
        lines.append(f"| `{name}` | `{field.default}` | {values} | {_cell(field.metadata['help'])} |")
    return "\n".join(lines) + "\n"


def python() -> str:
    """The public names, whose docstrings mkdocstrings takes from the source."""
    lines = ["# Python", "", "All that is public: `import cnnlab` has it, at once; the rest may change.", ""]
    homes = {name: f"cnnlab.{module}" for module, names in cnnlab._HOMES.items() for name in names}
    values = ("MODELS", "DATASETS", "RECIPES")  # dictionaries have no docstring of their own
    lines += ["`MODELS`, `DATASETS` and `RECIPES` are dictionaries: `cnnlab list` shows what they hold.", ""]
    for name in cnnlab.__all__:
        if name in homes and name not in values:
            lines += [f"::: {homes[name]}.{name}", ""]
    lines += ["## A competition's steps", "", "From `cnnlab.competition`.", ""]
    for name in competition.__all__:
        lines += [f"::: {getattr(competition, name).__module__}.{name}", ""]
    lines += ["## Grading", "", "From `cnnlab.grade`.", ""]
    for name in ("grade", "Grades", "Grade"):
        lines += [f"::: cnnlab.grade.{name}", ""]
    return "\n".join(lines)


def _plain(text: str) -> str:
    return text.replace("<", "&lt;").replace("\b", "")


def _cell(text: str) -> str:
    return _plain(" ".join(text.split())).replace("|", "\\|")


def main() -> int:
    """Build the site into --out, strictly; returns MkDocs' exit code."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site", help="folder of the site; replaced")
    out = parser.parse_args().out.absolute()
    # MkDocs empties the folder first.
    if out.exists() and not (out / "search" / "search_index.json").exists() and any(out.iterdir()):
        parser.error(f"{out} holds something else; name another folder")
    with tempfile.TemporaryDirectory() as folder:
        collect(Path(folder))
        # The theme prints a long notice about a later MkDocs unless it is told that we know; ours is below 2.
        env = {**os.environ, "CNNLAB_PAGES": folder, "NO_MKDOCS_2_WARNING": "1"}
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(ROOT / "mkdocs.yml")]
        done = subprocess.run([*command, "--site-dir", str(out)], env=env)
    if done.returncode == 0:
        print(f"{out / 'index.html'}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
