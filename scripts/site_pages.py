"""Pages of the site that are generated from the code: commands, recipes, Python."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

import cnnlab
from cnnlab import competition
from cnnlab.cli import app as cli
from cnnlab.cli.list import known_things
from cnnlab.recipe import SETTINGS, TYPES, Recipe
from cnnlab.recipes import RECIPES

# A recipe has some fifty settings, which have their own page.
_MORE = {
    "Recipe": (
        "    options:",
        "      merge_init_into_class: false",
        "",
        "The settings: [recipes](recipes.md#settings).",
    )
}


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
    """Return the page of all named recipes, with the settings that each changes, and of all settings."""
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
    values = ("MODELS", "DATASETS", "RECIPES")  # dictionaries have no docstrings
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


def _plain(text: str) -> str:
    return text.replace("<", "&lt;").replace("\b", "")


def _cell(text: str) -> str:
    return _plain(" ".join(text.split())).replace("|", "\\|")
