"""A payload as one self-contained HTML file.

The modules in page/ import each other; here they are joined into one script, whose hash is in the page's content
security policy. `cnnlab ui` serves the same modules one by one. The pages of a sweep and of an exported network have
their own modules in other folders, which import these as `../report/NAME.js`.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "page"
_IMPORT = re.compile(r'^import (?:\{[^}]*\} from )?"(\./|\.\./report/)(\w+)\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const|class) )", re.MULTILINE)


@cache
def script(folder: Path = PAGE) -> str:
    """Return main.js in `folder` and the modules that it imports as one script, each module after its imports."""
    done: dict[Path, str] = {}

    def visit(path: Path) -> None:
        if path in done:
            return
        text = path.read_text(encoding="utf-8")
        for place, other in _IMPORT.findall(text):
            visit((path.parent if place == "./" else PAGE) / f"{other}.js")
        done[path] = _EXPORT.sub("", _IMPORT.sub("", text))

    visit(folder / "main.js")
    return "\n" + "\n".join(done.values())


@cache
def style(folder: Path = PAGE) -> str:
    """Return the style sheet of the report, followed by that of `folder` if it is another page's."""
    files = dict.fromkeys((PAGE / "style.css", folder / "style.css"))
    return "\n" + "\n".join(path.read_text(encoding="utf-8") for path in files)


def render(payload: dict[str, Any], folder: Path = PAGE) -> str:
    """Return the HTML page of a payload, drawn by the modules in `folder`."""
    policy = (
        f"default-src 'none'; img-src data: blob:; script-src '{policy_hash(script(folder))}'; "
        f"style-src '{policy_hash(style(folder))}'; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "POLICY": html.escape(policy),
        "TITLE": html.escape(payload["title"]),
        "STYLE": style(folder),
        "PAYLOAD": inline(payload),
        "SCRIPT": script(folder),
    }
    return fill(PAGE / "index.html", parts)


def inline(payload: dict[str, Any]) -> str:
    """Return a payload as JSON for a script element, in ASCII and without characters that HTML could interpret."""
    data = json.dumps(payload, allow_nan=False, separators=(",", ":"))
    for mark in "<>&":
        data = data.replace(mark, f"\\u{ord(mark):04x}")
    return data


def fill(template: Path, parts: dict[str, str]) -> str:
    """Return a template with each `{{NAME}}` replaced by `parts[NAME]`."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template.read_text(encoding="utf-8"))


def policy_hash(text: str) -> str:
    """Return the hash by which a content security policy allows a script or style sheet."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
