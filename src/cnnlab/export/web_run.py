"""Export a run as a page for the browser: `cnnlab export --to web`."""

from __future__ import annotations

import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnlab.data.imageset import Report, no_report
from cnnlab.export.export import Export, default_name, export_run
from cnnlab.export.runtime import DESCRIPTION
from cnnlab.export.runtime_js import web_runtime
from cnnlab.export.web import WebPage, check_place, filters_of, write_file, write_folder
from cnnlab.inference import load_network, run_splits
from cnnlab.inference.classifier import preprocessing_of, weights_file
from cnnlab.io.errors import CnnlabError, expand, needs_extra
from cnnlab.models.own import Network
from cnnlab.training import runs
from cnnlab.training.runs import Run


@dataclass(frozen=True)
class WebExport:
    """What `export_web` wrote. path: the folder or file; size: in bytes; network: the export of the network inside."""

    path: Path
    size: int
    network: Export

    def __str__(self) -> str:
        lines = [f"export: {self.path} ({self.size / 1e6:.1f} MB)", *str(self.network).splitlines()[1:-1]]
        if self.path.is_dir():
            folder = shlex.quote(str(self.path))
            lines.append(f"try it: python -m http.server -d {folder}, then open http://localhost:8000")
        else:
            lines.append("try it: open the file in a browser")
        return "\n".join(lines)


def export_web(
    name: Run | str | Path,
    *,
    out: str | Path | None = None,
    single_file: bool = False,
    runtime: str | Path | None = None,
    model: Network | None = None,
    weights: str | None = None,
    runs_dir: str | Path = "runs",
    data: Any = None,
    data_dir: str | Path | None = None,
    force: bool = False,
    report: Report = no_report,
    **options: Any,
) -> WebExport:
    """Write a page that classifies images with a run's network in the browser. No image leaves the browser.

    out: a folder, which any static server can serve; with single_file, an HTML file, which needs no server. Default:
    the run's name with -web or .html, in the working folder; see `default_name`. runtime: the package onnxruntime-web,
    see `web_runtime`. force: replace an earlier page. All other arguments: see `export_run`, which exports and checks
    the network. Raise CnnlabError.
    """
    run = name if isinstance(name, Run) else runs.open_run(name, runs_dir)
    p = preprocessing_of(run)
    if p.channels not in (1, 3):
        raise CnnlabError(f"a browser shows images of 1 or 3 channels, and this run's have {p.channels}; use --to onnx")
    ending = ".html" if single_file else "-web"
    usual = default_name(run, ending, bool(options.get("int8")), bool(options.get("fp16")))
    place = Path(usual) if out is None else expand(out)
    if single_file and place.suffix.lower() not in (".html", ".htm"):  # a double click opens nothing else
        raise CnnlabError(f"{place}: name a file that ends with .html")
    check_place(place, single_file, force)
    with needs_extra("export", "onnx"):
        import onnx
    from cnnlab.export.activation import add_map

    vendored = web_runtime(expand(runtime) if runtime is not None else None, report)
    images = {"model": model, "weights": weights, "data": data, "data_dir": data_dir}
    with tempfile.TemporaryDirectory() as folder:
        network = export_run(run, out=Path(folder) / "network.onnx", **images, **options)
        exported = onnx.load(network.path)
    add_map(exported)
    checked = network.parities[0]
    page = WebPage(
        exported.SerializeToString(),
        next(entry.value for entry in exported.metadata_props if entry.key == DESCRIPTION),
        filters=filters_of(load_network(run, weights_file(run, weights), model)),
        checked={
            "split": checked.split.removesuffix("ing"),
            "images": checked.images,
            "accuracy": checked.correct / checked.images,
            "difference": checked.largest,
            "changed": checked.changed,
        },
        level=_level(run, data, data_dir=data_dir, skip_bad=bool(options.get("skip_bad"))),
    )
    write = write_file if single_file else write_folder
    return WebExport(place, write(page, vendored, place), network)


def _level(run: Run, data: Any, **where: Any) -> float:
    """Return the mean of the training images, 0 to 1. It matters for grey images only: others cannot be drawn."""
    p = preprocessing_of(run)
    if p.channels > 1 or any(p.mean):
        return p.mean[0]
    return float(run_splits(run, data, **where)[0].images[:1000].float().mean()) / 255
