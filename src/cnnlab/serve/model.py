"""Open the network to serve: a file that `cnnlab export` wrote, or a run, which is exported first."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from cnnlab.export.runtime import open_exported
from cnnlab.io.errors import CnnlabError, expand
from cnnlab.serve.batching import Model


def open_model(what: str, runs_dir: Path, threads: int | None) -> Model:
    """Return the network of an exported file, or of a run. threads: for onnxruntime. Raise CnnlabError.

    A run is exported by another process, so that this one never imports torch.
    """
    path = expand(what)
    if path.is_file():
        return open_exported(path, threads=threads or 0)
    if path.suffix.lower() == ".onnx":
        raise CnnlabError(f"{what} does not exist; write it with cnnlab export RUN")
    if not any((folder / "run.json").is_file() for folder in (path, runs_dir / what)):
        raise CnnlabError(f"{what} is neither a file of `cnnlab export` nor a run; `cnnlab runs` lists all runs")
    with tempfile.TemporaryDirectory(prefix="cnnlab-serve-") as folder:
        file = Path(folder) / "model.onnx"
        command = [sys.executable, "-m", "cnnlab", "export", what, "--to", "onnx", "--out", str(file)]
        answer = subprocess.run(  # noqa: S603 - our own command
            [*command, "--runs-dir", str(runs_dir)], capture_output=True, text=True, errors="replace"
        )
        if answer.returncode or not file.is_file():
            lines = answer.stderr.strip().splitlines()
            why = lines[-1].removeprefix("error: ") if lines else f"it ended with {answer.returncode}"
            raise CnnlabError(f"`cnnlab export {what}`: {why}")
        return open_exported(file, threads=threads or 0)
