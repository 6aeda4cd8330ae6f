"""The page of a sweep, drawn by the JavaScript modules in page/ and those of the report."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cnnlab import __version__
from cnnlab.inspect.report.page import render
from cnnlab.inspect.report.payload import plain
from cnnlab.io.text import escape
from cnnlab.sweep.definition import Range
from cnnlab.sweep.results import FORMAT, SweepResult

_PAGE = Path(__file__).parent / "page"


def sweep_page(result: SweepResult) -> str:
    """Return the page of a sweep as one self-contained HTML file."""
    sweep, best = result.sweep, result.best
    base = sweep.base
    command = ["cnnlab", "train", "--recipe", sweep.recipe_file.name]
    payload: dict[str, Any] = {
        **result.to_dict(),
        "format": FORMAT,
        "title": f"{escape(sweep.name)} · cnnlab",
        "version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="minutes"),
        "data": base.data,
        "base": base.name.partition(", ")[0],
        "model": None if "model" in sweep.search else base.model,
        "search": [
            {"name": name, "low": space.low, "high": space.high, "log": space.log, "step": space.step}
            if isinstance(space, Range)
            else {"name": name, "choices": list(space.values)}
            for name, space in sweep.search.items()
        ],
        "importance": list(result.importance.items()),
        "command": shlex.join(command) if best is not None else None,
    }
    del payload["recipe"]
    return render(plain(payload), _PAGE)
