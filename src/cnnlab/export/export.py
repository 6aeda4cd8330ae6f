"""Export a run: `cnnlab export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnlab.export.description import describe
from cnnlab.inference import load_model
from cnnlab.inference.classifier import weights_file
from cnnlab.io.errors import CnnlabError, expand, reason, unknown
from cnnlab.io.files import write_atomic
from cnnlab.models.own import Network
from cnnlab.training import runs
from cnnlab.training.runs import Run

FORMS = {"onnx": ".onnx"}


@dataclass(frozen=True)
class Export:
    """What `export_run` wrote. path: the file; description: what it says of itself."""

    path: Path
    description: dict[str, Any]

    def __str__(self) -> str:
        return f"export: {self.path} ({self.path.stat().st_size / 1e6:.1f} MB)"


def export_run(
    name: Run | str | Path,
    *,
    to: str = "onnx",
    out: str | Path | None = None,
    model: Network | None = None,
    weights: str | None = None,
    runs_dir: str | Path = "runs",
    force: bool = False,
) -> Export:
    """Write a run's network, with all that goes before and after it, to a file that other programs run.

    name: a run's folder, its name in `runs_dir`, or the `run` of a training's result. to: onnx. out: the new file.
    Default: the run's name with .onnx, here. model: the network of your own that was trained, if it was one. weights:
    best or last. Default: best where it was chosen on validation images, else last. force: replace a file. Raise
    CnnlabError.
    """
    if to not in FORMS:
        raise unknown("format", to, FORMS)
    run = name if isinstance(name, Run) else runs.open_run(name, runs_dir)
    path = _new_file(Path(f"{run.path.absolute().name}{FORMS[to]}") if out is None else expand(out), to, force)
    file = weights_file(run, weights)
    classifier = load_model(run, model=model, weights=weights)
    description = describe(run, file, classifier)
    try:
        from cnnlab.export.onnx import onnx_model
    except ImportError as error:
        raise CnnlabError(f"exporting to ONNX needs the package {error.name}; pip install 'cnnlab[export]'") from error
    content = onnx_model(classifier, description).SerializeToString()
    try:
        write_atomic(path, content)
    except OSError as error:
        raise CnnlabError(f"cannot write {path}: {reason(error)}; name another file with --out") from error
    return Export(path, description)


def _new_file(path: Path, to: str, force: bool) -> Path:
    """Return the path. Raise CnnlabError if it cannot become a new file of the format."""
    if path.suffix.lower() != FORMS[to]:
        raise CnnlabError(f"{path}: name a file that ends with {FORMS[to]}")
    if path.is_dir() or (path.exists() and not force):
        raise CnnlabError(f"{path} exists; name another file, or replace it with --force")
    if not path.parent.is_dir():
        raise CnnlabError(f"the folder {path.parent} does not exist; create it first")
    return path
