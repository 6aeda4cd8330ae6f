"""Fixtures and helpers of all tests. Each test runs in a folder of its own; none writes into the repository."""

from __future__ import annotations

import importlib.util
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.cells import cell_len

from cnnlab.data import data_folder, survey
from cnnlab.device.hardware import available_cores
from cnnlab.recipe import Recipe
from cnnlab.recipes import RECIPES
from cnnlab.training import autotune, curves
from cnnlab.training.runs import Run
from cnnlab.training.train import train

SAVE_CURVES = curves.save_curves
EVERY_CORE = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")  # gw0, gw1, ... if tests run in parallel
if WORKER and EVERY_CORE:
    # One core per worker: multithreaded computations that share cores spend most of their time waiting for each other.
    os.sched_setaffinity(0, {sorted(EVERY_CORE)[int(WORKER.removeprefix("gw")) % len(EVERY_CORE)]})
torch.set_num_threads(min(2, available_cores()))
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # for tests that import onnxruntime before cnnlab.export
# nohup, and shells that start a background job, leave these signals ignored. Processes started by a test would inherit
# that, and nothing could stop them.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

Command = Callable[..., subprocess.CompletedProcess[str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=4, help="how often tests/training/test_faults.py kills a training")
    for name, page, tests in (
        ("fuzz", "security", "test_fuzz.py"),
        ("fault", "reliability", "training/test_faults.py"),
        ("data", "data", "data/test_data_page.py"),
    ):
        text = f"docs/{page}.md, to write what tests/{tests} finds into its tables"
        parser.addoption(f"--{name}-table", type=lambda path: Path(path).absolute(), help=text)


@pytest.fixture(scope="session")
def tally(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """Count faults and their outcomes, for the table of docs/reliability.md."""
    from faults import Tally

    counted = Tally()
    yield counted
    file = request.config.getoption("--fault-table")
    if file:
        before, mark, rest = file.read_text(encoding="utf-8").partition("<!-- faults -->\n")
        after = rest.partition("<!-- end of faults -->")[2]
        file.write_text(f"{before}{mark}{counted.table()}<!-- end of faults -->{after}", encoding="utf-8")


@pytest.fixture(scope="session", autouse=True)
def _placeholder_curves() -> Iterator[None]:
    """Save a placeholder as curves.png: drawing takes longer than most trainings of these tests."""
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            curves, "save_curves", lambda run, rows: curves.write_atomic(run.path / "curves.png", file.getvalue())
        )
        yield


@pytest.fixture
def drawn_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the real curves.png."""
    monkeypatch.setattr(curves, "save_curves", SAVE_CURVES)


@pytest.fixture(scope="session")
def forks() -> Any:
    """A multiprocessing context whose processes start with everything imported."""
    from faults import server

    return server()


@pytest.fixture(autouse=True)
def _run_in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A relative CNNLAB_DATA starts at the folder in which pytest was started.
    if os.environ.get("CNNLAB_DATA"):
        monkeypatch.setenv("CNNLAB_DATA", str(Path(os.environ["CNNLAB_DATA"]).absolute()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    # Measured plans are cached. Keep them out of the cache of whoever runs the tests.
    monkeypatch.setattr(autotune, "user_cache_dir", lambda name: str(tmp_path / ".cache" / name))


@pytest.fixture(autouse=True)
def _random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train from random weights by default: fine-tuning takes seconds per test. test_default.py tests it."""
    monkeypatch.setattr(survey, "has_packaged_weights", lambda: False)


def pytest_xdist_auto_num_workers() -> int:
    """Return one worker per core, but at most 8: each takes a gigabyte."""
    return min(available_cores(), 8)


@pytest.fixture
def every_core() -> Iterator[None]:
    """Use all cores in a test of multithreaded computation."""
    if not EVERY_CORE:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, EVERY_CORE)
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture(scope="session")
def cnnlab() -> Command:
    """Run the command in this process, which saves the start-up time. The result has returncode, stdout and stderr."""
    from cnnlab.cli.app import main

    def run(*args: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = ["cnnlab", *map(str, args)]
        out, err, before = io.StringIO(), io.StringIO(), (Path.cwd(), sys.argv)
        ctrl_c = signal.getsignal(signal.SIGINT)
        os.chdir(cwd or before[0])
        sys.argv = command
        code: object = None
        try:
            with redirect_stdout(out), redirect_stderr(err):
                main()
        except SystemExit as stop:
            code = stop.code
        finally:
            os.chdir(before[0])
            sys.argv = before[1]
            signal.signal(signal.SIGINT, ctrl_c)  # an interrupted command leaves Ctrl-C ignored
        assert isinstance(code, int)
        return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def installed() -> Command:
    """Run the installed command in a process of its own, as a person would."""

    def run(*args: object, env: dict[str, str] | None = None, **kwargs: object) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / "cnnlab"), *map(str, args)]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=300, env={**os.environ, **(env or {})}, **kwargs
        )

    return run


def script(name: str) -> ModuleType:
    """Return the module scripts/NAME.py."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent.parent / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def within_80(text: str) -> list[str]:
    """Return the lines. Fail if one is wider than 80 columns."""
    lines = text.splitlines()
    assert lines
    assert [line for line in lines if cell_len(line) > 80] == []
    return lines


def one_line_error(answer: subprocess.CompletedProcess[str]) -> str:
    """Return the error message, the last line. Fail unless it is the only one and the exit code is 2.

    Lines before it may describe the data and the progress of a training.
    """
    assert answer.returncode == 2, (answer.returncode, answer.stdout, answer.stderr)
    *before, last = answer.stderr.strip().splitlines()
    assert last.startswith("error: ")
    assert not [line for line in before if line.startswith(("error", "Traceback", " "))], answer.stderr
    return last


@pytest.fixture(scope="session")
def fashion_folder() -> Path:
    """Return the data folder. Skip the test if Fashion-MNIST is not in it."""
    folder = data_folder()
    files = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    if not all((folder / "FashionMNIST" / "raw" / f"{name}-ubyte.gz").exists() for name in files):
        pytest.skip(f"Fashion-MNIST is not in {folder}; set CNNLAB_DATA to the folder that holds FashionMNIST/raw")
    return folder.absolute()


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """LeNet with batch norm on digits, three epochs: validation accuracy about 0.9. No test may change it."""
    folder = tmp_path_factory.mktemp("shared") / "runs"
    return train("digits", model="lenet-bn", epochs=3, runs_dir=folder, name="grey", progress="none").run


@pytest.fixture(scope="session")
def converted_once() -> Iterator[None]:
    """Convert each network to ONNX once: PyTorch's exporter takes seconds."""
    from onnx import ModelProto

    from cnnlab.export import onnx

    convert, known = onnx._network, {}

    def cached(classifier: Any, *options: Any) -> ModelProto:
        weights = sum(float(p.detach().double().abs().sum()) for p in classifier.parameters())
        key = (weights, classifier.temperature, classifier.threshold, *options)
        if key not in known:
            known[key] = convert(classifier, *options)
        model = ModelProto()
        model.CopyFrom(known[key])
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx, "_network", cached)
        yield


@pytest.fixture(scope="session")
def exported(digits_run: Run, tmp_path_factory: pytest.TempPathFactory, converted_once: None) -> Path:
    """`digits_run` as an ONNX file. No test may change it."""
    from cnnlab import export_run

    return export_run(digits_run, out=tmp_path_factory.mktemp("exported") / "grey.onnx", threads=1).path


@pytest.fixture
def quick() -> Recipe:
    """A recipe of two epochs of four updates each."""
    return RECIPES["digits"].changed(epochs=2, limit=256, name="quick")


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """A folder of two easily separated classes in several formats: 20 bright and 20 dark 20x20 colour images."""
    rng = np.random.default_rng(0)
    root = tmp_path / "shapes"
    for name, level in (("bright", 200), ("dark", 50)):
        (root / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.clip(rng.normal(level, 15, (20, 20, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:02d}.{('png', 'jpg', 'bmp', 'webp')[i % 4]}")
    return root


@pytest.fixture
def tiny_competition(tmp_path: Path) -> Path:
    """Return a small competition: 24 training images of two classes, 5 test images and a hidden file."""
    root = tmp_path / "tiny"
    rng = np.random.default_rng(0)
    rows = ["id,label"]
    for part, count in (("train", 24), ("test", 5)):
        (root / part).mkdir(parents=True)
        for i in range(1, count + 1):
            pixels = np.clip(rng.normal(200 if i % 3 else 40, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / part / f"{i}.png")
            if part == "train":
                rows.append(f"{i},{'ship' if i % 3 else 'frog'}")
    (root / "train" / ".DS_Store").write_bytes(b"x")
    (root / "trainLabels.csv").write_text("\n".join(rows) + "\n")
    return root
