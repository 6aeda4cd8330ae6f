"""An exported network as a page that classifies in the browser: a folder for any static server, or one HTML file."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import io
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from cnnlab import __version__
from cnnlab.export import runtime_js
from cnnlab.export.runtime_js import WebRuntime
from cnnlab.inspect.filters import filter_columns, filter_pixels
from cnnlab.inspect.layers import first_convolution
from cnnlab.inspect.report.page import PAGE as REPORT
from cnnlab.inspect.report.page import fill, inline, policy_hash, script
from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.files import write_atomic
from cnnlab.io.text import escape
from cnnlab.models.airbench import Whitening

PAGE = Path(__file__).parent / "page"
_MARK = "cnnlab export --to web"
# Browsers do not run the module scripts of a page that is opened as a file, so only HTML can say so.
_WAITING = (
    "<main><p>Loading …</p><p>If this text stays, the page was opened as a file. Serve its folder, for example with "
    "<code>python -m http.server</code>, or export the run with <code>--single-file</code>.</p>"
    '<p lang="zh">如果一直停在这里，说明网页是作为文件打开的。'
    "请用 <code>python -m http.server</code> 等方式提供它的文件夹，或者用 <code>--single-file</code> 导出。</p></main>"
)
LARGEST_FILE = 60_000_000
"""Most bytes of a self-contained page: larger ones open slowly, or not at all on a phone."""


@dataclass(frozen=True)
class WebPage:
    """What a page shows and runs.

    network: the bytes of an ONNX file with the input `pixels`; description: the JSON in its metadata.
    filters: see `filters_of`. checked: split, images, accuracy, difference and changed (classes) from the comparison
    with PyTorch. level: the mean of the training images, 0 to 1.
    """

    network: bytes
    description: str
    filters: dict[str, Any] | None = None
    checked: dict[str, Any] | None = None
    level: float = 0.0

    def payload(self) -> dict[str, Any]:
        """Return the data that the page's modules draw."""
        about = json.loads(self.description)
        p = about["preprocessing"]
        how = {key: p[key] for key in ("channels", "background", "low", "high", "fit")} | {"size": p["native_size"]}
        published = about.get("published_weights")
        licences = [[f"onnxruntime-web {runtime_js.VERSION} (MIT)", runtime_js.LICENCE.read_text(encoding="utf-8")]]
        if published:
            licences.append(["Published weights", json.dumps(published, indent=2, ensure_ascii=False)])
        return {
            "title": f"{escape(about['run'])} · cnnlab",
            "version": __version__,
            "created": datetime.now(UTC).isoformat(timespec="minutes"),
            **{key: about[key] for key in ("run", "parameters", "classes")},
            "model": about["network"],
            "recipe": about["recipe"]["name"],
            "data": about["recipe"]["data"],
            "threshold": about["threshold"],
            "how": how,
            "drawable": p["channels"] == 1,
            "light": self.level < 0.5,
            "filters": self.filters,
            "checked": self.checked,
            "licences": licences,
        }


def filters_of(network: nn.Module) -> dict[str, Any] | None:
    """Return a picture of the first convolution's filters and facts about them; None without a convolution."""
    found = first_convolution(network)
    if found is None:
        return None
    path, layer = found
    weight = layer.weight.detach().float()
    pixels = (filter_pixels(weight) * 255).round().byte().numpy()  # (N, H, W, 1 or 3)
    count, height, width, channels = pixels.shape
    columns = filter_columns(count)
    rows = -(-count // columns)
    grid = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), 255, np.uint8)
    for n, one in enumerate(pixels):
        top, left = n // columns * (height + 1), n % columns * (width + 1)
        grid[top : top + height, left : left + width] = one
    file = io.BytesIO()
    Image.fromarray(grid[..., 0] if channels == 1 else grid).save(file, "png")
    picture = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"picture": picture, "layer": path, "count": count, "size": [height, width],
            "channels": int(weight.shape[1]), "whitening": isinstance(layer, Whitening)}  # fmt: skip


def write_folder(page: WebPage, runtime: WebRuntime, folder: Path) -> int:
    """Write a page into `folder`, replacing an earlier one; see `check_place`. Return its size in bytes.

    The names of files change with their content, so that no cache can mix two exports. Raise CnnlabError if the folder
    cannot be written.
    """
    code, sheet = script(PAGE).encode(), _style().encode()
    named = {
        "script": (_named("onnxruntime-web", runtime.script, "js"), runtime.script),
        "wasm": (_named("onnxruntime-web", runtime.wasm, "wasm.gz"), gzip.compress(runtime.wasm, 6, mtime=0)),
        "network": (_named("network", page.network, "onnx"), page.network),
        "page": (_named("page", code, "js"), code),
        "style": (_named("style", sheet, "css"), sheet),
    }
    files = dict(named.values())
    listed = {key: named[key][0] for key in ("script", "wasm", "network")}
    payload = {**page.payload(), "files": listed, "worker": "worker.js"}
    policy = (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'"
    )
    index = fill(PAGE / "index.html", {
        "POLICY": html.escape(policy),
        "TITLE": html.escape(payload["title"]),
        "STYLE": f'<link rel="stylesheet" href="./{named["style"][0]}">',
        "PAYLOAD": inline(payload),
        "WAITING": _WAITING,
        "FILES": "",
        "SCRIPT": f'<script type="module" src="./{named["page"][0]}"></script>',
    }).encode()  # fmt: skip
    key = hashlib.sha256(index).hexdigest()[:16]
    worker = f"const NAME = {json.dumps(key)};\nconst FILES = {json.dumps(['./', *(f'./{name}' for name in files)])};\n"
    files |= {
        "onnxruntime-web.LICENSE": runtime_js.LICENCE.read_bytes(),
        "worker.js": (worker + (PAGE / "worker.js").read_text(encoding="utf-8")).encode(),
        "index.html": index,  # last: it names the others
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomic(folder / name, content)
        for old in folder.iterdir():
            if old.name not in files and _NAMED.fullmatch(old.name):
                old.unlink()
    except OSError as error:
        raise CnnlabError(f"cannot write {folder}: {reason(error)}; name another folder with -o") from error
    return sum(map(len, files.values()))


def write_file(page: WebPage, runtime: WebRuntime, path: Path) -> int:
    """Write a self-contained page as one HTML file. Return its size in bytes.

    Raise CnnlabError if it would be larger than `LARGEST_FILE`, or cannot be written.
    """
    contents = {"script": runtime.script, "wasm": runtime.wasm, "network": page.network}
    packed = {key: base64.b64encode(gzip.compress(value, 6, mtime=0)).decode() for key, value in contents.items()}
    payload = {**page.payload(), "files": {key: key for key in packed}, "worker": None}
    code, sheet = script(PAGE), _style()
    policy = (
        f"default-src 'none'; script-src '{policy_hash(code)}' blob: 'wasm-unsafe-eval'; "
        f"style-src '{policy_hash(sheet)}'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    text = fill(PAGE / "index.html", {
        "POLICY": html.escape(policy),
        "TITLE": html.escape(payload["title"]),
        "STYLE": f"<style>{sheet}</style>",
        "PAYLOAD": inline(payload),
        "WAITING": "",
        "FILES": "\n".join(f'<script type="text/plain" id="file-{k}">{text}</script>' for k, text in packed.items()),
        "SCRIPT": f'<script type="module">{code}</script>',
    }).encode()  # fmt: skip
    if len(text) > LARGEST_FILE:
        raise CnnlabError(
            f"one file would have {len(text) / 1e6:.0f} MB, and the limit is {LARGEST_FILE / 1e6:.0f} MB; leave out "
            "--single-file for a folder"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
    except OSError as error:
        raise CnnlabError(f"cannot write {path}: {reason(error)}; name another file with -o") from error
    return len(text)


def check_place(place: Path, single_file: bool, force: bool) -> None:
    """Raise CnnlabError unless a page may be written to the folder, or file, `place`.

    force: replace an earlier page. Nothing else is ever replaced.
    """
    remedy = "name another file with -o" if single_file else "name another folder with -o"
    try:
        if not place.exists() or (not single_file and place.is_dir() and not any(place.iterdir())):
            return
        file = place if single_file else place / "index.html"
        ours = False
        if file.is_file():
            with file.open(encoding="utf-8", errors="replace") as opened:
                ours = f'content="{_MARK}"' in opened.read(4096)
    except OSError as error:
        raise CnnlabError(f"cannot read {place}: {reason(error)}; {remedy}") from error
    if not ours:
        raise CnnlabError(f"{place} exists and is not an exported page; {remedy}")
    if not force:
        raise CnnlabError(f"{place} exists; {remedy}, or replace it with --force")


_NAMED = re.compile(r"(onnxruntime-web|network|page|style)-[0-9a-f]{8}\.(js|wasm\.gz|onnx|css)")


def _named(name: str, content: bytes, ending: str) -> str:
    return f"{name}-{hashlib.sha256(content).hexdigest()[:8]}.{ending}"


def _style() -> str:
    return "\n".join(
        path.read_text(encoding="utf-8") for path in (REPORT / "style.css", REPORT / "trying.css", PAGE / "style.css")
    )
