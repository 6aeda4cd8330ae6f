"""Check the installation, the device's arithmetic, the disk and the data files: what a bug report needs."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import torch
import torch.nn.functional as F
from packaging.requirements import Requirement
from platformdirs import user_cache_dir

from cnnlab.data import DATASETS, LISTED, PACK, STORE, ImageSet, SourceOptions, data_folder, load_images, named
from cnnlab.data.near_duplicates import shared
from cnnlab.data.pack import damage
from cnnlab.data.store import intact, open_store
from cnnlab.device import memory
from cnnlab.device.determinism import reproducible
from cnnlab.device.hardware import available_cores, environment, has_bfloat16, pick_device
from cnnlab.device.precision import PRECISIONS, autocast
from cnnlab.io.errors import CnnlabError, expand, reason
from cnnlab.io.files import write_atomic
from cnnlab.io.tables import wrap
from cnnlab.io.text import plural
from cnnlab.models import build_model
from cnnlab.recipe import Recipe
from cnnlab.training import runs
from cnnlab.training.autotune import time_step
from cnnlab.training.header import class_counts, classes_text, decoding_lines, passed_over_text
from cnnlab.training.locks import locked
from cnnlab.training.optim import make_optimizer
from cnnlab.training.plan import Plan, Workload, check_compile
from cnnlab.training.step import train_step

_LOW_SPACE = 2**30  # bytes
# Largest acceptable error of a convolution relative to its largest value: the last digit of its factors.
_TOLERANCE = {"float32": 5e-3, "bfloat16": 3e-2, "float16": 5e-3}  # float32 with tf32's ten bits, on CUDA


@dataclass(frozen=True)
class Check:
    """The result of one check. state: `ok`, `note` (harmless) or `failed`."""

    what: str
    state: str
    text: str

    def __str__(self) -> str:
        return f"{self.state:<6}  {wrap(f'{self.what}: {self.text}', 8)}"

    def to_dict(self) -> dict[str, str]:
        """Return the fields as a dictionary."""
        return asdict(self)


def examine(
    *, runs_dir: str | Path = "runs", data_dir: str | Path | None = None, device: str = "auto"
) -> Iterator[Check]:
    """Check everything that a training here depends on; takes some seconds. Raise CnnlabError for a bad `device`."""
    picked = pick_device(device)
    yield from _system(picked)
    yield from _packages()
    yield from _arithmetic(picked)
    folders = {"runs": Path(runs_dir), "data": data_folder(data_dir), "cache": Path(user_cache_dir("cnnlab"))}
    for what, path in folders.items():
        # The data may be shared and read-only; without a cache, plans are measured again.
        yield _disk(f"disk, {what}", path.absolute(), "failed" if what == "runs" else "note")
    yield from _runs(Path(runs_dir))
    for source in DATASETS:
        there = source not in named.NAMED or named.is_there(source, folders["data"])
        if source == "fashion-mnist" and not there and not (folders["data"] / "FashionMNIST").is_dir():
            yield Check(source, "note", f"not in {folders['data']}; a first training downloads it")
        elif there or source == "fashion-mnist":
            yield from verify(source, data_dir=data_dir)


def verify(source: str, *, data_dir: str | Path | None = None, columns: str = "") -> Iterator[Check]:
    """Check every file of a data source. Nothing is downloaded, except for `torchvision:` and `hf:`.

    columns: a table's column names, see `Recipe`. Raise CnnlabError for an unknown source.
    """
    folder = data_folder(data_dir)
    if source not in DATASETS and not source.startswith((*LISTED, STORE, PACK)):
        load_images(source, "train")  # raises the error
    if source in named.NAMED:
        found = named.files(source, folder)
        for path, problem in found.items():
            yield Check(source, "failed" if problem else "ok", f"{path}: {problem or 'the official file'}")
        if any(found.values()):
            return
    train: ImageSet | None = None
    options = SourceOptions(data_dir=folder, columns=columns, skip_bad=True)
    for split in ("train", "validation", "test"):
        try:
            images = load_images(source, split, options.like(train) if train else options)
        except CnnlabError as error:
            yield Check(source, "failed", str(error))
            if split == "train":
                return
            continue
        if images is None:
            continue
        for problem in images.skipped:
            yield Check(source, "failed", problem)
        for text in images.notes + images.warnings:
            yield Check(source, "note", text)
        if train is None and images.passed_over:
            yield Check(source, "note", f"skipped: {passed_over_text(images.passed_over)}")
        if train is None:
            for text in decoding_lines(images, source):
                yield Check(source, "ok", text)
        train = train or images
        if images is not train and (copies := len(shared(train.images, images.images))):
            yield Check(
                source,
                "note",
                f"{copies:,} {split} images are exact copies of training images; cnnlab data duplicates {source} "
                "lists them",
            )
        counts = class_counts(images)
        shape = " x ".join(map(str, images.images.shape[1:]))
        yield Check(
            source,
            "ok",
            f"{split}: {len(images):,} images, {shape}, {len(images.classes)} classes of {min(counts):,} to "
            f"{max(counts):,}; fingerprint {images.fingerprint()}",
        )
        yield Check(source, "ok", f"{split} classes: {classes_text(images.classes, counts)}")
    if source.startswith(PACK):
        changed = list(damage(expand(source.removeprefix(PACK))))
        for text in changed:
            yield Check(source, "failed", text)
        if not changed:
            yield Check(source, "ok", "its shards are as packed")
    if source.startswith(STORE):
        if intact(open_store(expand(source.removeprefix(STORE)))):
            yield Check(source, "ok", "its images, ids and labels are as prepared")
        else:
            yield Check(source, "failed", "it has changed since it was prepared; delete it and prepare it again")


def _system(device: torch.device) -> Iterator[Check]:
    about = environment(device)
    size = f", {about['memory_gib']} GiB" if about["memory_gib"] else ""
    left = memory.free_memory()
    size += f", {left / 2**30:.1f} free" if left is not None else ""
    yield Check("system", "ok", f"{about['system']}, Python {about['python']}")
    cores = plural(about["cores"], "core")
    yield Check("CPU", "ok", f"{about['processor']}, {cores} available{size}, {about['cpu_capability']}")
    cuda = f", CUDA {about['cuda']}" if about["cuda"] else ""
    yield Check("device", "ok", f"{device} ({about['device_name']}){cuda}")
    try:
        check_compile(Recipe(compile="default"), device)
        yield Check("compiler", "ok", "torch.compile works here")
    except CnnlabError as error:
        yield Check("compiler", "note", str(error))
    names = ("CNNLAB_DATA", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTORCH_ALLOC_CONF")
    settings = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    if settings:
        yield Check("environment", "note", ", ".join(settings))


def _packages() -> Iterator[Check]:
    try:
        requirements = metadata.requires("cnnlab") or []
        yield Check("cnnlab", "ok", f"{metadata.version('cnnlab')} in {Path(__file__).parents[1]}")
    except metadata.PackageNotFoundError:
        yield Check("cnnlab", "note", f"in {Path(__file__).parents[1]}, not installed: its packages are not checked")
        return
    installed, missing_extras = set(), set()
    for requirement in map(Requirement, requirements):
        name, of_extra = requirement.name, re.search(r'extra == "([^"]+)"', str(requirement.marker))
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            if of_extra:
                missing_extras.add(of_extra[1])
            else:
                yield Check("packages", "failed", f"{name} is missing; install cnnlab again: pip install .")
            continue
        installed.add(f"{name} {version}")
        if not requirement.specifier.contains(version, prereleases=True):
            wanted = f"{name}{requirement.specifier}"
            yield Check("packages", "failed", f'{name} {version} does not satisfy {wanted}; pip install "{wanted}"')
    yield Check("packages", "ok", ", ".join(sorted(installed)))
    missing_extras.discard("all")
    if missing_extras:
        yield Check("extras", "note", f"not installed, and optional: {', '.join(sorted(missing_extras))}")


def _arithmetic(device: torch.device) -> Iterator[Check]:
    """Check a convolution in each precision against float64, and that training is bitwise reproducible."""
    with reproducible(0, available_cores()):
        x, weight = torch.randn(8, 16, 24, 24), torch.randn(32, 16, 3, 3)
    for name in PRECISIONS:
        if name != "float16" or device.type != "cpu":  # never used there
            yield _convolution(name, x, weight, device)
    first, second = _short_training(device), _short_training(device)
    same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    threads = available_cores()
    work = Workload(Recipe(batch_size=64), _lenet, (1, 28, 28), 10, device, threads=threads)
    seconds = time_step(work, Plan(threads=threads))
    text = "bitwise reproducible" if same else "not bitwise reproducible"
    yield Check("training step", "ok" if same else "failed", f"{text}; {seconds * 1000:.1f} ms for 64 images, BN-LeNet")


def _convolution(name: str, x: torch.Tensor, weight: torch.Tensor, device: torch.device) -> Check:
    what, exact = f"arithmetic, {name}", F.conv2d(x.double(), weight.double())
    try:
        with reproducible(0, available_cores()), autocast(device, PRECISIONS[name]):
            answer = F.conv2d(x.to(device), weight.to(device)).cpu().double()  # MPS has no float64
    except RuntimeError as error:
        return Check(what, "note", f"not on this device: {reason(error, 100)}")
    slow = name == "bfloat16" and not has_bfloat16(device)
    relative = float((answer - exact).abs().max() / exact.abs().max())
    text = f"the largest error of a convolution is {relative:.0e} of its largest value"
    state = "ok" if relative < _TOLERANCE[name] else "failed"
    return Check(what, state, text + "; this device lacks hardware support for it, so it is slow" * slow)


def _lenet() -> torch.nn.Module:
    return build_model("lenet-bn", num_classes=10, in_channels=1, image_size=28)


def _short_training(device: torch.device) -> list[torch.Tensor]:
    """Return the weights of BN-LeNet after four steps on random images."""
    with reproducible(0, available_cores()):
        model = _lenet().to(device)
        optimizer = make_optimizer(model, Recipe(momentum=0.9))
        x, y = torch.rand(64, 1, 28, 28).to(device), torch.randint(10, (64,)).to(device)
        for _ in range(4):
            train_step(model, optimizer, x, y)
        return [t.cpu() for t in model.state_dict().values()]


def _disk(what: str, path: Path, state: str) -> Check:
    """Check that a file can be written and locked at `path`, or in its nearest existing parent, and the free space.

    state: the state of the check if it fails.
    """
    # Not Path.is_dir, which raises PermissionError below a folder that may not be read.
    near = next((p for p in (path, *path.parents) if os.path.isdir(p)), None)  # noqa: PTH112
    if near is None:  # a missing drive on Windows
        return Check(what, state, f"{path.anchor} does not exist")
    try:
        free = shutil.disk_usage(near).free
        with tempfile.TemporaryDirectory(prefix=".cnnlab-", dir=near) as trial, locked(Path(trial)):
            write_atomic(Path(trial) / "file", b"cnnlab")
    except (OSError, CnnlabError) as error:
        return Check(what, state, f"cannot write into {near}: {reason(error)}")
    text = f"{path}, {free / 2**30:,.1f} GiB free"
    if free < _LOW_SPACE:
        return Check(
            what, "note", f"{text}, which is low: each checkpoint is written before the previous one is deleted"
        )
    return Check(what, "ok", text)


def _runs(runs_dir: Path) -> Iterator[Check]:
    damaged: list[str] = []
    found = runs.list_runs(runs_dir, damaged.append)
    for text in damaged:
        yield Check("runs", "failed", text)
    finished = [run for run in found if run.summary() is not None]
    yield Check("runs", "ok", f"{len(finished)} finished in {runs_dir}")
    for run in found:
        if run not in finished:
            call = run.resume_call
            yield Check("runs", "note", f"{run.path} is not finished; continue with: {call}")
