"""The chapter as notebooks, in English and Chinese: one for each section, and for what came before and after.

A lesson is one file, `sources/NN_name.py`, in jupytext's percent format, in which the code stands once and the prose
twice: a cell of prose says its language, `# %% [markdown] lang="en"`, and its translation follows it. A copy takes the
code and the prose of one language, so that the code cannot differ between the languages, and a change of it is one
change. Jupyter with jupytext opens a source as it is, with both languages below each other.

Tags mark what an exercise is made of: `exercise` its question, `answer` a cell to write in, `solution` what a
copy shows collapsed, or leaves out.

A notebook is JSON: cells with an id, a type, a source and some metadata. Writing those takes the twenty lines at the
end of this file; jupytext and nbformat would be two packages for every user (nbformat checks the result in the tests).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnlab.io.errors import CnnlabError, expand, reason, unknown
from cnnlab.io.files import write_atomic

__all__ = ["LANGUAGES", "Cell", "copy", "lessons", "notebook", "read", "title"]

LANGUAGES = ("en", "zh")
TAGS = ("exercise", "answer", "solution")
_SOURCES = Path(__file__).parent / "sources"
_HEAD = re.compile(r'# %%(?P<prose> \[markdown\] lang="(?P<language>[a-z]+)")?(?: tags=\["(?P<tag>[a-z]+)"\])?')
_SOLUTION = {"en": "Solution", "zh": "答案"}
# A line that ends in Chinese goes on in the next without a space; a rendered page would put one there.
_WRAPPED = re.compile("(?<=[\u3000-\u9fff\uff00-\uffef])\n(?=[\u3000-\u9fff\uff00-\uffef])")


@dataclass(frozen=True)
class Cell:
    """A cell of a lesson: code, whose language is empty, or prose in one of LANGUAGES. tag: one of TAGS, or empty."""

    text: str
    language: str = ""
    tag: str = ""


def lessons() -> list[str]:
    """The names of the lessons, in their order."""
    return sorted(path.stem for path in _SOURCES.glob("*.py"))


def title(name: str, language: str = "en") -> str:
    """A lesson's heading."""
    first = next(cell for cell in read(name) if cell.language == _checked(language))
    return first.text.partition("\n")[0].removeprefix("# ")


def read(name: str) -> list[Cell]:
    """All cells of a lesson, of both languages. Raises: CnnlabError for a name, ValueError for a bad source."""
    if name not in lessons():
        raise unknown("lesson", name, lessons())
    path = _SOURCES / f"{name}.py"
    blocks: list[tuple[re.Match[str], list[str]]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("# %%") or not blocks:
            head = _HEAD.fullmatch(line)
            if head is None or head["language"] not in (None, *LANGUAGES) or head["tag"] not in (None, *TAGS):
                raise ValueError(f"{path.name}, line {number}: {line!r} begins no cell")
            blocks.append((head, []))
        elif blocks[-1][0]["prose"] and line and not line.startswith("#"):
            raise ValueError(f"{path.name}, line {number}: {line!r} is code in a cell of prose")
        else:
            blocks[-1][1].append(line)
    found = []
    for head, lines in blocks:
        if head["prose"]:
            lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
        text = "\n".join(lines).strip("\n")
        found.append(Cell(_WRAPPED.sub("", text) if head["prose"] else text, head["language"] or "", head["tag"] or ""))
    return found


def copy(folder: str | Path, *, language: str = "en", solutions: bool = True) -> list[Path]:
    """Write all lessons into `folder` as notebooks without output: 01_classical.ipynb, ...

    language: one of LANGUAGES; solutions: with the exercises' solutions, collapsed, or without. Nothing is
    overwritten. Returns: the files. Raises: CnnlabError where one of them is there already, or cannot be written.
    """
    place = expand(folder)
    contents = {place / f"{name}.ipynb": notebook(name, language, solutions=solutions) for name in lessons()}
    for path in contents:
        if path.exists() or path.is_symlink():
            raise CnnlabError(f"{path} exists; name another folder, so that nothing in it is lost")
    try:
        place.mkdir(parents=True, exist_ok=True)
        for path, content in contents.items():
            write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise CnnlabError(f"cannot write into {place}: {reason(error)}; name another folder") from error
    return list(contents)


def notebook(name: str, language: str = "en", *, solutions: bool = True) -> dict[str, Any]:
    """A lesson as a notebook of format 4.5, in plain values."""
    chosen = [c for c in read(name) if c.language in ("", _checked(language)) and (solutions or c.tag != "solution")]
    return {
        "cells": [_as_json(cell, f"{name}-{number}") for number, cell in enumerate(chosen, 1)],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _as_json(cell: Cell, number: str) -> dict[str, Any]:
    text, metadata = cell.text, dict[str, Any]()
    if cell.tag:
        metadata["tags"] = [cell.tag]
    if cell.tag == "solution" and cell.language:  # a cell of prose cannot be collapsed, a part of its text can
        text = f"<details><summary>{_SOLUTION[cell.language]}</summary>\n\n{text}\n\n</details>"
    elif cell.tag == "solution":
        metadata["jupyter"] = {"source_hidden": True, "outputs_hidden": True}
    kind: dict[str, Any] = {"cell_type": "markdown"}
    if not cell.language:
        kind = {"cell_type": "code", "execution_count": None, "outputs": []}
    return {"id": number, "metadata": metadata, "source": text.splitlines(keepends=True), **kind}


def _checked(language: str) -> str:
    if language not in LANGUAGES:
        raise unknown("language", language, LANGUAGES)
    return language
