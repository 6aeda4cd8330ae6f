"""Export a run: `cnnlab export`."""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cnnlab.data.imageset import ImageSet
from cnnlab.device.hardware import available_cores, check_threads
from cnnlab.export import parity as p
from cnnlab.export.description import describe
from cnnlab.inference import Classifier, evaluate_run, load_model, run_splits
from cnnlab.inference.classifier import weights_file
from cnnlab.io.errors import CnnlabError, expand, needs_extra, reason, unknown
from cnnlab.io.files import read_json, write_json
from cnnlab.models.own import Network
from cnnlab.training import runs
from cnnlab.training.runs import Run

FORMS = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ""}
"""The formats of an export, with the suffix of their files; a folder has none."""
MAX_LOSS = {"int8": 1.0, "float16": 0.1}
"""Percentage points of accuracy that an export of lower precision may lose."""
_CALIBRATION = 256  # training images


@dataclass(frozen=True)
class Export:
    """What `export_run` wrote. path: the file or folder; report: the contents of FILE.json, see docs/export.md."""

    path: Path
    parities: list[p.Parity]
    report: dict[str, Any]

    def __str__(self) -> str:
        r = self.report
        lines = [f"export: {self.path} ({r['bytes'] / 1e6:.1f} MB in {r['seconds']:.1f} s)"]
        for found in self.parities:
            lines.append(str(found))
            if r["precision"] != "float32":
                lines.append(
                    f"{r['precision']} predicts {found.correct:,} of {found.images:,} {found.split} images correctly, "
                    f"float32 {found.correct_before:,}: {_points(-found.loss)}"
                )
        if self.parities[0].split == "training":
            lines.append("note: the run held no validation images out; checked on its training images")
        return "\n".join([*lines, f"details: {report_file(self.path)}"])


def _points(gain: float) -> str:
    return f"{gain:+.2f} percentage points" if gain else "the same accuracy"


def report_file(path: Path) -> Path:
    """Return the file beside an export that says how it was checked."""
    return path.with_name(f"{path.name}.json")


def export_run(
    name: Run | str | Path,
    *,
    to: str = "onnx",
    out: str | Path | None = None,
    int8: bool = False,
    fp16: bool = False,
    max_loss: float | None = None,
    look_at_test: bool = False,
    model: Network | None = None,
    data: Any = None,
    weights: str | None = None,
    runs_dir: str | Path = "runs",
    data_dir: str | Path | None = None,
    threads: int | None = None,
    skip_bad: bool = False,
    force: bool = False,
) -> Export:
    """Write a run's network, with its preprocessing and the names of its classes, to a file that other programs run.

    Before the file gets its name, it classifies all validation images. It is refused if it predicts another class than
    the run for any image, or if a probability differs by more than 0.001. name: a run's folder, its name in `runs_dir`,
    or the `run` of a training's result. to: a key of FORMS. out: the new file. Default: `default_name`, in the working
    folder. int8: quantise, calibrated on training images. fp16: compute in float16. max_loss: percentage points of
    accuracy that int8 and fp16 may lose instead. Default: see MAX_LOSS. look_at_test: also check on the test images,
    which is recorded in the run. model: your own network, if the run trained one. data, data_dir, weights, threads,
    skip_bad: see `evaluate_run`. force: replace an earlier export. Raise CnnlabError.
    """
    started = time.perf_counter()
    _check_options(to, int8, fp16, max_loss)
    check_threads(threads)
    run = name if isinstance(name, Run) else runs.open_run(name, runs_dir)
    path = _new_path(run, out, to, force, int8, fp16)
    if to == "onnx":
        _check_packages()
    file = weights_file(run, weights)
    classifier = load_model(run, model=model, weights=weights)
    description = describe(run, file, classifier)
    where: dict[str, Any] = {"data_dir": data_dir, "skip_bad": skip_bad}
    trained, held_out = run_splits(run, data, **where)
    splits = [("validation", held_out)] if held_out is not None else [("training", trained)]
    if look_at_test:
        test = evaluate_run(run, split="test", data=data, model=model, weights=weights, threads=threads, **where).images
        assert test is not None
        splits.append(("test", test))
    calibration = _sample(trained) if int8 else None
    precision = "int8" if int8 else "float16" if fp16 else "float32"
    description["precision"] = precision
    source = None if to == "safetensors" else data if isinstance(data, str) else run.recipe.data
    most, what = MAX_LOSS.get(precision) if max_loss is None else max_loss, f"{path.name} of {run.path}"
    with _beside(path) as draft:
        answers = _write(copy.deepcopy(classifier), description, draft, to, fp16, calibration, threads)
        written = time.perf_counter() - started
        parities = [
            _check(classifier, split, images, answers, source=source, most=most, what=what, threads=threads)
            for split, images in splits
        ]
        report = {
            "file": path.name,
            "form": to,
            "precision": precision,
            "bytes": _size(draft),
            "sha256": _sha256(draft),
            "seconds": time.perf_counter() - started,
            "seconds_until_written": written,
            "parity": [found.to_dict() for found in parities],
            "tie": p.TIE,
            "tolerance": p.TOLERANCE,
            **{key: description[key] for key in ("run", "weights", "network", "parameters", "versions")},
        }
        _move(draft, path)
        write_json(report_file(path), report)
    return Export(path, parities, report)


def _write(
    classifier: Classifier,
    description: dict[str, Any],
    path: Path,
    to: str,
    fp16: bool,
    calibration: np.ndarray | None,
    threads: int | None,
) -> p.Answers:
    """Write the file; return a function that classifies images with it."""
    if to == "onnx":
        from cnnlab.export.onnx import onnx_model
        from cnnlab.export.runtime import open_exported

        model = onnx_model(classifier, description, fp16=fp16, calibration=calibration)
        path.write_bytes(model.SerializeToString())
        opened = open_exported(path, threads=threads or available_cores())
        return lambda pixels: opened.answer(pixels)[:2]
    names = classifier.classes
    if to == "torch":
        from cnnlab.export.archive import load_archive, save_archive

        save_archive(classifier, description, path, half=fp16)
        module = load_archive(path)

        def by_archive(pixels: np.ndarray) -> tuple[np.ndarray, list[str]]:
            with torch.inference_mode():
                found, best, _none = module(torch.from_numpy(pixels))
            return found.numpy(), [names[k] for k in best.tolist()]

        return by_archive
    from cnnlab.export.tensors import load_tensors, save_tensors

    save_tensors(classifier, description, path)
    read = load_tensors(path)

    def by_reader(pixels: np.ndarray) -> tuple[np.ndarray, list[str]]:
        found = read(torch.from_numpy(pixels)).numpy()
        return found, [names[k] for k in found.argmax(1).tolist()]

    return by_reader


def _check(
    classifier: Classifier,
    split: str,
    images: ImageSet,
    answers: p.Answers,
    *,
    source: str | None,
    most: float | None,
    what: str,
    threads: int | None,
) -> p.Parity:
    """Compare the export with the run on all images of a split. Raise CnnlabError if it is refused.

    source: where the images come from; their files are also compared at their own size. None: the export takes fitted
    images only. most: percentage points of accuracy that it may lose. None: it may not change any class.
    """
    found = p.compare(classifier, images, split, answers, threads)
    files = None if source is None else p.compare_files(classifier, source, images, answers, threads)
    if most is not None:
        p.check_loss(found, most, what)
    else:
        for part in filter(None, (found, files)):
            p.check_same(part, what)
    return found if files is None else p.with_files(found, files)


def _check_options(to: str, int8: bool, fp16: bool, max_loss: float | None) -> None:
    if to not in FORMS:
        raise unknown("format", to, FORMS)
    if int8 and fp16:
        raise CnnlabError("--int8 and --fp16 exclude each other; name one")
    if int8 and to != "onnx":
        raise CnnlabError(f"--int8 is for --to onnx, not for {to}")
    if fp16 and to == "safetensors":
        raise CnnlabError("--fp16 is for --to onnx and --to torch")
    if max_loss is not None and not (int8 or fp16):
        raise CnnlabError("--max-loss is for --int8 and --fp16; float32 may not change any class")
    if max_loss is not None and not 0 <= max_loss <= 100:
        raise CnnlabError(f"max_loss={max_loss:g}: must be from 0 to 100, in percentage points")


def _check_packages() -> None:
    with needs_extra("export", "onnx", "onnxruntime", "onnxscript"):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401


def default_name(run: Run, ending: str, int8: bool, fp16: bool) -> str:
    """Return the name of an export without `out`: `RUN.onnx`, `RUN-int8.onnx`."""
    return f"{run.path.absolute().name}{'-int8' if int8 else '-fp16' if fp16 else ''}{ending}"


def _new_path(run: Run, out: str | Path | None, to: str, force: bool, int8: bool, fp16: bool) -> Path:
    """Return the file or folder to write. Raise CnnlabError if its name is invalid or taken."""
    ending = FORMS[to]
    path = Path(default_name(run, ending or "-safetensors", int8, fp16)) if out is None else expand(out)
    if path.suffix.lower() != ending and ending:
        other = next((form for form, suffix in FORMS.items() if suffix and suffix == path.suffix.lower()), None)
        more = f", or add --to {other}" if other else ""
        raise CnnlabError(f"{path}: name a file that ends with {ending}{more}")
    if not path.name:
        raise CnnlabError(f"{path}: name a new folder")
    replaceable = path.is_file() if ending else _is_folder_of_ours(path)
    if path.exists() and not (force and replaceable):
        more = ", or replace it with --force" if replaceable else ""
        raise CnnlabError(f"{path} exists; name another {'file' if ending else 'folder'} with --out{more}")
    if report_file(path).exists() and not _is_report(report_file(path)):
        raise CnnlabError(f"{report_file(path)} exists and is not the report of an export; choose another --out")
    if not path.absolute().parent.is_dir():
        raise CnnlabError(f"the folder {path.parent} does not exist; create it first")
    return path


def _is_report(path: Path) -> bool:
    """Return whether a file is the report of an earlier export."""
    try:
        return {"file", "form", "parity"} <= read_json(path).keys()
    except CnnlabError:
        return False


def _is_folder_of_ours(path: Path) -> bool:
    """Return whether a folder holds an earlier export and nothing else."""
    from cnnlab.export.tensors import FILES

    return path.is_dir() and {file.name for file in path.iterdir()} - {"__pycache__"} == set(FILES)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Yield a path in a temporary folder beside `path`. Raise CnnlabError if it cannot be written."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.absolute().parent) as folder:
            yield Path(folder) / path.name
    except OSError as error:
        raise CnnlabError(f"cannot write {path}: {reason(error)}; name another place with --out") from error


def _move(draft: Path, path: Path) -> None:
    """Move the draft to `path`, replacing an earlier export."""
    for file in _files(draft):
        with file.open("r+b") as opened:  # Windows flushes only files that are open for writing
            os.fsync(opened.fileno())
    if not path.is_dir():
        draft.replace(path)
        return
    # A folder cannot be replaced in one step; the earlier export is kept until the new one has its name.
    earlier = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent)) / path.name
    try:
        path.rename(earlier)
        draft.replace(path)
    except BaseException:  # Ctrl-C, too
        if earlier.exists() and not path.exists():
            earlier.rename(path)
        raise
    finally:
        shutil.rmtree(earlier.parent)


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in _files(path))


def _sha256(path: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in _files(path)}


def _sample(images: ImageSet) -> np.ndarray:
    """Return training images (N, C, H, W) uint8 for the calibration, drawn with a fixed seed."""
    order = torch.randperm(len(images.images), generator=torch.Generator().manual_seed(0))
    return np.asarray(images.take(order[:_CALIBRATION].sort().values).images[:].numpy())
