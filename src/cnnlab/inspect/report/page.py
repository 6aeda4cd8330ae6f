"""A payload as one HTML file that asks for nothing from elsewhere.

The modules in page/ import each other; here they are joined into one script, which the page's content security policy
names by its hash. `cnnlab ui` serves the same modules one by one.
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
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./(\w+)\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const|class) )", re.MULTILINE)


@cache
def script() -> str:
    """Return the modules as one script: each after those that it imports, without `import` and `export`."""
    done: dict[str, str] = {}

    def visit(name: str) -> None:
        if name in done:
            return
        text = (PAGE / f"{name}.js").read_text(encoding="utf-8")
        for other in _IMPORT.findall(text):
            visit(other)
        done[name] = _EXPORT.sub("", _IMPORT.sub("", text))

    visit("main")
    return "\n" + "\n".join(done.values())


@cache
def style() -> str:
    """Return the style sheet."""
    return "\n" + (PAGE / "style.css").read_text(encoding="utf-8")


def render(payload: dict[str, Any]) -> str:
    """Return the HTML page of a payload."""
    policy = (
        f"default-src 'none'; img-src data: blob:; script-src '{_hash(script())}'; style-src '{_hash(style())}'; "
        "base-uri 'none'; form-action 'none'"
    )
    # ASCII only, and no character that HTML or a script could take for its own.
    data = json.dumps(payload, allow_nan=False, separators=(",", ":"))
    for mark in "<>&":
        data = data.replace(mark, f"\\u{ord(mark):04x}")
    parts = {
        "POLICY": html.escape(policy),
        "TITLE": html.escape(payload["title"]),
        "STYLE": style(),
        "PAYLOAD": data,
        "SCRIPT": script(),
    }
    template = (PAGE / "index.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
