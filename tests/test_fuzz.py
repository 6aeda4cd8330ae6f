"""Every parser of bytes from elsewhere, given what nobody meant: it succeeds, or says in one line why it does not.

CI tries a few hundred inputs of each, always the same. CNNLAB_FUZZ=50 tries fifty times as many, others each time;
`--fuzz-table docs/security.md` writes down how many. The properties are those of `fuzzing.Trials`.
"""

from __future__ import annotations

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
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from cnnlab import Recipe, checkpoint, safety, tables, train
from cnnlab.competition import submission, work
from cnnlab.csvs import quoted, read_header, read_table
from cnnlab.data import archives, fashion_mnist
from cnnlab.data.images import bombs_refused, decode, probe
from cnnlab.data.store import Layout, Store, intact, open_store, prepare
from cnnlab.device import pick_device
from cnnlab.errors import CnnlabError
from cnnlab.files import digest, write_checked
from cnnlab.forms import check
from cnnlab.grade import grade
from cnnlab.labels import check_labels
from cnnlab.models import build_model
from cnnlab.optim import Average, make_optimizer
from cnnlab.recipe import SETTINGS
from cnnlab.reproduction import resume_reproduction
from cnnlab.results import Result
from cnnlab.runs import check_name, list_runs, open_run, open_seeds
from cnnlab.step import train_step
from cnnlab.tables_kaggle import prepared
from cnnlab.training import _STATE
from fuzzing import Trials, changed, changes, edited, edits, plain, right_7z, right_png, right_tar

py7zr = pytest.importorskip("py7zr")

MORE = int(os.environ.get("CNNLAB_FUZZ", "1"))
pytestmark = [pytest.mark.timeout(120 + 60 * MORE)]


def tries(count: int, *, slow: bool = False) -> Callable[[Any], Any]:
    """So many examples: always the same, or, where more are asked for, others each time. slow: none is made smaller."""
    phases = [Phase.generate] if slow else [Phase.generate, Phase.shrink]
    return settings(
        max_examples=count * MORE, deadline=None, database=None, derandomize=MORE == 1, phases=phases,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trial(request: pytest.FixtureRequest) -> Iterator[Trials]:
    """Counts what was tried, for the table of docs/security.md."""
    trials = Trials()
    yield trials
    file = request.config.getoption("--fuzz-table")
    if file:
        before, mark, rest = file.read_text(encoding="utf-8").partition("<!-- fuzz -->\n")
        after = rest.partition("<!-- end of fuzz -->")[2]
        file.write_text(f"{before}{mark}{trials.table()}<!-- end of fuzz -->{after}", encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


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


@pytest.mark.parametrize("kind", [".7z", ".zip", ".tar", ".tar.gz"])
@pytest.mark.parametrize("mended", [False, True], ids=["as it is", "checksums mended"])
def test_archives(trial: Trials, folder: Path, kind: str, mended: bool) -> None:
    good = packed(kind)
    (folder / "archives").mkdir(exist_ok=True)
    path = folder / "archives" / f"a{kind}"
    list_at = 32 + int.from_bytes(good[12:20], "little") if kind == ".7z" else 0

    @tries(70)
    @given(changes)
    def run(made: list[Any]) -> None:
        if kind == ".7z" and mended:  # its list of members, which is where the structure is
            content = right_7z(good[:list_at] + changed(good[list_at:], made))
        elif kind == ".zip" and mended:
            at = good.index(b"PK\1\2")
            content = good[:at] + changed(good[at:], made)
        elif kind == ".tar.gz":
            content = gzip.compress(right_tar(changed(good, made)), 1)
            content = content if mended else changed(content, made)
        else:
            content = changed(good, made)
            content = right_tar(content) if mended else content
        path.write_bytes(content)
        with trial(f"archive {kind}", path.parent), closing(archives.open_archive(path)) as archive:
            for index, member in archive.read():
                assert len(member) <= archives.MEMBER_LIMIT
                name = archive.members[index].name
                assert not name.startswith("/")
                assert ".." not in name.split("/")
        if kind != ".7z":
            shutil.rmtree(path.parent / "out", ignore_errors=True)
            with trial("archive unpacked", path.parent / "out"):
                archives.unpack(path, path.parent / "out")

    run()


# Images


def seeds() -> dict[str, bytes]:
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


def test_images(trial: Trials, folder: Path) -> None:
    good = seeds()
    for content in good.values():  # all are images, and what decodes them is loaded
        assert decode("a", 3, 8, "pad", content).shape == (3, 8, 8)

    @tries(1200)
    @given(
        st.sampled_from(sorted(good)),
        changes,
        st.booleans(),
        st.sampled_from([1, 3]),
        st.sampled_from(["pad", "crop", "stretch"]),
    )
    def run(name: str, made: list[Any], mended: bool, channels: int, fit: str) -> None:
        content = changed(good[name], made)
        if mended and name.startswith("png"):
            content = right_png(content)
        with trial(f"image, {name.split()[0]}", folder), bombs_refused():
            probe("a", content)
            found = decode("a", channels, 16, fit, content)
            assert found.shape == (channels, 16, 16)
            assert found.dtype == np.uint8

    run()


# Tables


fields = st.one_of(
    st.sampled_from(["", "1", "cat", "=1+1", "@x", '"', '""', '"a', 'a"b', "\n", "\r", "\r\n", ",", ";", "\t", "\ufeff",
                     "\0", "\x1b[2J", "\x9b", "é", "猫", "1.png", "train/1.png", "a" * 300, " 7 "]),
    st.text(max_size=8),
)  # fmt: skip


def test_tables(trial: Trials, folder: Path) -> None:
    (folder / "tables" / "images").mkdir(parents=True)
    for name in ("1", "cat"):
        (folder / "tables" / "images" / f"{name}.png").write_bytes(b"")
    labels, answers = folder / "tables" / "labels.csv", folder / "tables" / "answers.csv"
    labels.write_text("id,label\n1,cat\n2,dog\n")
    columns = st.sampled_from(
        ["id", "label", "id,label", "label,id", "id,label,x", "id;label", '"id",label', "\ufeffid,label"]
    )

    @tries(400)
    @given(columns, st.lists(st.lists(fields, max_size=4), max_size=6), st.sampled_from(["\n", "\r\n", "\r"]), changes,
           st.booleans(), st.sampled_from(["utf-8", "utf-16", "latin-1", "utf-8-sig"]))  # fmt: skip
    def run(head: str, rows: list[list[str]], end: str, made: list[Any], spoilt: bool, encoding: str) -> None:
        content = end.join([head, *map(",".join, rows)]).encode(encoding, "replace")
        content = changed(content, made) if spoilt else content
        with trial("table", folder):
            table = read_table(io.BytesIO(content), "a.csv", repeats=True)
            assert len(table.ids) == len(table.values)
            assert not any("\n" in text or "\x1b" in text for text in (*table.ids, *table.values))
        answers.write_bytes(content)
        with trial("submission", folder / "tables"):
            str(submission.score(answers, labels))
        with trial("header of a table", folder):
            read_header(io.BytesIO(content), "a.csv")
        room = folder / "tables" / "class"
        shutil.rmtree(room, ignore_errors=True)
        room.mkdir()
        (room / "ann.csv").write_bytes(content)
        with trial("class of submissions", folder / "tables"):
            found = grade(room, labels, roster=answers if spoilt else None)
            assert all(row.note.isprintable() for row in found.rows)
            list(csv.reader(found.to_csv().splitlines(), strict=True))
        with trial("labels against images", folder / "tables"):
            str(check_labels(answers, folder / "tables" / "images"))

    run()


def test_idx_files(trial: Trials, folder: Path) -> None:
    good = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 3]) + bytes(18)
    (folder / "idx").mkdir()
    path = folder / "idx" / "a.gz"

    @tries(100)
    @given(changes, changes, st.booleans())
    def run(inside: list[Any], outside: list[Any], twice: bool) -> None:
        content = gzip.compress(changed(good, inside))
        path.write_bytes(changed(content, outside) if twice else content)
        with trial("IDX file", path.parent):
            assert fashion_mnist._read_idx(path, (2, 3, 3)).shape == (2, 3, 3)

    run()
    for bomb in (bytes(50_000_000), good + bytes(50_000_000)):
        path.write_bytes(gzip.compress(bomb))
        with trial("IDX file", path.parent):
            fashion_mnist._read_idx(path, (2, 3, 3))


# Recipes and names


def test_recipes(trial: Trials, folder: Path) -> None:
    @tries(400)
    @given(edits, st.lists(st.tuples(st.sampled_from(sorted(SETTINGS)), st.text(max_size=12)), max_size=2))
    def run(made: list[Any], chosen: list[tuple[str, str]]) -> None:
        values = edited(Recipe().to_dict(), made)
        with trial("recipe", folder):
            assume(isinstance(values, dict))
            recipe = Recipe.from_dict(values)
            assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
        with trial("recipe", folder):
            Recipe().with_settings([f"{key}={text}" for key, text in chosen])

    run()


def test_names_and_texts(trial: Trials, folder: Path) -> None:
    @tries(400)
    @given(st.one_of(st.text(), plain.map(str)))
    def run(text: str) -> None:
        with trial("run name", folder):
            check_name(text)
            assert re.fullmatch(r"[\w.-]{1,100}", text, re.ASCII)
            assert text not in (".", "..")
            assert text.split(".")[0].lower() not in ("con", "nul", "aux", "prn", "com1")
        for made in (safety.shown(text), quoted(text), safety.shown(safety.markdown(text)), str(CnnlabError(text))):
            assert not re.search(
                r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069\ud800-\udfff]", made
            )
        assert json.loads(safety.page(tables.as_json([text]))) == [text]
        assert not re.search(r"[<>|]", safety.markdown(text))
        assert not re.match(r"\s*[=+@-]", safety.cell(text)) or re.fullmatch(r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?", text)

    run()


# Runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's folder."""
    recipe = Recipe(epochs=2, limit=60, batch_size=20, image_size=16)
    return train(recipe, runs_dir=tmp_path_factory.mktemp("runs"), name="run", threads=1, progress="none").run.path


def rewritten(path: Path, made: list[Any]) -> None:
    """A JSON file of a run with edits, and a checksum that is right."""
    value = json.loads(path.read_text())
    known = value.pop("blake2b", None)
    value = edited(value, made)
    try:
        if known is not None and isinstance(value, dict):
            write_checked(path, value)
        else:
            path.write_text(json.dumps(value))
    except (RecursionError, OSError):
        assume(False)


def checked_row(row: Any) -> Any:
    """A row of the metrics whose checksum is right."""
    if not isinstance(row, dict):
        return row
    row = {k: v for k, v in row.items() if k != "check"}
    return {**row, "check": digest(row)[:16]}


def told(path: Path) -> None:
    """All that the command says of a run without its data."""
    run = open_run(path)
    summary = run.summary()
    rows = tables.run_rows([run])
    for text in (safety.page(tables.as_json(rows)), safety.page(tables.run_list([run, run], Path("runs"), True))):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    json.loads(safety.page(tables.as_json(rows)))
    if summary is not None:
        safety.page(str(Result(run, summary)))


@pytest.mark.parametrize("name", ["run.json", "recipe.json", "summary.json", "environment.json", "metrics.jsonl"])
def test_run_folders(trial: Trials, folder: Path, finished: Path, name: str) -> None:
    place = folder / f"run-{name}"
    shutil.copytree(finished, place / "run")
    content = (finished / name).read_bytes()
    info = json.loads((finished / "run.json").read_text())
    info.pop("blake2b")

    @tries(120)
    @given(edits, changes, st.integers(0, 4))
    def run(made: list[Any], bad: list[Any], how: int) -> None:
        (place / "run" / name).write_bytes(content)
        if how == 0:
            (place / "run" / name).write_bytes(changed(content, bad))
        elif name == "metrics.jsonl":
            rows = edited([json.loads(line) for line in content.splitlines()], made)
            try:
                lines = [json.dumps(checked_row(row)) for row in (rows if isinstance(rows, list) else [rows])]
            except RecursionError:
                assume(False)
            (place / "run" / name).write_text("\n".join(lines) + "\n")
        else:
            rewritten(place / "run" / name, made)
            if name == "recipe.json":  # one that run.json knows
                values = json.loads((place / "run" / name).read_text())
                write_checked(place / "run" / "run.json", {**info, "recipes": [digest(values)]})
        with trial(f"run folder, {name}", place):
            told(place / "run")
        damaged: list[str] = []
        with trial(f"run folder, {name}", place):
            list_runs(place, damaged.append)
        assert all(text.isprintable() for text in damaged)

    run()


@pytest.mark.parametrize("name", ["run.json", "recipe.json", "environment.json", "best.safetensors"])
def test_a_hostile_run_through_the_command(
    trial: Trials, folder: Path, finished: Path, name: str, cnnlab: Callable[..., Any]
) -> None:
    """`eval`, in this process: the whole way from the folder to the figures."""
    place = folder / f"eval-{name}"
    shutil.copytree(finished, place / "run")
    content = (finished / name).read_bytes()

    @tries(12, slow=True)
    @given(edits, changes, st.booleans())
    def run(made: list[Any], bad: list[Any], structured: bool) -> None:
        (place / "run" / name).write_bytes(content)
        if structured and name.endswith(".json"):
            rewritten(place / "run" / name, made)
        else:
            (place / "run" / name).write_bytes(changed(content, bad))
        with trial("eval of a run folder", place):
            answer = cnnlab("eval", "run", "--split", "validation", "--json", cwd=place)
        if answer.returncode:
            assert answer.returncode == 2, answer
            assert len(answer.stderr.splitlines()) == 1, answer.stderr
        else:
            json.loads(answer.stdout)

    run()


def test_folders_of_seeds_reproductions_and_competitions(trial: Trials, folder: Path) -> None:
    base = {
        "seeds.json": {"format": "cnnlab seeds 1", "recipe": Recipe().to_dict(), "seeds": [0, 1]},
        "competition.json": {"format": "cnnlab competition 1", "folder": "x", "store": "y", "fingerprint": "z",
                             "layout": vars(Layout())},
        "reproduction.json": {"format": "cnnlab reproduction 1", "recipes": {}, "seeds": 1, "methods": [], "limit": 0,
                              "data_dir": "x", "device": "cpu", "threads": 1, "estimated_seconds": {}},
    }  # fmt: skip
    openers: dict[str, Callable[[Path], Any]] = {
        "seeds.json": lambda place: open_seeds(place),
        "competition.json": lambda place: work.open_competition("work", place.parent),
        "reproduction.json": lambda place: resume_reproduction(place, progress="none"),
    }

    @tries(200)
    @given(st.sampled_from(sorted(base)), edits)
    def run(name: str, made: list[Any]) -> None:
        place = folder / "many" / "work"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        value = edited(json.loads(json.dumps(base[name])), made)
        try:
            (place / name).write_text(json.dumps(value))
        except RecursionError:
            assume(False)
        with trial(name, place):
            openers[name](place)

    run()


# Weights and checkpoints


TYPES = [
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.complex64,
]


@pytest.mark.parametrize("kind", ["sgd", "adamw", "muon"])
def test_checkpoints(trial: Trials, folder: Path, kind: str) -> None:
    """A checkpoint with a right checksum, whatever is in it: refused, or the training goes on from it."""
    device = pick_device("cpu")
    recipe = Recipe(optimizer=kind, average="ema", momentum=0.9 if kind != "adamw" else 0.0)
    (folder / f"checkpoint-{kind}").mkdir()
    path = folder / f"checkpoint-{kind}" / "checkpoint.safetensors"

    def fresh() -> tuple[torch.nn.Module, torch.optim.Optimizer, Average]:
        torch.manual_seed(0)
        model = build_model("lenet", num_classes=3, in_channels=1, image_size=28)
        return model, make_optimizer(model, recipe), Average(model, recipe)

    model, optimizer, average = fresh()
    x, y = torch.rand(4, 1, 28, 28), torch.tensor([0, 1, 2, 0])
    train_step(model, optimizer, x, y)
    generator = torch.Generator()
    batches = {"done": 1, "kind": "cpu", "host": bytes(generator.get_state().tolist()).hex(), "here": ""}
    part = {"steps": 1, "seen": 4, "left_out": 0, "statistics": [1.0, 2.0], "train_seconds": 0.1, "compute_seconds": 0.1,
            "batches": batches}  # fmt: skip
    checkpoint.save_checkpoint(
        path, model, optimizer, device, {"rows": [], "best": [0.1], "best_epoch": 1, "part": part}, average
    )
    tensors, values = checkpoint._read(path)
    text = json.dumps(values)
    state = np.random.get_state()

    @tries(80)
    @given(edits, st.integers(0, len(tensors) - 1), st.sampled_from(["", "type", "shape", "drop", "nan", "name"]),
           st.sampled_from(TYPES), st.booleans())  # fmt: skip
    def run(made: list[Any], index: int, how: str, dtype: torch.dtype, edit: bool) -> None:
        given_tensors = dict(tensors)
        name = sorted(tensors)[index]
        tensor = given_tensors[name]
        if how == "type":
            given_tensors[name] = tensor.to(dtype)
        elif how == "shape":
            given_tensors[name] = tensor.flatten()[: 1 + len(tensor.flatten()) // 2]
        elif how == "drop":
            del given_tensors[name]
        elif how == "nan" and tensor.is_floating_point():
            given_tensors[name] = torch.full_like(tensor, float("nan"))
        elif how == "name":
            given_tensors[f"{name}.more"] = tensor.clone()
        value = edited(json.loads(text), made) if edit else json.loads(text)
        try:
            checkpoint._write(path, given_tensors, value)
        except (RecursionError, KeyError, ValueError):  # not even a hostile writer could
            assume(False)
        own, updater, mean = fresh()
        try:
            with trial(f"checkpoint, {kind}", path.parent):
                progress = checkpoint.load_checkpoint(path, own, updater, device, mean)
                check(path, progress, {**_STATE, "rows": [{}]})
                train_step(own, updater, x, y)
                mean.after_step(0)
                np.random.rand(700)
                random.random()
                torch.rand(700)
        finally:
            np.random.set_state(state)

    run()


def header(draw: Any) -> bytes:
    """The header of a safetensors file, right or nearly."""
    dtypes = st.sampled_from(["F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "C64", "F4", "F6_E2M3", "X", ""])
    numbers = st.one_of(st.integers(0, 40), st.sampled_from([2**31, 2**62, 2**63, 2**64 - 1, -1, 10**30, 1.5]))
    entries = draw(
        st.lists(st.tuples(st.text(max_size=6), dtypes, st.lists(numbers, max_size=4), numbers, numbers), max_size=4)
    )
    values: dict[str, Any] = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        for name, dtype, shape, begin, end in entries
    }
    values["__metadata__"] = {
        "cnnlab": draw(st.sampled_from(["", "{}", '{"values": {}, "blake2b": "x"}', "[" * 5000, "1"]))
    }
    text = json.dumps(values).encode()
    length = draw(st.one_of(st.just(len(text)), st.integers(0, 300), st.sampled_from([2**32, 2**63, 2**64 - 1])))
    return struct.pack("<Q", length) + text + bytes(draw(st.integers(0, 60)))


def test_weights(trial: Trials, folder: Path) -> None:
    (folder / "weights").mkdir()
    path = folder / "weights" / "w.safetensors"
    model = build_model("lenet", num_classes=3, in_channels=1, image_size=28)
    checkpoint.save_weights(path, model)
    good = path.read_bytes()
    whole = {k: v.clone() for k, v in model.state_dict().items()}

    @tries(300)
    @given(st.data(), changes, st.booleans())
    def run(data: st.DataObject, made: list[Any], made_up: bool) -> None:
        content = header(data.draw) if made_up else changed(good, made)
        path.write_bytes(content)
        with trial("weights", path.parent):
            checkpoint.check_weights(path, model)
        with trial("weights", path.parent):
            checkpoint.load_weights(path, model)
            assert content == good or all(torch.equal(v, whole[k]) for k, v in model.state_dict().items())

    run()


# Stores


class Prepared:
    """What `cnnlab kaggle prepare` tells about."""

    def __init__(self, store: Store) -> None:
        self.images = lambda: store


def test_stores(trial: Trials, folder: Path) -> None:
    source = folder / "competition"
    for part, count in (("train", 4), ("test", 2)):
        (source / part).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (5, 5), 40 * i).save(source / part / f"{i}.png")
    (source / "trainLabels.csv").write_text("id,label\n0,a\n1,b\n2,a\n3,b\n")
    (source / "sampleSubmission.csv").write_text("id,label\n0,a\n1,a\n")
    place = folder / "store"
    prepare(source, store=place, workers=1)
    good = {name: (place / name).read_bytes() for name in ("store.json", "train.npy", "test.npy")}

    @tries(250)
    @given(st.sampled_from(sorted(good)), edits, changes, st.integers(0, 3))
    def run(name: str, made: list[Any], bad: list[Any], how: int) -> None:
        for other, content in good.items():
            (place / other).write_bytes(content)
        if name == "store.json" and how:
            try:
                (place / name).write_text(json.dumps(edited(json.loads(good[name]), made)))
            except RecursionError:
                assume(False)
        elif name != "store.json" and how == 1:
            out = io.BytesIO()
            np.savez(out, a=np.zeros(3))
            (place / name).write_bytes(out.getvalue())
        elif name != "store.json" and how == 2:
            np.save(place / name, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        else:
            (place / name).write_bytes(changed(good[name], bad))
        with trial("store", place):
            store = open_store(place)
            intact(store)
            torch.bincount(store.train.labels, minlength=len(store.train.classes))
            store.train.fingerprint()
            safety.page(prepared(Prepared(store)))  # type: ignore[arg-type]

    run()
