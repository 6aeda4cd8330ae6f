"""Is all well here? The installation, the device's arithmetic, the disk, the data files: what a bug report needs."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import torch
import torch.nn.functional as F
from platformdirs import user_cache_dir

from cnnlab.data import DATASETS, FOLDER, STORE, ImageSet, SourceOptions, data_folder, fashion_mnist, load_images
from cnnlab.data.near_duplicates import shared
from cnnlab.data.store import intact, open_store
from cnnlab.device import memory
from cnnlab.device.determinism import reproducible
from cnnlab.device.hardware import available_cores, environment, has_bfloat16, pick_device
from cnnlab.device.precision import PRECISIONS, autocast
from cnnlab.device.timing import synchronize
from cnnlab.io.errors import CnnlabError, expand, reason
from cnnlab.io.files import write_atomic
from cnnlab.models import build_model
from cnnlab.recipe import Recipe
from cnnlab.training import runs
from cnnlab.training.optim import make_optimizer
from cnnlab.training.plan import check_compile
from cnnlab.training.step import train_step

_LITTLE = 2**30  # bytes: less free space than this is worth a word
# Largest error of a convolution that is no sign of trouble, as a share of its largest value: the factors' last digit.
_TOLERANCE = {"float32": 5e-3, "bfloat16": 3e-2, "float16": 5e-3}  # float32 with tf32's ten bits, on CUDA


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. state: `ok`, `note` (worth knowing, no harm) or `failed`."""

    what: str
    state: str
    text: str

    def __str__(self) -> str:
        return f"{self.state:<6}  {self.what}: {self.text}"

    def to_dict(self) -> dict[str, str]:
        """As plain values."""
        return asdict(self)


def examine(
    *, runs_dir: str | Path = "runs", data_dir: str | Path | None = None, device: str = "auto"
) -> Iterator[Check]:
    """Look at everything that a training here depends on, some seconds long. Raises: CnnlabError for a bad `device`."""
    here = pick_device(device)
    yield from _system(here)
    yield from _packages()
    yield from _arithmetic(here)
    folders = {"runs": Path(runs_dir), "data": data_folder(data_dir), "cache": Path(user_cache_dir("cnnlab"))}
    for what, path in folders.items():
        # A class may share data that nobody else writes; without a cache, trials are made anew.
        yield _disk(f"disk, {what}", path.absolute(), "failed" if what == "runs" else "note")
    yield from _runs(Path(runs_dir))
    for source in DATASETS:
        if source == "fashion-mnist" and not (folders["data"] / "FashionMNIST").is_dir():
            yield Check(source, "note", f"not in {folders['data']}; a first training downloads it")
        else:
            yield from verify(source, data_dir=data_dir)


def verify(source: str, *, data_dir: str | Path | None = None) -> Iterator[Check]:
    """Look at every file of a source of images, `folder:PATH` and `store:PATH` among them; nothing is downloaded.

    Raises: CnnlabError where there is no such source.
    """
    folder = data_folder(data_dir)
    if source not in DATASETS and not source.startswith((FOLDER, STORE)):
        load_images(source, "train")  # says why there is none
    if source == "fashion-mnist":
        found = fashion_mnist.files(folder)
        for path, trouble in found.items():
            yield Check(source, "failed" if trouble else "ok", f"{path}: {trouble or 'the official file'}")
        if any(found.values()):
            return
    train: ImageSet | None = None
    for split in ("train", "validation", "test"):
        try:
            images = load_images(source, split, SourceOptions(data_dir=folder, skip_bad=True))
        except CnnlabError as error:
            yield Check(source, "failed", str(error))
            if split == "train":
                return
            continue
        if images is None:
            continue
        for trouble in images.skipped:
            yield Check(source, "failed", trouble)
        train = train or images
        if images is not train and (copies := len(shared(train.images, images.images))):
            yield Check(
                source,
                "note",
                f"{copies:,} {split} images are among the training images, pixel for pixel; cnnlab data duplicates "
                f"{source} names them",
            )
        counts = torch.bincount(images.labels, minlength=len(images.classes)).tolist()
        shape = " x ".join(map(str, images.images.shape[1:]))
        yield Check(
            source,
            "ok",
            f"{split}: {len(images):,} images, {shape}, {len(images.classes)} classes of {min(counts):,} to "
            f"{max(counts):,}; fingerprint {images.fingerprint()}",
        )
    if source.startswith(STORE):
        if intact(open_store(expand(source.removeprefix(STORE)))):
            yield Check(source, "ok", "its images, ids and labels are those that were prepared")
        else:
            yield Check(source, "failed", "it is not as it was prepared; delete it and prepare it again")


def _system(here: torch.device) -> Iterator[Check]:
    about = environment(here)
    size = f", {about['memory_gib']} GiB" if about["memory_gib"] else ""
    left = memory.free_memory()
    size += f", {left / 2**30:.1f} free" if left is not None else ""
    yield Check("system", "ok", f"{about['system']}, Python {about['python']}")
    yield Check(
        "processor", "ok", f"{about['processor']}, {about['cores']} cores for us{size}, {about['cpu_capability']}"
    )
    cuda = f", CUDA {about['cuda']}" if about["cuda"] else ""
    yield Check("device", "ok", f"{here} ({about['device_name']}){cuda}")
    try:
        check_compile(Recipe(compile="default"), here)
        yield Check("compiler", "ok", "torch.compile can be used")
    except CnnlabError as error:
        yield Check("compiler", "note", str(error))
    names = ("CNNLAB_DATA", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTORCH_ALLOC_CONF")
    settings = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    if settings:
        yield Check("environment", "note", ", ".join(settings))


def _packages() -> Iterator[Check]:
    try:
        wanted = metadata.requires("cnnlab") or []
        yield Check("cnnlab", "ok", f"{metadata.version('cnnlab')} in {Path(__file__).parents[1]}")
    except metadata.PackageNotFoundError:
        yield Check("cnnlab", "note", f"in {Path(__file__).parents[1]}, not installed: its packages are not checked")
        return
    there, extras = [], set()
    for line in wanted:
        name, least, below, extra = _requirement(line)
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            if extra:
                extras.add(extra)
            else:
                yield Check("packages", "failed", f"{name} is not there; install cnnlab again: pip install .")
            continue
        if _numbers(version) < _numbers(least):
            yield Check("packages", "failed", f"{name} {version} is older than {least}; pip install -U {name}")
        if below and _numbers(version) >= _numbers(below):
            yield Check("packages", "failed", f'{name} {version} is too new; pip install "{name}<{below}"')
        there.append(f"{name} {version}")
    yield Check("packages", "ok", ", ".join(sorted(set(there))))
    extras.discard("all")
    if extras:
        yield Check("extras", "note", f"not there, and needed only where asked for: {', '.join(sorted(extras))}")


def _requirement(line: str) -> tuple[str, str, str, str]:
    """`name<2,>=1.2; extra == "x"` -> (name, least version or "", first that is too new or "", extra or "")."""
    what, _, condition = line.partition(";")
    name = re.match(r"[\w.-]+", what.strip())
    least = re.search(r">=\s*([\w.]+)", what)
    below = re.search(r"<\s*([\w.]+)", what)
    extra = re.search(r"extra\s*==\s*['\"]([\w-]+)", condition)
    first, last, of = (found[1] if found else "" for found in (least, below, extra))
    return (name[0] if name else what.strip()), first, last, of


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version.partition("+")[0])[:3])


def _arithmetic(here: torch.device) -> Iterator[Check]:
    """A convolution in each precision against float64, and a training step twice."""
    found = []
    with reproducible(0, available_cores()):
        x, weight = torch.randn(8, 16, 24, 24), torch.randn(32, 16, 3, 3)
        exact = F.conv2d(x.double(), weight.double())
        for name, precision in PRECISIONS.items():
            if name == "float16" and here.type == "cpu":
                continue  # nobody would ask for it
            what, units = f"arithmetic, {name}", ""
            try:
                with autocast(here, precision):
                    answer = F.conv2d(x.to(here), weight.to(here)).double().cpu()
            except RuntimeError as error:
                found.append(Check(what, "note", f"not on this device: {reason(error)[:100]}"))
                continue
            if name == "bfloat16" and not has_bfloat16(here):
                units = "; no units for it here, so it is slow"
            error_share = float((answer - exact).abs().max() / exact.abs().max())
            state = "ok" if error_share < _TOLERANCE[name] else "failed"
            found.append(Check(what, state, f"a convolution is right to {error_share:.0e} of its largest value{units}"))
    yield from found
    first, second = _short_training(here), _short_training(here)
    same = all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    text = "the same bits twice" if same else "not the same bits twice"
    seconds = min(first[1], second[1])
    yield Check("training step", "ok" if same else "failed", f"{text}; {seconds * 1000:.1f} ms for 64 images, BN-LeNet")


def _short_training(here: torch.device) -> tuple[list[torch.Tensor], float]:
    """Weights after four steps of BN-LeNet on random images; seconds of the fastest step."""
    with reproducible(0, available_cores()):
        model = build_model("lenet-bn", num_classes=10, in_channels=1, image_size=28).to(here)
        optimizer = make_optimizer(model, Recipe(momentum=0.9))
        x, y = torch.rand(64, 1, 28, 28).to(here), torch.randint(10, (64,)).to(here)
        times = []
        for _ in range(4):
            began = time.perf_counter()
            train_step(model, optimizer, x, y)
            synchronize(here)
            times.append(time.perf_counter() - began)
        return [t.cpu() for t in model.state_dict().values()], min(times)


def _disk(what: str, path: Path, trouble: str) -> Check:
    """Can a file be written and locked at `path`, or in the nearest folder above it that there is; how much is free.

    trouble: the state where that cannot be.
    """
    near = next(p for p in (path, *path.parents) if p.is_dir())
    try:
        free = shutil.disk_usage(near).free
        with tempfile.TemporaryDirectory(prefix=".cnnlab-", dir=near) as trial, runs.locked(Path(trial)):
            write_atomic(Path(trial) / "file", b"cnnlab")
    except (OSError, CnnlabError) as error:
        return Check(what, trouble, f"cannot write into {near}: {reason(error)}")
    text = f"{path}, {free / 2**30:,.1f} GiB free"
    if free < _LITTLE:
        return Check(what, "note", f"{text}: little, where a checkpoint is written beside the last one")
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
            yield Check("runs", "note", f"{run.path} is not finished; go on with: cnnlab train --resume {run.path}")
