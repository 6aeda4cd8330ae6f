"""The chapter as notebooks, in English and Chinese: one per section, and some on earlier and later ideas.

A lesson is one file, `sources/NN_name.py`, in jupytext's percent format. Code is written once, prose twice: a cell
`# %% [markdown] lang="en"` is followed by its Chinese version. A copy has the code and the prose of one language, so
the code of the two languages cannot differ. Jupyter with jupytext opens a source as it is.

Tags mark the parts of an exercise: `exercise` is the question, `answer` a cell to write in, and `solution` cells are
collapsed in a copy, or left out.

Notebooks are written by a few functions of this module, without nbformat or jupytext, to save every user two packages.
The tests check the result with nbformat.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from cnnlab.chapter.lessons.committed import seeds_table
from cnnlab.io.errors import CnnlabError, expand, reason, unknown
from cnnlab.io.files import write_atomic

__all__ = ["LANGUAGES", "Cell", "copy", "lessons", "notebook", "read", "title"]

LANGUAGES = ("en", "zh")
TAGS = ("exercise", "answer", "solution")
_SOURCES = Path(__file__).parent / "sources"
_HEAD = re.compile(r'# %%(?P<prose> \[markdown\] lang="(?P<language>[a-z]+)")?(?: tags=\["(?P<tag>[a-z]+)"\])?')
_SOLUTION = {"en": "Solution", "zh": "答案"}
# Lines of Chinese are joined here: Markdown would put a space at the line break.
_WRAPPED = re.compile("(?<=[\u3000-\u9fff\uff00-\uffef])\n(?=[\u3000-\u9fff\uff00-\uffef])")


@dataclass(frozen=True)
class Cell:
    """A cell of a lesson. language: one of LANGUAGES, "" for code; tag: one of TAGS, or ""."""

    text: str
    language: str = ""
    tag: str = ""


def lessons() -> list[str]:
    """Return the names of the lessons, in order."""
    return sorted(path.stem for path in _SOURCES.glob("*.py"))


def title(name: str, language: str = "en") -> str:
    """Return a lesson's heading."""
    first = next(cell for cell in read(name) if cell.language == _checked(language))
    return first.text.partition("\n")[0].removeprefix("# ")


def read(name: str) -> list[Cell]:
    """Return all cells, of both languages. Raise CnnlabError for an unknown name, ValueError for an invalid source."""
    if name not in lessons():
        raise unknown("lesson", name, lessons())
    path = _SOURCES / f"{name}.py"
    blocks: list[tuple[re.Match[str], list[str]]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("# %%") or not blocks:
            head = _HEAD.fullmatch(line)
            if head is None or head["language"] not in (None, *LANGUAGES) or head["tag"] not in (None, *TAGS):
                raise ValueError(f"{path.name}, line {number}: {line!r} does not start a cell")
            blocks.append((head, []))
        elif blocks[-1][0]["prose"] and line and not line.startswith("#"):
            raise ValueError(f"{path.name}, line {number}: {line!r} is code in a Markdown cell")
        else:
            blocks[-1][1].append(line)
    cells = []
    for head, lines in blocks:
        if head["prose"]:
            lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
        text = "\n".join(lines).strip("\n")
        cells.append(Cell(_WRAPPED.sub("", text) if head["prose"] else text, head["language"] or "", head["tag"] or ""))
    return cells


def copy(folder: str | Path, *, language: str = "en", solutions: bool = True) -> list[Path]:
    """Write all lessons into `folder` as notebooks without output: 01_classical.ipynb, ...

    language: one of LANGUAGES. solutions: include the solutions, collapsed. Return the files. Raise CnnlabError if one
    of them already exists (nothing is overwritten), or if they cannot be written.
    """
    target = expand(folder)
    contents = {target / f"{name}.ipynb": notebook(name, language, solutions=solutions) for name in lessons()}
    for path in contents:
        if path.exists() or path.is_symlink():
            raise CnnlabError(f"{path} exists; name another folder")
    try:
        target.mkdir(parents=True, exist_ok=True)
        for path, content in contents.items():
            write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise CnnlabError(f"cannot write into {target}: {reason(error)}; name another folder") from error
    return list(contents)


def notebook(name: str, language: str = "en", *, solutions: bool = True) -> dict[str, Any]:
    """Return a lesson as a notebook of format 4.5, in plain values. A solution becomes one collapsed Markdown cell."""
    chosen = [c for c in read(name) if c.language in ("", _checked(language)) and (solutions or c.tag != "solution")]
    return {
        "cells": [_as_json(cell, f"{name}-{number}") for number, cell in enumerate(_collapsed(chosen, language), 1)],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _collapsed(cells: list[Cell], language: str) -> Iterator[Cell]:
    """Yield the cells, with all cells of a solution joined into one Markdown cell.

    A hidden code cell would be shown in full by an export to HTML, and by most programs other than Jupyter.
    """
    for is_solution, group in groupby(cells, key=lambda cell: cell.tag == "solution"):
        if is_solution:
            text = "\n\n".join(map(_shown, group))
            text = f"<details><summary>{_SOLUTION[language]}</summary>\n\n{text}\n\n</details>"
            yield Cell(text, language, "solution")
        else:
            yield from group


def _shown(cell: Cell) -> str:
    """Return a cell of a solution as Markdown. A call of `show.seeds` becomes its table."""
    if cell.language:
        return cell.text
    code = cell.text.strip()
    if not re.fullmatch(r"show\.seeds\(.*\)", code):
        return f"```python\n{code}\n```"
    call = ast.parse(code, mode="eval").body
    assert isinstance(call, ast.Call)
    return seeds_table(
        *map(ast.literal_eval, call.args), **{str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    )  # fmt: skip


def _as_json(cell: Cell, number: str) -> dict[str, Any]:
    kind: dict[str, Any] = {"cell_type": "markdown"}
    if not cell.language:
        kind = {"cell_type": "code", "execution_count": None, "outputs": []}
    metadata = {"tags": [cell.tag]} if cell.tag else {}
    return {"id": number, "metadata": metadata, "source": cell.text.splitlines(keepends=True), **kind}


def _checked(language: str) -> str:
    if language not in LANGUAGES:
        raise unknown("language", language, LANGUAGES)
    return language
