"""The parsers of untrusted bytes: small valid files, and what each trial checks.

tests/test_fuzz.py calls them with inputs from hypothesis, scripts/fuzz.py with inputs from atheris.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
import shutil
import tarfile
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import py7zr
import torch
from PIL import Image, features

from cnnlab import Recipe, train
from cnnlab.cli.kaggle import prepared_text
from cnnlab.cli.runs import run_list, run_rows
from cnnlab.competition import submission
from cnnlab.competition.grade import grade
from cnnlab.competition.labels import check_labels
from cnnlab.competition.prepare_store import prepare_store
from cnnlab.d2l.hub import extract
from cnnlab.data import archives, fashion_mnist
from cnnlab.data.archives.base import MEMBER_LIMIT
from cnnlab.data.store import Store, intact, open_store
from cnnlab.device.hardware import pick_device
from cnnlab.io import text as escaping
from cnnlab.io.csv import read_header, read_table
from cnnlab.io.decode import bombs_refused, decode, probe
from cnnlab.io.files import digest, write_checked
from cnnlab.io.schema import check
from cnnlab.io.tables import to_json
from cnnlab.models import build_model
from cnnlab.training import checkpoint
from cnnlab.training.average import Average
from cnnlab.training.optim import make_optimizer
from cnnlab.training.progress import SCHEMA
from cnnlab.training.results import Result
from cnnlab.training.runs import list_runs, open_run
from cnnlab.training.step import train_step
from fuzzing import Trials

# Archives


def picture(kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (12, 9), **options: Any) -> bytes:
    rng = np.random.default_rng(0)
    bands = len(Image.new(mode, (1, 1)).getbands())
    if mode in ("F", "I", "I;16"):
        kinds = {"F": np.float32, "I": np.int32, "I;16": np.uint16}
        image = Image.fromarray((rng.random(size[::-1]) * 300).astype(kinds[mode]))
    else:
        shape = (*size[::-1], bands) if bands > 1 else size[::-1]
        image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).convert(mode)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


FILES = [
    ("train/1.png", picture()),
    ("train/2.png", picture("PNG", "L")),
    ("a/b/3.jpg", picture("JPEG")),
    ("x.txt", b"?"),
]


def packed(kind: str) -> bytes:
    out = io.BytesIO()
    if kind == ".7z":
        with py7zr.SevenZipFile(out, "w") as seven:
            seven.set_encoded_header_mode(False)
            for name, content in FILES:
                seven.writestr(content, name)
    elif kind == ".zip":
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, content in FILES:
                zipped.writestr(name, content)
    else:
        form = tarfile.PAX_FORMAT if kind == ".tar" else tarfile.GNU_FORMAT
        with tarfile.open(fileobj=out, mode="w", format=form) as tar:
            for name, content in [*FILES, ("l" * 150 + "ü.png", picture())]:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def try_archive(trial: Trials, path: Path) -> None:
    """List and read a zip or 7z; unpack a zip or tar into `out` beside it, as d2l.download_extract does."""
    kind = archives.archive_ending(path.name)
    if kind:
        with trial(f"archive {kind}", path.parent), closing(archives.open_archive(path)) as archive:
            for index, member in archive.read():
                assert len(member) <= MEMBER_LIMIT
                name = archive.members[index].name
                assert not name.startswith("/")
                assert ".." not in name.split("/")
    if kind != ".7z":
        shutil.rmtree(path.parent / "out", ignore_errors=True)
        with trial("archive unpacked", path.parent / "out"):
            extract(path, path.parent / "out")


# Images


def images() -> dict[str, bytes]:
    gif, webp = io.BytesIO(), io.BytesIO()
    frames = [Image.new("P", (9, 7), i) for i in (1, 5, 9)]
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:])
    coloured = [f.convert("RGB") for f in frames]
    coloured[0].save(webp, "WEBP", save_all=True, append_images=coloured[1:])
    exif = Image.Exif()
    exif[274] = 6
    found = {
        "png": picture("PNG", "RGBA"), "png 16": picture("PNG", "I;16"), "png p": picture("PNG", "P"),
        "png 1": picture("PNG", "1"), "jpeg": picture("JPEG", exif=exif), "jpeg cmyk": picture("JPEG", "CMYK"),
        "jpeg progressive": picture("JPEG", progressive=True), "gif": gif.getvalue(), "webp": webp.getvalue(),
        "webp 1": picture("WEBP", "RGBA", lossless=True), "bmp": picture("BMP"), "bmp p": picture("BMP", "P"),
        "tiff": picture("TIFF"), "tiff f": picture("TIFF", "F"), "tiff lzw": picture("TIFF", compression="tiff_lzw"),
        "tiff deflate": picture("TIFF", "L", compression="tiff_deflate"), "tiff g4": picture("TIFF", "1", compression="group4"),
        "ppm": picture("PPM"), "pgm": picture("PPM", "L"), "pfm": picture("PPM", "F"), "plain": b"P3 2 2 255 " + b"7 " * 12,
        "ico": picture("ICO", "RGBA", sizes=[(9, 9)]), "pcx": picture("PCX"), "sgi": picture("SGI"), "tga": picture("TGA"),
        "tga rle": picture("TGA", compression="tga_rle"), "dib": picture("DIB"),
    }  # fmt: skip
    if features.check("jpg_2000"):
        found["jp2"] = picture("JPEG2000")
    if features.check("avif"):
        found["avif"] = picture("AVIF")
    return found


def try_image(trial: Trials, folder: Path, name: str, content: bytes, channels: int, fit: str) -> None:
    """Decode it to pixels of the right shape."""
    with trial(f"image, {name}", folder), bombs_refused():
        probe("a", content)
        found = decode("a", channels, 16, fit, content)
        assert found.shape == (channels, 16, 16)
        assert found.dtype == np.uint8


# Tables


def for_tables(folder: Path) -> None:
    """Write the images and labels that a table in `folder` is compared with."""
    (folder / "images").mkdir(parents=True)
    for name in ("1", "cat"):
        (folder / "images" / f"{name}.png").write_bytes(b"")
    (folder / "labels.csv").write_text("id,label\n1,cat\n2,dog\n")


def try_table(trial: Trials, folder: Path, content: bytes) -> None:
    """Read it as a table."""
    with trial("table", folder):
        table = read_table(io.BytesIO(content), "a.csv", repeats=True)
        assert len(table.ids) == len(table.values)
        assert not any("\n" in text or "\x1b" in text for text in (*table.ids, *table.values))
    with trial("header of a table", folder):
        read_header(io.BytesIO(content), "a.csv")


def try_submission(trial: Trials, folder: Path, content: bytes, roster: bool) -> None:
    """Read it as one submission, as one of a class (and its roster), and as labels of images."""
    answers, labels = folder / "answers.csv", folder / "labels.csv"
    answers.write_bytes(content)
    with trial("submission", folder):
        str(submission.score(answers, labels))
    room = folder / "class"
    shutil.rmtree(room, ignore_errors=True)
    room.mkdir()
    (room / "ann.csv").write_bytes(content)
    with trial("class of submissions", folder):
        found = grade(room, labels, roster=answers if roster else None)
        assert all(row.note.isprintable() for row in found.rows)
        list(csv.reader(found.to_csv().splitlines(), strict=True))
    with trial("labels against images", folder):
        str(check_labels(answers, folder / "images"))


IDX = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 3]) + bytes(18)


def try_idx(trial: Trials, path: Path) -> None:
    """Read it as two images of 3 x 3 pixels."""
    with trial("IDX file", path.parent):
        assert fashion_mnist._read_idx(path, (2, 3, 3)).shape == (2, 3, 3)


# Recipes and runs


def try_recipe(trial: Trials, folder: Path, values: dict[str, Any]) -> None:
    """A recipe that is accepted survives a round trip through JSON."""
    with trial("recipe", folder):
        recipe = Recipe.from_dict(values)
        assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


RUN_FILES = ["run.json", "recipe.json", "summary.json", "environment.json", "metrics.jsonl"]


def finish_run(folder: Path) -> Path:
    """Train a small run in `folder`; return its own folder."""
    recipe = Recipe(epochs=2, limit=60, batch_size=20, image_size=16)
    return train(recipe, runs_dir=folder, name="run", threads=1, progress="none").run.path


def write_run_file(path: Path, value: Any) -> None:
    """Write a JSON file of a run, of seeds and so on, with right checksums; for metrics.jsonl, a list of rows.

    Raise RecursionError if the value is nested too deeply.
    """
    if path.name == "metrics.jsonl":
        rows = [{k: v for k, v in row.items() if k != "check"} if isinstance(row, dict) else row
                for row in (value if isinstance(value, list) else [value])]  # fmt: skip
        rows = [{**row, "check": digest(row)[:16]} if isinstance(row, dict) else row for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    value = {k: v for k, v in value.items() if k != "blake2b"} if isinstance(value, dict) else value
    if path.name in ("run.json", "summary.json", "environment.json", "seeds.json") and isinstance(value, dict):
        write_checked(path, value)
    else:
        path.write_text(json.dumps(value))
    if path.name == "recipe.json":  # run.json holds its digest
        info = json.loads(path.with_name("run.json").read_text())
        del info["blake2b"]
        write_checked(path.with_name("run.json"), {**info, "recipes": [digest(value)]})


def print_all(path: Path) -> None:
    """Format everything that the command prints about a run without its data."""
    run = open_run(path)
    summary = run.summary()
    rows = run_rows([run])
    for text in (
        escaping.escape_lines(to_json(rows)),
        escaping.escape_lines(run_list([run, run], Path("runs"), True)),
    ):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    json.loads(escaping.escape_lines(to_json(rows)))
    if summary is not None:
        escaping.escape_lines(str(Result(run, summary)))


def try_run(trial: Trials, place: Path, name: str) -> None:
    """Print the run in `place`/run, whose file `name` has been changed."""
    with trial(f"run folder, {name}", place):
        print_all(place / "run")
    damaged: list[str] = []
    with trial(f"run folder, {name}", place):
        list_runs(place, damaged.append)
    assert all(text.isprintable() for text in damaged)


# Weights and checkpoints


class Training:
    """A small training with a checkpoint at `path`; continues from whatever is there later."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind = path, kind
        self._recipe = Recipe(optimizer=kind, average="ema", momentum=0.9 if kind != "adamw" else 0.0)
        self._device = pick_device("cpu")
        self._x, self._y = torch.rand(4, 1, 28, 28), torch.tensor([0, 1, 2, 0])
        model, optimizer, average = self._fresh()
        train_step(model, optimizer, self._x, self._y)
        generator = torch.Generator()
        batches = {"done": 1, "kind": "cpu", "host": bytes(generator.get_state().tolist()).hex(), "here": ""}
        part = {"steps": 1, "skipped": 0, "images": 4, "sums": [1.0, 2.0], "train_seconds": 0.1,
                "compute_seconds": 0.1, "batches": batches}  # fmt: skip
        progress = {"rows": [], "best": [0.1], "best_epoch": 1, "stopped": False, "position": part, "scaler": None}
        checkpoint.save_checkpoint(path, model, optimizer, self._device, progress, average)

    def _fresh(self) -> tuple[torch.nn.Module, torch.optim.Optimizer, Average]:
        torch.manual_seed(0)
        model = build_model("lenet", num_classes=3, in_channels=1, image_size=28)
        return model, make_optimizer(model, self._recipe), Average(model, self._recipe)

    def go_on(self, trial: Trials) -> None:
        """Load the checkpoint, make one step and use every random generator."""
        state = np.random.get_state()
        model, optimizer, average = self._fresh()
        try:
            with trial(f"checkpoint, {self.kind}", self.path.parent):
                progress = checkpoint.load_checkpoint(self.path, model, optimizer, self._device, average)
                check(self.path, progress, {**SCHEMA, "rows": [{}]})
                train_step(model, optimizer, self._x, self._y)
                average.after_step(0)
                np.random.rand(700)
                random.random()
                torch.rand(700)
        finally:
            np.random.set_state(state)


class Weights:
    """A small network with its weights at `path`; loads whatever is there later."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._model = build_model("lenet", num_classes=3, in_channels=1, image_size=28)
        checkpoint.save_weights(path, self._model)
        self.good = path.read_bytes()
        self._whole = {k: v.clone() for k, v in self._model.state_dict().items()}

    def take(self, trial: Trials) -> None:
        """Load the file: only the saved weights may be accepted."""
        with trial("weights", self.path.parent):
            checkpoint.check_weights(self.path, self._model)
        with trial("weights", self.path.parent):
            checkpoint.load_weights(self.path, self._model)
            same = all(torch.equal(v, self._whole[k]) for k, v in self._model.state_dict().items())
            assert same or self.path.read_bytes() == self.good


# Stores


class Prepared:
    """What `cnnlab kaggle prepare` prints about."""

    def __init__(self, store: Store) -> None:
        self.images = lambda: store


def make_store(folder: Path) -> Path:
    """Prepare a store of six small images."""
    source = folder / "competition"
    for part, count in (("train", 4), ("test", 2)):
        (source / part).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (5, 5), 40 * i).save(source / part / f"{i}.png")
    (source / "trainLabels.csv").write_text("id,label\n0,a\n1,b\n2,a\n3,b\n")
    (source / "sampleSubmission.csv").write_text("id,label\n0,a\n1,a\n")
    prepare_store(source, store=folder / "store", workers=1)
    return folder / "store"


def competition_zip() -> bytes:
    """Return a competition in one zip: tables, a folder of images, an archive of images."""
    nested, whole = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(nested, "w") as zipped:
        for i in range(2):
            zipped.writestr(f"test/{i}.png", picture("PNG", "L", (5, 5)))
    with zipfile.ZipFile(whole, "w") as zipped:
        zipped.writestr("trainLabels.csv", "id,label\n0,a\n1,b\n")
        zipped.writestr("sampleSubmission.csv", "id,label\n0,a\n1,a\n")
        for i in range(2):
            zipped.writestr(f"train/{i}.png", picture("PNG", "L", (5, 5)))
        zipped.writestr("test.zip", nested.getvalue())
    return whole.getvalue()


def try_competition(trial: Trials, path: Path) -> None:
    """Prepare a competition's zip into `store` beside it."""
    store = path.parent / "store"
    shutil.rmtree(store, ignore_errors=True)
    with trial("competition's zip", path.parent):
        prepare_store(path, store=store, workers=1)
        assert {entry.name for entry in path.parent.iterdir()} <= {path.name, "store", "store.lock"}
    if store.exists():
        try_store(trial, store)


def try_store(trial: Trials, place: Path) -> None:
    """Check a store as before a training."""
    with trial("store", place):
        store = open_store(place)
        intact(store)
        torch.bincount(store.train.labels, minlength=len(store.train.classes))
        store.train.fingerprint()
        escaping.escape_lines(prepared_text(Prepared(store)))  # type: ignore[arg-type]
