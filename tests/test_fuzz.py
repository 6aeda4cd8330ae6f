"""Every parser of untrusted bytes gets generated input: it succeeds, or fails with one line.

CI tries a few hundred inputs for each, always the same ones. CNNLAB_FUZZ=10 tries ten times as many, different each
time. `--fuzz-table docs/security.md` writes the counts into that page. `fuzzing.Trials` checks the properties.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import os
import random
import re
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from cnnlab import Recipe, train
from cnnlab.chapter.reproduce import resume_reproduction
from cnnlab.cli.kaggle import prepared_text
from cnnlab.cli.runs import run_list, run_rows
from cnnlab.competition import submission, work
from cnnlab.competition.grade import grade
from cnnlab.competition.labels import check_labels
from cnnlab.competition.layout import Layout
from cnnlab.competition.prepare_store import prepare_store
from cnnlab.d2l.hub import extract
from cnnlab.data import archives
from cnnlab.data.archives.base import MEMBER_LIMIT
from cnnlab.data.store import intact, open_store
from cnnlab.device.hardware import pick_device
from cnnlab.inspect.report import live_report
from cnnlab.io import text
from cnnlab.io.csv import quoted, read_header, read_table
from cnnlab.io.decode import Decoding, bombs_refused, decode, probe
from cnnlab.io.errors import CnnlabError
from cnnlab.io.files import digest, write_checked
from cnnlab.io.schema import check
from cnnlab.io.tables import to_json
from cnnlab.models import build_model
from cnnlab.recipe import SETTINGS
from cnnlab.training import checkpoint
from cnnlab.training.average import Average
from cnnlab.training.folders import check_name
from cnnlab.training.optim import make_optimizer
from cnnlab.training.progress import SCHEMA
from cnnlab.training.results import Result
from cnnlab.training.runs import list_runs, open_run
from cnnlab.training.series import open_series
from cnnlab.training.step import train_step
from fuzzing import Trials, changed, changes, correct_7z, correct_png, correct_tar, edited, edits, plain

py7zr = pytest.importorskip("py7zr")
MORE = int(os.environ.get("CNNLAB_FUZZ", "1"))
pytestmark = [pytest.mark.timeout(120 + 60 * MORE)]


def fuzz(count: int, *strategies: Any, shrink: bool = True) -> Callable[[Callable[..., None]], None]:
    """Run the decorated function on `count` draws of the strategies, always the same ones if CNNLAB_FUZZ=1."""
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    config = settings(max_examples=count * MORE, deadline=None, database=None, derandomize=MORE == 1, phases=phases,
                      suppress_health_check=list(HealthCheck))  # fmt: skip
    return lambda function: config(given(*strategies)(function))()


@pytest.fixture(scope="module")
def trial(request: pytest.FixtureRequest) -> Iterator[Trials]:
    """Count the inputs for the table of docs/security.md."""
    trials = Trials()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield trials
    if file := request.config.getoption("--fuzz-table"):
        before, mark, rest = file.read_text(encoding="utf-8").partition("<!-- fuzz -->\n")
        after = rest.partition("<!-- end of fuzz -->")[2]
        file.write_text(f"{before}{mark}{trials.table()}<!-- end of fuzz -->{after}", encoding="utf-8")


# Archives


def picture(kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (12, 9), **options: Any) -> bytes:
    rng = np.random.default_rng(0)
    if dtype := {"F": np.float32, "I;16": np.uint16}.get(mode):
        image = Image.fromarray((rng.random(size[::-1]) * 300).astype(dtype))
    else:
        image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).convert(mode)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def zipped(files: dict[str, bytes | str]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def packed(kind: str) -> bytes:
    files = {"train/1.png": picture(), "a/b/3.jpg": picture("JPEG"), "x.txt": b"?", "l" * 150 + "ü.png": picture()}
    out = io.BytesIO()
    if kind == ".zip":
        return zipped(files)
    if kind == ".7z":
        with py7zr.SevenZipFile(out, "w") as seven:
            seven.set_encoded_header_mode(False)
            for name, content in files.items():
                seven.writestr(content, name)
    else:
        with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.mark.parametrize("kind", [".7z", ".zip", ".tar.gz"])
def test_archives(trial: Trials, tmp_path: Path, kind: str) -> None:
    """Changed archives, some with corrected checksums."""
    good, path, out = packed(kind), tmp_path / f"a{kind}", tmp_path / "out"
    # the start of the member list, which holds the structure
    list_at = {".7z": 32 + int.from_bytes(good[12:20], "little"), ".zip": good.find(b"PK\1\2")}.get(kind, 0)

    @fuzz(140, changes, st.booleans())
    def run(drawn: list[Any], correct: bool) -> None:
        content = good[:list_at] + changed(good[list_at:], drawn) if correct else changed(good, drawn)
        if kind == ".7z" and correct:
            content = correct_7z(content)
        if kind == ".tar.gz":
            content = gzip.compress(correct_tar(content), 1)
            content = content if correct else changed(content, drawn)
        path.write_bytes(content)
        if kind != ".tar.gz":
            with trial(f"archive {kind}", tmp_path), closing(archives.open_archive(path)) as archive:
                for index, member in archive.read():
                    assert len(member) <= MEMBER_LIMIT
                    name = archive.members[index].name
                    assert not name.startswith("/")
                    assert ".." not in name.split("/")
        if kind != ".7z":
            shutil.rmtree(out, ignore_errors=True)
            with trial("archive unpacked", out):
                extract(path, out)


# Images


def images() -> dict[str, bytes]:
    frames = [Image.new("P", (9, 7), i) for i in (1, 5, 9)]
    moving = {"gif": io.BytesIO(), "webp": io.BytesIO()}
    for kind, out in moving.items():
        first, *rest = frames if kind == "gif" else [frame.convert("RGB") for frame in frames]
        first.save(out, kind, save_all=True, append_images=rest)
    exif = Image.Exif()
    exif[274] = 6
    found = {
        "png": picture("PNG", "RGBA"), "png 16": picture("PNG", "I;16"), "png p": picture("PNG", "P"),
        "png 1": picture("PNG", "1"), "jpeg": picture("JPEG", exif=exif), "jpeg cmyk": picture("JPEG", "CMYK"),
        "jpeg progressive": picture("JPEG", progressive=True), **{kind: out.getvalue() for kind, out in moving.items()},
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


def test_images(trial: Trials, tmp_path: Path) -> None:
    good = images()
    for content in good.values():  # the unchanged images are valid; this also loads the decoders
        assert decode("a", Decoding(3, 8, "pad"), content).shape == (3, 8, 8)
    fits = st.sampled_from(["pad", "crop", "stretch"])

    @fuzz(300, st.sampled_from(sorted(good)), changes, st.booleans(), st.sampled_from([1, 3]), fits)
    def run(name: str, drawn: list[Any], correct: bool, channels: int, fit: str) -> None:
        content = changed(good[name], drawn)
        content = correct_png(content) if correct and name.startswith("png") else content
        with trial(f"image, {name.split()[0]}", tmp_path), bombs_refused():
            probe("a", content)
            pixels = decode("a", Decoding(channels, 16, fit), content)
            assert (pixels.shape, pixels.dtype) == ((channels, 16, 16), np.uint8)


# Tables


fields = st.one_of(
    st.sampled_from(["", "1", "cat", "=1+1", "@x", '"', '""', '"a', 'a"b', "\n", "\r", "\r\n", ",", ";", "\t", "\ufeff",
                     "\0", "\x1b[2J", "\x9b", "é", "猫", "1.png", "train/1.png", "a" * 300, " 7 "]),
    st.text(max_size=8),
)  # fmt: skip
heads = ["id", "label", "id,label", "label,id", "id,label,x", "id;label", '"id",label', "\ufeffid,label"]


def test_tables(trial: Trials, tmp_path: Path) -> None:
    class_folder, answers, labels = tmp_path / "class", tmp_path / "answers.csv", tmp_path / "labels.csv"
    for name in ("images", "class"):
        (tmp_path / name).mkdir()
    for name in ("1", "cat"):
        (tmp_path / "images" / f"{name}.png").write_bytes(b"")
    labels.write_text("id,label\n1,cat\n2,dog\n")

    @fuzz(120, st.sampled_from(heads), st.lists(st.lists(fields, max_size=4), max_size=6), changes, st.booleans(),
          st.sampled_from(["\n", "\r\n", "\r"]), st.sampled_from(["utf-8", "utf-16", "latin-1", "utf-8-sig"]))  # fmt: skip
    def run(head: str, rows: list[list[str]], drawn: list[Any], damaged: bool, end: str, encoding: str) -> None:
        content = end.join([head, *map(",".join, rows)]).encode(encoding, "replace")
        content = changed(content, drawn) if damaged else content
        with trial("table", tmp_path):
            table = read_table(io.BytesIO(content), "a.csv", repeats=True)
            assert len(table.ids) == len(table.values)
            assert not any("\n" in cell or "\x1b" in cell for cell in (*table.ids, *table.values))
        with trial("header of a table", tmp_path):
            read_header(io.BytesIO(content), "a.csv")
        for path in (answers, class_folder / "ann.csv"):
            path.write_bytes(content)
        with trial("submission", tmp_path):
            str(submission.score(answers, labels))
        with trial("class of submissions", tmp_path):
            found = grade(class_folder, labels, roster=answers if damaged else None)
            assert all(row.note.isprintable() for row in found.rows)
            list(csv.reader(found.to_csv().splitlines(), strict=True))
        with trial("labels against images", tmp_path):
            str(check_labels(answers, tmp_path / "images"))


# Recipes and names


def test_recipes(trial: Trials, tmp_path: Path) -> None:
    @fuzz(250, edits, st.lists(st.tuples(st.sampled_from(sorted(SETTINGS)), st.text(max_size=12)), max_size=2))
    def run(drawn: list[Any], chosen: list[tuple[str, str]]) -> None:
        values = edited(Recipe().to_dict(), drawn)
        assume(isinstance(values, dict))
        with trial("recipe", tmp_path):
            recipe = Recipe.from_dict(values)
            assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
        with trial("recipe", tmp_path):
            Recipe().with_settings([f"{key}={value}" for key, value in chosen])


def test_names_and_texts(trial: Trials, tmp_path: Path) -> None:
    @fuzz(250, st.one_of(st.text(), plain.map(str)))
    def run(name: str) -> None:
        with trial("run name", tmp_path):
            check_name(name)
            assert re.fullmatch(r"[\w.-]{1,100}", name, re.ASCII)
            assert name not in (".", "..")
            assert name.split(".")[0].lower() not in ("con", "nul", "aux", "prn", "com1")
        for printed in (text.escape(name), quoted(name), text.escape(text.markdown(name)), str(CnnlabError(name))):
            assert not re.search(
                r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069\ud800-\udfff]", printed
            )
        assert json.loads(text.escape_lines(to_json([name]))) == [name]
        assert not re.search(r"[<>|]", text.markdown(name))
        assert not re.match(r"\s*[=+@-]", text.cell(name)) or re.fullmatch(r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?", name)


# Runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's folder."""
    recipe = Recipe(epochs=2, limit=60, batch_size=20, image_size=16)
    return train(recipe, runs_dir=tmp_path_factory.mktemp("runs"), name="run", threads=1, progress="none").run.path


def rewrite(path: Path, value: Any, drawn: list[Any]) -> None:
    """Edit a JSON value and write it with correct checksums. For metrics.jsonl it is a list of rows."""
    try:
        value = edited(value, drawn)
        if path.name == "metrics.jsonl":
            rows = [{**row, "check": digest(row)[:16]} if isinstance(row, dict) else row
                    for row in (value if isinstance(value, list) else [value])]  # fmt: skip
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif path.name in ("run.json", "summary.json", "environment.json", "seeds.json") and isinstance(value, dict):
            write_checked(path, value)
        else:
            path.write_text(json.dumps(value))
        if path.name == "recipe.json":  # run.json holds its digest
            info = json.loads(path.with_name("run.json").read_text())
            del info["blake2b"]
            write_checked(path.with_name("run.json"), {**info, "recipes": [digest(value)]})
    except (RecursionError, OSError):
        assume(False)


def read(path: Path) -> Any:
    """Return the values in a file of a run, without the checksums."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.suffix == ".jsonl" else None
    value = json.loads(path.read_text()) if lines is None else lines
    for row in value if isinstance(value, list) else [value]:
        row.pop("check" if lines else "blake2b", None)
    return value


@pytest.mark.parametrize("name", ["run.json", "recipe.json", "summary.json", "environment.json", "metrics.jsonl"])
def test_run_folders(trial: Trials, tmp_path: Path, finished: Path, name: str) -> None:
    """Everything that the command prints of a run without its data."""
    run_path = shutil.copytree(finished, tmp_path / "run")

    def print_all() -> None:
        run = open_run(run_path)
        summary = run.summary()
        rows = run_rows([run])
        for printed in (text.escape_lines(to_json(rows)), text.escape_lines(run_list([run, run], Path("runs"), True))):
            assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", printed)
        if summary is not None:
            text.escape_lines(str(Result(run, summary)))
        assert live_report([run]).markdown

    @fuzz(80, edits, changes, st.integers(0, 4))
    def run(drawn: list[Any], damage: list[Any], how: int) -> None:
        for file in (name, "run.json"):
            shutil.copy(finished / file, run_path)
        if how == 0:
            (run_path / name).write_bytes(changed((finished / name).read_bytes(), damage))
        else:
            rewrite(run_path / name, read(run_path / name), drawn)
        with trial(f"run folder, {name}", tmp_path):
            print_all()
        damaged: list[str] = []
        with trial(f"run folder, {name}", tmp_path):
            list_runs(tmp_path, damaged.append)
        assert all(line.isprintable() for line in damaged)


@pytest.mark.parametrize("name", ["run.json", "recipe.json", "environment.json", "best.safetensors"])
def test_a_hostile_run_through_the_command(
    trial: Trials, tmp_path: Path, finished: Path, name: str, cnnlab: Callable[..., Any]
) -> None:
    """The command `eval`, in this process, from the run's folder to the figures."""
    path = shutil.copytree(finished, tmp_path / "run") / name

    @fuzz(12, edits, changes, st.booleans(), shrink=False)
    def run(drawn: list[Any], damage: list[Any], structured: bool) -> None:
        for file in ("run.json", name):
            shutil.copy(finished / file, path.parent)
        if structured and name.endswith(".json"):
            rewrite(path, read(path), drawn)
        else:
            path.write_bytes(changed(path.read_bytes(), damage))
        with trial("eval of a run folder", tmp_path):
            answer = cnnlab("eval", "run", "--split", "validation", "--json", cwd=tmp_path)
        if answer.returncode:
            assert answer.returncode == 2, answer
            assert len(answer.stderr.splitlines()) == 1, answer.stderr
        else:
            json.loads(answer.stdout)


def test_folders_of_seeds_reproductions_and_competitions(trial: Trials, tmp_path: Path) -> None:
    place = tmp_path / "work"
    base = {
        "seeds.json": {"format": "cnnlab seeds 1", "recipe": Recipe().to_dict(), "seeds": [0, 1]},
        "competition.json": {"format": "cnnlab competition 1", "folder": "x", "store": "y", "fingerprint": "z",
                             "layout": vars(Layout())},
        "reproduction.json": {"format": "cnnlab reproduction 1", "recipes": {}, "seeds": 1, "methods": [], "limit": 0,
                              "data_dir": "x", "device": "cpu", "threads": 1, "estimated_seconds": {}},
    }  # fmt: skip
    openers: dict[str, Callable[[], Any]] = {
        "seeds.json": lambda: open_series(place),
        "competition.json": lambda: work.open_competition("work", tmp_path),
        "reproduction.json": lambda: resume_reproduction(place, progress="none"),
    }

    @fuzz(200, st.sampled_from(sorted(base)), edits)
    def run(name: str, drawn: list[Any]) -> None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        rewrite(place / name, json.loads(json.dumps(base[name])), drawn)
        with trial(name, place):
            openers[name]()


# Weights and checkpoints


@pytest.mark.parametrize("kind", ["sgd", "adamw", "muon"])
def test_checkpoints(trial: Trials, tmp_path: Path, kind: str) -> None:
    """A checkpoint with a correct checksum is refused, or the training continues from it, whatever it holds."""
    path, device = tmp_path / "checkpoint.safetensors", pick_device("cpu")
    recipe = Recipe(optimizer=kind, average="ema", momentum=0.9 if kind != "adamw" else 0.0)
    x, y = torch.rand(4, 1, 28, 28), torch.tensor([0, 1, 2, 0])

    def fresh() -> tuple[torch.nn.Module, torch.optim.Optimizer, Average]:
        torch.manual_seed(0)
        model = build_model("lenet", num_classes=3, in_channels=1, image_size=28)
        return model, make_optimizer(model, recipe), Average(model, recipe)

    model, optimizer, average = fresh()
    train_step(model, optimizer, x, y)
    state = bytes(torch.Generator().get_state().tolist()).hex()
    position = {"steps": 1, "skipped": 0, "images": 4, "sums": [1.0, 2.0], "train_seconds": 0.1, "compute_seconds": 0.1,
                "batches": {"done": 1, "kind": "cpu", "host": state, "here": ""}}  # fmt: skip
    progress = {"rows": [], "best": [0.1], "best_epoch": 1, "stopped": False, "position": position, "scaler": None}
    checkpoint.save_checkpoint(path, model, optimizer, device, progress, average)
    good, values = checkpoint._read(path)
    types = [
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int8,
        torch.int64,
        torch.uint8,
        torch.bool,
        torch.complex64,
    ]

    @fuzz(25, edits, st.sampled_from(sorted(good)), st.sampled_from(["", "type", "shape", "drop", "nan", "name"]),
          st.sampled_from(types), st.booleans())  # fmt: skip
    def run(drawn: list[Any], name: str, how: str, dtype: torch.dtype, edit: bool) -> None:
        tensors, tensor = dict(good), good[name]
        if how == "type":
            tensors[name] = tensor.to(dtype)
        elif how == "shape":
            tensors[name] = tensor.flatten()[: 1 + tensor.numel() // 2]
        elif how == "drop":
            del tensors[name]
        elif how == "nan" and tensor.is_floating_point():
            tensors[name] = torch.full_like(tensor, float("nan"))
        elif how == "name":
            tensors[f"{name}.more"] = tensor.clone()
        try:
            copy = json.loads(json.dumps(values))
            checkpoint._write(path, tensors, edited(copy, drawn) if edit else copy)
        except (RecursionError, KeyError, ValueError):  # not even an attacker could write this
            assume(False)
        before = np.random.get_state()
        model, optimizer, average = fresh()
        try:
            with trial(f"checkpoint, {kind}", tmp_path):
                found = checkpoint.load_checkpoint(path, model, optimizer, device, average)
                check(path, found, {**SCHEMA, "rows": [{}]})
                train_step(model, optimizer, x, y)
                average.after_step(0)
                np.random.rand(700)  # use each random generator
                random.random()
                torch.rand(700)
        finally:
            np.random.set_state(before)


@st.composite
def headers(draw: Any) -> bytes:
    """Draw a safetensors file: a header, valid or nearly so, and some bytes."""
    dtypes = st.sampled_from(["F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "C64", "F4", "F6_E2M3", "X", ""])
    numbers = st.one_of(st.integers(0, 40), st.sampled_from([2**31, 2**62, 2**63, 2**64 - 1, -1, 10**30, 1.5]))
    entries = st.tuples(st.text(max_size=6), dtypes, st.lists(numbers, max_size=4), numbers, numbers)
    values: dict[str, Any] = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        for name, dtype, shape, begin, end in draw(st.lists(entries, max_size=4))
    }
    values["__metadata__"] = {
        "cnnlab": draw(st.sampled_from(["", "{}", '{"values": {}, "blake2b": "x"}', "[" * 5000, "1"]))
    }
    content = json.dumps(values).encode()
    length = draw(st.one_of(st.just(len(content)), st.integers(0, 300), st.sampled_from([2**32, 2**63, 2**64 - 1])))
    return struct.pack("<Q", length) + content + bytes(draw(st.integers(0, 60)))


def test_weights(trial: Trials, tmp_path: Path) -> None:
    """Only the weights that were saved may be accepted."""
    path, model = tmp_path / "w.safetensors", build_model("lenet", num_classes=3, in_channels=1, image_size=28)
    checkpoint.save_weights(path, model)
    good, whole = path.read_bytes(), {k: v.clone() for k, v in model.state_dict().items()}

    @fuzz(200, headers(), changes, st.booleans())
    def run(header: bytes, drawn: list[Any], invented: bool) -> None:
        path.write_bytes(header if invented else changed(good, drawn))
        with trial("weights", tmp_path):
            checkpoint.check_weights(path, model)
        with trial("weights", tmp_path):
            checkpoint.load_weights(path, model)
            same = all(torch.equal(v, whole[k]) for k, v in model.state_dict().items())
            assert same or path.read_bytes() == good


# Competitions


def competition_zip() -> bytes:
    """Return a competition in one zip: tables, a folder of images, an archive of images."""
    image = picture("PNG", "L", (5, 5))
    return zipped({
        "trainLabels.csv": "id,label\n0,a\n1,b\n2,a\n", "sampleSubmission.csv": "id,label\n0,a\n1,a\n",
        **{f"train/{i}.png": image for i in range(3)}, "test.zip": zipped({f"test/{i}.png": image for i in range(2)}),
    })  # fmt: skip


def try_store(trial: Trials, place: Path) -> None:
    """Check a store as a training would."""
    with trial("store", place):
        store = open_store(place)
        intact(store)
        torch.bincount(store.train.labels, minlength=len(store.train.classes))
        store.train.fingerprint()
        text.escape_lines(prepared_text(SimpleNamespace(open_store=lambda: store)))  # type: ignore[arg-type]


def test_competitions(trial: Trials, tmp_path: Path) -> None:
    good, path, store = competition_zip(), tmp_path / "competition.zip", tmp_path / "store"
    list_at = good.rindex(b"PK\1\2", 0, good.rindex(b"trainLabels.csv"))

    @fuzz(60, changes, st.booleans())
    def run(drawn: list[Any], listed: bool) -> None:
        path.write_bytes(good[:list_at] + changed(good[list_at:], drawn) if listed else changed(good, drawn))
        shutil.rmtree(store, ignore_errors=True)
        with trial("competition's zip", tmp_path):
            prepare_store(path, store=store, workers=1)
            assert {entry.name for entry in tmp_path.iterdir()} <= {path.name, "store", "store.lock"}
        if store.exists():
            try_store(trial, store)


def test_stores(trial: Trials, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(competition_zip())
    place = prepare_store(tmp_path / "a.zip", store=tmp_path / "store", workers=1).path
    good = {name: (place / name).read_bytes() for name in ("store.json", "train.npy", "test.npy")}

    @fuzz(150, st.sampled_from(sorted(good)), edits, changes, st.integers(0, 3))
    def run(name: str, drawn: list[Any], damage: list[Any], how: int) -> None:
        for other, content in good.items():
            (place / other).write_bytes(content)
        (place / name).write_bytes(changed(good[name], damage))
        if name == "store.json" and how:
            with contextlib.suppress(RecursionError):
                (place / name).write_text(json.dumps(edited(json.loads(good[name]), drawn)))
        elif how == 1:
            np.savez(place / "other.npz", a=np.zeros(3))
            (place / "other.npz").replace(place / name)
        elif how == 2:
            np.save(place / name, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        try_store(trial, place)
