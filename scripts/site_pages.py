"""Pages of the site that are generated from the code: commands, recipes, Python, and the lessons."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from latex2mathml import converter

import cnnlab
from cnnlab import competition
from cnnlab.chapter import lessons
from cnnlab.cli import app as cli
from cnnlab.cli.list import known_things
from cnnlab.recipe import SETTINGS, TYPES, Recipe
from cnnlab.recipes import RECIPES

# Code in backticks, a display formula, or an inline formula.
_FORMULA = re.compile(r"(?P<code>`[^`]*`)|\$\$(?P<block>.+?)\$\$|\$(?P<line>[^$\n]+)\$", re.DOTALL)
_NOTEBOOKS = {
    "en": "`cnnlab lessons copy FOLDER` gives all lessons as notebooks. [中文]({}.zh.md)",
    "zh": "`cnnlab lessons copy FOLDER --language zh` 把全部课程复制为笔记本。[English]({}.md)",
}
# A recipe has some fifty settings, which have a page of their own.
_MORE = {
    "Recipe": (
        "    options:",
        "      merge_init_into_class: false",
        "",
        "The settings: [recipes](recipes.md#settings).",
    )
}
_SOLUTION = {"en": "Solution", "zh": "答案"}


def commands() -> str:
    """Return the page of all commands: the text of their --help."""
    lines = ["# Commands", "", "The text of `cnnlab COMMAND --help` for every command.", ""]
    root: Any = typer.main.get_command(cli.app)
    return "\n".join([*lines, *_command(root, "cnnlab", None)]) + "\n"


def _command(command: Any, name: str, parent: Any) -> Iterator[str]:
    context: Any = typer.Context(command, parent, name)
    yield from (f"## {context.command_path}", "", *_plain(command.help or "").splitlines(), "")
    yield from ("```text", command.get_usage(context).removeprefix("Usage: "), "```", "")
    records = [record for param in command.params if (record := param.get_help_record(context)) is not None]
    if records:
        yield from ("| argument or option | |", "|---|---|")
        yield from (*(f"| `{what}` | {_cell(text)} |" for what, text in records), "")
    for sub, inner in getattr(command, "commands", {}).items():
        yield from _command(inner, sub, context)


def recipes() -> str:
    """Return the page of all named recipes, with what each changes, and of all settings."""
    plain = Recipe()
    lines = ["# Recipes and settings", "", "A recipe decides everything about a training. `cnnlab train --recipe NAME`",
             "uses one; `--set NAME=VALUE` changes a setting. All other settings have their [defaults](#settings).", "",
             "## Recipes", ""]  # fmt: skip
    for name, line in known_things("recipes")["recipes"].items():
        recipe = RECIPES[name]
        changed = [key for key in SETTINGS if key != "name" and getattr(recipe, key) != getattr(plain, key)]
        values = ", ".join(f"`{key}={getattr(recipe, key)}`" for key in changed)
        lines += [f"### {name}", "", f"{_plain(line)}.", "", f"{values or 'All defaults'}.", ""]
    lines += ["## Settings", "", "| setting | |", "|---|---|"]
    for name, field in SETTINGS.items():
        values = " or ".join(f"`{v}`" for v in field.metadata["choices"]) or TYPES[name].__name__
        lines.append(f"| `{name}` | {_cell(field.metadata['help'])} ({values}; default `{field.default}`) |")
    return "\n".join(lines) + "\n"


def python() -> str:
    """Return the page of the public names, whose docstrings mkdocstrings reads from the source."""
    lines = ["# Python", "", "The public names of `import cnnlab`. Everything else may change.", ""]
    homes = {name: f"cnnlab.{module}" for module, names in cnnlab._HOMES.items() for name in names}
    values = ("MODELS", "DATASETS", "RECIPES")  # dictionaries have no docstring of their own
    lines += ["`MODELS`, `DATASETS` and `RECIPES` are dictionaries: `cnnlab list` shows their contents.", ""]
    for name in cnnlab.__all__:
        if name in homes and name not in values:
            lines += [f"::: {homes[name]}.{name}", *_MORE.get(name, ()), ""]
    lines += ["## A competition's steps", "", "From `cnnlab.competition`.", ""]
    for name in competition.__all__:
        lines += [f"::: {getattr(competition, name).__module__}.{name}", ""]
    lines += ["## Grading", "", "From `cnnlab.competition.grade`.", ""]
    for name in ("grade", "Grades", "Grade"):
        lines += [f"::: cnnlab.competition.grade.{name}", ""]
    return "\n".join(lines)


def write_lessons(folder: Path, executed: Path | None) -> None:
    """Write all lessons into `folder`: NN_name.md and NN_name.zh.md.

    executed: a folder with their executed notebooks of any language, for the outputs of the cells.
    """
    for name in lessons.lessons():
        outputs: list[Any] = []
        if executed is not None:
            cells = json.loads((executed / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
            outputs = [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]
        for language, ending in (("en", ".md"), ("zh", ".zh.md")):
            text = lesson(lessons.read(name), language, _NOTEBOOKS[language].format(name), outputs)
            (folder / f"{name}{ending}").write_text(text, encoding="utf-8")


def lesson(cells: list[Any], language: str, note: str, outputs: list[Any]) -> str:
    """Return a lesson as a page. cells: of `lessons.read`; note: a line below the title.

    outputs: of each code cell in order, or empty. The code is the same in every language.
    """
    rest_of_outputs = iter(outputs)
    blocks: list[str] = []
    for cell in cells:
        if cell.language not in ("", language):
            continue
        lines = [_formulas(cell.text)]
        if not cell.language:
            lines = [f"~~~~python\n{cell.text}\n~~~~"] if cell.text.strip() else []
            lines += (_output(output) for output in next(rest_of_outputs, []))
        text = "\n\n".join(lines)
        if cell.tag == "solution":
            text = f'??? note "{_SOLUTION[language]}"\n\n' + "\n".join(f"    {line}" for line in text.splitlines())
        blocks += [text] if text else []
    title, _, rest = blocks[0].partition("\n")
    return "\n\n".join([title, note, rest.strip(), *blocks[1:]]) + "\n"


def _output(output: dict[str, Any]) -> str:
    """Return a cell's output in the richest form that the page can show."""
    data = {kind: "".join(text) for kind, text in output.get("data", {}).items()}
    if "image/png" in data:
        picture = base64.b64encode(base64.b64decode(data["image/png"])).decode()
        return f"![](data:image/png;base64,{picture})"
    if "text/markdown" in data:
        return data["text/markdown"]
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"~~~~text\n{text.rstrip()}\n~~~~" if text.strip() else ""


def _formulas(text: str) -> str:
    """Return `text` with its formulas as MathML, which a browser renders without a script."""

    def replace(match: re.Match[str]) -> str:
        if match["code"]:
            return match["code"]
        kind = "block" if match["block"] else "inline"
        return converter.convert(" ".join((match["block"] or match["line"]).split()), display=kind)

    return _FORMULA.sub(replace, text)


def _plain(text: str) -> str:
    return text.replace("<", "&lt;").replace("\b", "")


def _cell(text: str) -> str:
    return _plain(" ".join(text.split())).replace("|", "\\|")
