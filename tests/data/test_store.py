"""A competition's archives as one store: whatever the files are like, every image is in the row of its id."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cnnlab.competition.layout import Layout, match, natural, plain_id
from cnnlab.competition.prepare_store import prepare_store
from cnnlab.data import SourceOptions, data_folder
from cnnlab.data.store import FORMAT, Store, load, open_store
from cnnlab.io.csv import read_table
from cnnlab.io.errors import CnnlabError

SPECIES = Layout(labels="species.csv", sample="sample.csv", id_column="file", label_column="species")


def pixels(number: int, side: int = 20, channels: int = 1) -> np.ndarray:
    shape = (side, side) if channels == 1 else (side, side, channels)
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


def png(number: int, side: int = 20, channels: int = 1) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels(number, side, channels)).save(out, "png")
    return out.getvalue()


def table(*rows: tuple[str, ...]) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue().encode()


class Leaves:
    """An artificial competition: grey 20x20 leaves, ids with letters. Tests may change its attributes and files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.train = {f"leaf-{i}{'abc'[i % 3]}": png(i) for i in range(30)}
        self.test = {f"x{i}": png(100 + i) for i in range(12)}
        self.labels = [(name, ("oak", "elm", "ash")[i % 3]) for i, name in enumerate(self.train)][::-1]
        self.sample = [f"x{(i * 5) % 12}" for i in range(12)]

    def write(self, kind: str = ".zip", nested: str = "") -> Path:
        """Write it and return its path. kind: of archive; "/": folders. nested: a folder in one zip that holds all."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)
        (self.root / "species.csv").write_bytes(table(("species", "file"), *[(b, a) for a, b in self.labels]))
        (self.root / "sample.csv").write_bytes(table(("file", "species"), *[(a, "oak") for a in self.sample]))
        for part, images in (("train", self.train), ("test", self.test)):
            files = [(f"{part}/{name}.png", content) for name, content in images.items()]
            if kind == "/":
                (self.root / part).mkdir()
                for name, content in files:
                    (self.root / name).write_bytes(content)
            elif kind == ".7z":
                py7zr = pytest.importorskip("py7zr")
                with py7zr.SevenZipFile(self.root / f"{part}.7z", "w") as seven:
                    for name, content in files:
                        seven.writestr(content, name)
            else:
                with zipfile.ZipFile(self.root / f"{part}.zip", "w") as zipped:
                    for name, content in files:
                        zipped.writestr(name, content)
        if not nested:
            return self.root
        whole = self.root / "whole.zip"
        with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as zipped:
            for file in sorted(self.root.rglob("*")):
                if file != whole and file.is_file():
                    zipped.write(file, Path(nested) / file.relative_to(self.root))
        return whole


@pytest.fixture
def leaves(tmp_path: Path) -> Leaves:
    return Leaves(tmp_path / "leaves")


def prepare(leaves: Leaves | Path, where: Path | None = None, layout: Layout = SPECIES, **options: Any) -> Store:
    folder = leaves if isinstance(leaves, Path) else leaves.write()
    return prepare_store(folder, store=where or Path("store").absolute(), layout=layout, **options)


def preparation_error(leaves: Leaves | Path, **options: Any) -> str:
    """Return the one-line error of preparing a store, which must leave nothing behind."""
    with pytest.raises(CnnlabError) as caught:
        prepare(leaves, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert [p.name for p in Path.cwd().iterdir() if "store" in p.name] in ([], ["store.lock"])
    return text


def same_store(a: Store, b: Store) -> bool:
    plain = (
        "classes",
        "train_ids",
        "labels",
        "test_ids",
        "sample_ids",
        "skipped",
        "channels",
        "image_size",
        "fingerprint",
    )
    return (
        all(a.info[k] == b.info[k] for k in plain)
        and torch.equal(a.train.images, b.train.images)
        and torch.equal(a.test_images, b.test_images)
        and [x.sample and x.sample.read_bytes() for x in (a, b)].count(a.sample and a.sample.read_bytes()) == 2
    )


def real_folder() -> Path:
    folder = data_folder().absolute() / "cifar-10"
    if not (folder / "train.7z").exists():
        pytest.skip(f"Kaggle's CIFAR-10 is not in {folder}; set CNNLAB_DATA to the folder that holds cifar-10/train.7z")
    pytest.importorskip("py7zr")
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return prepare_store(real_folder(), store=tmp_path_factory.mktemp("real") / "store")


@pytest.mark.slow
def test_kaggles_cifar10_is_read_pixel_for_pixel(real: Store) -> None:
    """Against digests of all pixels. They were checked against Pillow and py7zr's own loop, which takes minutes.

    Of the smaller archive, every seventh image was checked.
    """
    assert real.train.images.shape == (50_000, 3, 32, 32)
    assert real.test_images.shape == (10_000, 3, 32, 32)
    with (real_folder() / "trainLabels.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert real.train.ids == [row[0] for row in rows]
    assert [real.train.classes[k] for k in real.train.labels.tolist()] == [row[1] for row in rows]
    with (real_folder() / "sampleSubmission.csv").open(newline="") as file:
        assert real.test_ids == real.sample_ids == [row[0] for row in csv.reader(file)][1:]
    assert hashlib.sha256(real.train.images.contiguous().numpy().data).hexdigest() == (
        "9d5c2eddadb0deff02c14c350c0385aab7b1d5ff1edfeb4997c8dc8644960111"
    )
    assert hashlib.sha256(real.test_images.contiguous().numpy().data).hexdigest() == (
        "20298616297d2e4cfbbe79ff2f19bd86748d4314dde31e34b212b3e1414600ab"
    )
    assert real.info["report"] == []


@pytest.mark.slow
def test_kaggles_cifar10_has_the_known_statistics(real: Store) -> None:
    x = real.train.images.numpy()
    mean = [float(x[:, c].mean(dtype=np.float64)) / 255 for c in range(3)]
    std = [float(x[:, c].std(dtype=np.float64)) / 255 for c in range(3)]
    assert mean == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)
    assert std == pytest.approx([0.2470, 0.2435, 0.2616], abs=5e-5)


@pytest.mark.parametrize("kind", [".zip", ".7z", "/"])
def test_every_pixel_is_at_the_row_of_its_id(leaves: Leaves, kind: str) -> None:
    found = prepare(leaves.write(kind))
    assert found.train.images.shape == (30, 1, 20, 20)
    assert found.train.classes == ["ash", "elm", "oak"]
    assert found.train.ids == [name for name, _ in leaves.labels]
    assert [found.train.classes[k] for k in found.train.labels.tolist()] == [label for _, label in leaves.labels]
    assert found.test_ids == found.sample_ids == leaves.sample
    for i, name in enumerate(found.train.ids):
        assert np.array_equal(found.train.images[i, 0].numpy(), pixels(list(leaves.train).index(name)))
    for i, name in enumerate(found.test_ids):
        assert np.array_equal(found.test_images[i, 0].numpy(), pixels(100 + int(name[1:])))
    assert found.info["report"] == []
    assert found.info["counts"] == {"train": 30, "test": 12, "classes": 3}
    # It can be read as a source, and other programs can read its plain arrays.
    options = SourceOptions(data_dir=Path())
    again = load(found.path, "train", options)
    assert again is not None
    assert again.fingerprint() == found.train.fingerprint()
    assert load(found.path, "test", options) is load(found.path, "validation", options) is None
    assert np.array_equal(np.load(found.path / "train.npy"), found.train.images.numpy())


def test_all_kinds_of_input_give_the_same_store(leaves: Leaves, tmp_path: Path) -> None:
    first = prepare(leaves.write(".zip"), tmp_path / "a")
    for i, (kind, nested) in enumerate([("/", ""), (".7z", ""), (".zip", "."), (".7z", "leaves"), ("/", "deep/er")]):
        assert same_store(first, prepare(leaves.write(kind, nested), tmp_path / f"b{i}")), (kind, nested)


def test_changing_the_images_does_not_change_the_store(leaves: Leaves) -> None:
    found = prepare(leaves)
    found.train.images[0] = 0
    assert not torch.equal(open_store(found.path).train.images[0], found.train.images[0])


def test_several_processes_give_the_same_store(leaves: Leaves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaves.train = {f"{i}": png(i, channels=3) for i in range(1500)}
    leaves.labels = [(name, "ab"[i % 2]) for i, name in enumerate(leaves.train)]
    monkeypatch.setattr("cnnlab.competition.prepare_store.available_cores", lambda: 3)
    folder = leaves.write()
    assert same_store(prepare(folder, tmp_path / "a", workers=1), prepare(folder, tmp_path / "b", workers=3))


def test_the_second_call_only_opens_the_store(leaves: Leaves, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = leaves.write()
    calls: list[tuple[str, int, int]] = []
    first = prepare(folder, report=lambda *call: calls.append(call))
    assert calls[-1] == ("decoding test.zip", 12, 12)
    assert ("decoding train.zip", 30, 30) in calls
    times = {p.name: p.stat().st_mtime_ns for p in first.path.iterdir()}
    assert sorted(times) == ["sample.csv", "store.json", "test.npy", "train.npy"]
    assert same_store(first, prepare(folder, report=lambda *call: pytest.fail("it worked again")))
    assert times == {p.name: p.stat().st_mtime_ns for p in first.path.iterdir()}
    # Any option that affects the content makes another store.
    prepare(folder, skip_bad=True)
    assert open_store(first.path).info["key"] != first.info["key"]
    leaves.train["leaf-0a"] = png(9999)
    assert np.array_equal(prepare(leaves).train.images[-1, 0].numpy(), pixels(9999))


def test_a_store_of_other_files_is_not_replaced(leaves: Leaves, tmp_path: Path) -> None:
    first = prepare(leaves.write())
    shutil.copytree(leaves.root, tmp_path / "others")
    (tmp_path / "others" / "train.zip").touch()
    with pytest.raises(CnnlabError, match=f"{re.escape(str(leaves.root))}.*--store"):
        prepare_store(tmp_path / "others", store=first.path, layout=replace(SPECIES, image_size=8))
    assert same_store(open_store(first.path), first)
    # The same folder under another name.
    (tmp_path / "link").symlink_to(leaves.root)
    assert prepare(tmp_path / "link", layout=replace(SPECIES, image_size=8)).info["image_size"] == 8


def test_the_default_store_is_in_the_users_cache(
    leaves: Leaves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnnlab.competition.prepare_store.user_cache_dir", lambda name: str(tmp_path / "cache"))
    found = prepare_store(leaves.write(), layout=SPECIES)
    assert found.path == tmp_path / "cache" / "stores" / f"leaves-{found.info['key']}"
    assert prepare_store(leaves.root, layout=SPECIES).path == found.path


@pytest.mark.parametrize("spoil", ["train.npy", "test.npy", "store.json", "sample.csv"])
def test_an_incomplete_store_is_refused_and_prepared_again(leaves: Leaves, spoil: str) -> None:
    folder = leaves.write()
    first = prepare(folder)
    copy = shutil.copytree(first.path, "copy")
    if spoil == "store.json":
        value = json.loads((first.path / spoil).read_text())
        (first.path / spoil).write_text(json.dumps({**value, "train_ids": value["train_ids"][1:]}))
    elif spoil == "sample.csv":
        (first.path / spoil).unlink()
    else:
        os.truncate(first.path / spoil, 500)
    with pytest.raises(CnnlabError, match=f"{first.path}.*damaged"):
        open_store(first.path)
    assert same_store(prepare(folder), open_store(copy))


def test_other_folders_are_neither_opened_nor_overwritten(leaves: Leaves, tmp_path: Path) -> None:
    with pytest.raises(CnnlabError, match=r"store\.json"):
        open_store(tmp_path)
    (tmp_path / "mine").mkdir()
    for name, text in (("thesis.txt", "x"), ("store.json", '{"format": "mine"}')):
        (tmp_path / "mine" / name).write_text(text)
        with pytest.raises(CnnlabError, match=f"{tmp_path / 'mine'} .*--store"):
            prepare(leaves, tmp_path / "mine")
    with pytest.raises(CnnlabError, match="format 'mine'"):
        open_store(tmp_path / "mine")


def test_a_killed_preparation_leaves_no_store(leaves: Leaves, tmp_path: Path) -> None:
    folder = leaves.write()
    code = (
        "import sys, time, os; from pathlib import Path; from cnnlab.competition import store_writer\n"
        "from cnnlab.competition.layout import Layout; from cnnlab.competition.prepare_store import prepare_store\n"
        "def wait(*call):\n    print('now', flush=True); time.sleep(60)\n"
        f"prepare_store(Path({str(folder)!r}), store=Path('store'), layout={SPECIES!r}, report=wait)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"now\n"
    assert len(list(tmp_path.glob(".store.*.tmp"))) == 1
    assert not (tmp_path / "store").exists()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    prepare(folder, tmp_path / "store")
    assert not list(tmp_path.glob(".store.*"))


def test_ctrl_c_leaves_nothing(leaves: Leaves, tmp_path: Path) -> None:
    def interrupt(*call: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(leaves, report=interrupt)
    assert [p.name for p in tmp_path.iterdir() if "store" in p.name] == ["store.lock"]


def test_two_processes_prepare_a_store_once(leaves: Leaves, tmp_path: Path) -> None:
    folder = leaves.write()
    code = (
        "from pathlib import Path; from cnnlab.competition.layout import Layout; from cnnlab.competition.prepare_store import prepare_store\n"
        f"prepare_store(Path({str(folder)!r}), store=Path('store'), layout={SPECIES!r}, report=lambda *call: print(call[0]))"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
    said = sorted(p.communicate()[0].count(b"decoding train") for p in both)
    assert said[0] == 0
    assert said[1] > 0
    assert [p.returncode for p in both] == [0, 0]


def test_missing_ids_are_noted(leaves: Leaves) -> None:
    del leaves.train["leaf-3a"]
    leaves.labels = [pair for pair in leaves.labels if pair[0] not in ("leaf-4b", "leaf-5c", "leaf-6a", "leaf-7b")]
    leaves.labels += [("lost-1", "oak"), leaves.labels[0]]
    del leaves.test["x7"]
    leaves.test |= {"x100": png(1), "x99": png(2)}
    found = prepare(leaves)
    assert found.info["report"] == [
        "1 rows of species.csv repeat an id with the same label: leaf-29c",
        "2 ids in species.csv have no image in train.zip: leaf-3a, lost-1",
        "4 images of train.zip have no label in species.csv and are left out: "
        "train/leaf-4b.png, train/leaf-5c.png, train/leaf-6a.png, ...",
        "1 ids in sample.csv have no image in test.zip: x7",
        "2 images of test.zip are not in sample.csv and come last: x99, x100",
    ]
    assert list(found.info["lists"].values()) == [
        ["leaf-29c"],
        ["leaf-3a", "lost-1"],
        [f"train/leaf-{name}.png" for name in ("4b", "5c", "6a", "7b")],
        ["x7"],
        ["x99", "x100"],
    ]
    assert found.info["sample_without_image"] == ["x7"]
    assert len(found.train) == 25
    assert found.sample_ids == leaves.sample
    assert found.test_ids == [t for t in leaves.sample if t != "x7"] + ["x99", "x100"]
    for i, name in enumerate(found.train.ids):
        assert np.array_equal(found.train.images[i, 0].numpy(), pixels(int(name[5:-1])))


def test_test_images_and_the_sample_are_optional(leaves: Leaves, tmp_path: Path) -> None:
    folder = leaves.write()
    (folder / "sample.csv").unlink()
    found = prepare(folder)
    assert found.sample_ids is found.sample is None
    assert found.info["sample_without_image"] == []
    assert found.test_ids == [f"x{i}" for i in range(12)]  # x9 before x10
    (folder / "test.zip").unlink()
    found = prepare(folder)
    assert found.test_images.shape == (0, 1, 20, 20)
    assert found.test_ids == []
    assert len(found.info["report"]) == 2


@pytest.mark.parametrize("spelling", ["{}", "{}.png", "train/{}.png", "train\\{}.PNG"])
def test_ids_may_be_spelled_as_file_names(leaves: Leaves, spelling: str) -> None:
    plain = prepare(leaves)
    leaves.labels = [(spelling.format(name), label) for name, label in leaves.labels]
    leaves.sample = [spelling.format(name) for name in leaves.sample]
    found = prepare(leaves)
    assert torch.equal(found.train.images, plain.train.images)
    assert torch.equal(found.test_images, plain.test_images)
    assert found.test_ids == found.sample_ids == leaves.sample  # a submission must keep the spelling


names = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters="/\\"), min_size=1, max_size=12
)


@given(st.lists(names.filter(lambda t: t.strip() and plain_id(t) == t), unique=True, min_size=1))
def test_any_id_survives_a_table_and_finds_its_image(ids: list[str]) -> None:
    content = "﻿".encode() + table(("other", "id"), *[("x", name) for name in ids])
    assert read_table(io.BytesIO(content), "t", "id", "other").ids == ids
    index = {plain_id(f"train/{name}.png"): i for i, name in enumerate(ids)}
    for i, name in enumerate(ids):
        assert match(name, index) == match(f"{name}.png", index) == match(f"train/{name}.jpg", index) == i


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 10**30)), unique=True))
def test_natural_order_sorts_numbers_by_value(pairs: list[tuple[str, int]]) -> None:
    assert sorted((f"{a}{n}" for a, n in pairs), key=natural) == [f"{a}{n}" for a, n in sorted(pairs)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"file,species\n", r"species\.csv.*no rows"),
        (b"file,species\nleaf-0a, \n", "line 2.*'species'.*empty"),
        (b"file,species\nleaf-0a,oak\nleaf-0a,elm\n", r"leaf-0a .*\boak and elm"),
        (b"file,species\nleaf-0a,oak\nleaf-0a.png,elm\n", r"leaf-0a and leaf-0a\.png.*\boak and elm"),
        (b"file,species\nleaf-0a,oak\nleaf-1b,oak\n", r"species\.csv has one class.*\boak\b"),
        (b"file,species\nleaf-0a,oak\nlost,elm\n", r"train\.zip.*one class.*\boak\b"),
        (
            b"file,species\n1,oak\n2,elm\n",
            r"species\.csv.*train\.zip.*'1'",
        ),
    ],
)
def test_unusable_tables_are_refused(leaves: Leaves, content: bytes, expected: str) -> None:
    folder = leaves.write()
    (folder / "species.csv").write_bytes(content)
    assert re.search(expected, preparation_error(folder))


def test_unusable_samples_are_refused(leaves: Leaves) -> None:
    leaves.sample[3] = leaves.sample[0]
    assert re.search(r"sample\.csv, line 5.*'x0'.*line 2", preparation_error(leaves))
    leaves.sample[3] = "x0.png"
    assert "x0 and x0.png" in preparation_error(leaves)
    folder = leaves.write()
    (folder / "sample.csv").write_text("file\nx0\n")
    assert re.search(r"sample\.csv.*'species'", preparation_error(folder))


@pytest.mark.parametrize("nested", ["", "deep"])
def test_the_store_holds_an_exact_copy_of_the_sample(leaves: Leaves, nested: str) -> None:
    folder = leaves.write()
    content = "\ufeffspecies , file\r\n" + "".join(f"?,{name} \r\n" for name in leaves.sample)
    (folder / "sample.csv").write_text(content, newline="")
    if nested:
        whole = folder / "whole.zip"
        with zipfile.ZipFile(whole, "w") as zipped:
            for file in ("species.csv", "sample.csv", "train.zip", "test.zip"):
                zipped.write(folder / file, f"{nested}/{file}")
        folder = whole
    found = prepare(folder)
    assert found.sample == found.path / "sample.csv"
    assert found.sample.read_bytes() == content.encode()
    assert found.test_ids == found.sample_ids == [f"{name} " for name in leaves.sample]  # with the trailing space
    assert found.info["sample_without_image"] == []


def test_the_same_images_have_the_same_fingerprint(leaves: Leaves, tmp_path: Path) -> None:
    folder = leaves.write("/")
    first = prepare(folder, tmp_path / "a")
    os.utime(folder / "train" / "leaf-0a.png", (1, 1))
    again = prepare(folder, tmp_path / "b")
    assert again.info["key"] != first.info["key"]
    assert again.info["fingerprint"] == first.info["fingerprint"]
    leaves.test["x3"] = png(5)
    assert prepare(leaves.write("/"), tmp_path / "c").info["fingerprint"] != first.info["fingerprint"]
    leaves.test["x3"] = png(103)
    leaves.labels[0] = (leaves.labels[0][0], "oak" if leaves.labels[0][1] == "elm" else "elm")
    assert prepare(leaves.write("/"), tmp_path / "d").info["fingerprint"] != first.info["fingerprint"]


def test_missing_files_are_named(leaves: Leaves, tmp_path: Path) -> None:
    assert re.search(f"{tmp_path / 'none'} .*zip", preparation_error(tmp_path / "none"))
    folder = leaves.write()
    assert re.search(r"species\.csv .*zip", preparation_error(folder / "species.csv"))
    (folder / "train.zip").rename(folder / "kaggle.zip")
    assert " train (" in preparation_error(folder)
    assert "give" in preparation_error(folder)
    assert " trainLabels.csv (" in preparation_error(leaves.write(), layout=Layout())
    with pytest.raises(CnnlabError, match="workers=0"):
        prepare(leaves, workers=0)
    with pytest.raises(CnnlabError, match="fit='squash'"):
        prepare(leaves, layout=Layout(fit="squash"))


def test_images_with_the_same_id_are_refused(leaves: Leaves) -> None:
    leaves.train["sub/leaf-0a"] = png(1)
    assert "train/leaf-0a.png and train/sub/leaf-0a.png" in preparation_error(leaves)


def test_hostile_archives_are_refused(leaves: Leaves) -> None:
    leaves.train["../../x"] = png(1)
    leaves.labels.append(("x", "oak"))
    assert "outside" in preparation_error(leaves)
    for nested in (".", "deep"):
        assert "outside" in preparation_error(leaves.write(nested=nested))
    leaves.train = {}
    assert "no images" in preparation_error(leaves)


def test_names_in_another_case_are_found_and_other_kinds_of_files_refused(leaves: Leaves, tmp_path: Path) -> None:
    folder = leaves.write()
    (folder / "train.zip").rename(folder / "TRAIN.zip")
    (folder / "species.csv").rename(folder / "Species.CSV")
    assert len(prepare(folder, tmp_path / "elsewhere" / "store").train) == len(leaves.labels)
    (folder / "TRAIN.zip").rename(folder / "train.rar")
    (folder / "train.rar").write_bytes(b"Rar!\x1a\x07\1\0")
    assert re.search(r"train\.rar.*RAR archive", preparation_error(folder))
    (folder / "train.rar").unlink()
    (folder / "train").mkdir()
    with zipfile.ZipFile(folder / "Species.xlsx", "w") as zipped:
        zipped.writestr("xl/workbook.xml", "x")
    (folder / "Species.CSV").unlink()
    assert re.search(r"Species\.xlsx.*Excel workbook", preparation_error(folder))
    (tmp_path / "outer").mkdir()
    folder.rename(tmp_path / "outer" / "inner")
    assert "folder inner" in preparation_error(tmp_path / "outer")


def test_a_damaged_zip_is_refused(leaves: Leaves) -> None:
    whole = leaves.write(nested=".")
    whole.write_bytes(whole.read_bytes()[:-30])
    assert re.search(r"whole\.zip.*damaged", preparation_error(whole))


def repacked(whole: Path, change: dict[str, int]) -> Path:
    """Write the zip again with other compression methods for some files. Return its path."""
    other = whole.with_name("other.zip")
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(other, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name), change.get(name, zipfile.ZIP_DEFLATED))
    return other


def test_hostile_files_in_the_competitions_zip_are_refused(leaves: Leaves) -> None:
    whole = leaves.write(nested=".")
    for name in ("species.csv", "sample.csv", "train.zip"):
        for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
            error = preparation_error(repacked(whole, {name: method}))
            assert re.search(f"{name}.*compression method", error)
    content = bytearray(whole.read_bytes())
    content[content.rindex(b"PK\1\2", 0, content.rindex(b"species.csv")) + 8] |= 1
    whole.write_bytes(content)
    assert re.search(r"whole\.zip.*encrypted", preparation_error(whole))


def test_a_zip_with_folders_in_place_of_files_is_refused(leaves: Leaves, tmp_path: Path) -> None:
    leaves.write()
    whole = tmp_path / "whole.zip"
    for names, expected in (
        (("trainLabels.csv/", "train.7z/"), " train ("),
        (("trainLabels.csv/", "train.7z/1.png"), " train ("),
        (("trainLabels.csv/x", "train.zip"), " trainLabels.csv ("),
        (("train.zip", "train.7z/", "train.7z/2.png"), " trainLabels.csv ("),
    ):
        with zipfile.ZipFile(whole, "w") as zipped:
            for name in names:
                zipped.writestr(name, b"")
        assert expected in preparation_error(whole, layout=Layout())
    with zipfile.ZipFile(whole, "w") as zipped:
        zipped.writestr("ü", b"")
    whole.write_bytes(whole.read_bytes().replace("ü".encode(), b"\xff\xff"))
    assert re.search(r"whole\.zip.*damaged", preparation_error(whole))


def test_damaged_files_in_the_competitions_zip_are_named(leaves: Leaves) -> None:
    whole = leaves.write(nested=".")
    for name in ("species.csv", "train.zip"):
        content = bytearray(whole.read_bytes())
        with zipfile.ZipFile(whole) as zipped:
            start = zipped.getinfo(name).header_offset + 30 + len(name)
        content[start : start + 8] = b"\xff" * 8
        bad = whole.with_name("bad.zip")
        bad.write_bytes(content)
        assert name in preparation_error(bad)


def test_links_out_of_the_images_folder_are_refused(leaves: Leaves, tmp_path: Path) -> None:
    folder = leaves.write("/")
    (tmp_path / "secret.png").write_bytes(png(1))
    (folder / "test" / "x99.png").symlink_to(tmp_path / "secret.png")
    assert re.search(r"x99\.png'.*link.*outside", preparation_error(folder))
    (folder / "test" / "x99.png").unlink()
    (tmp_path / "link").symlink_to(folder)
    assert len(prepare(tmp_path / "link").test_ids) == 12


def test_a_complete_store_needs_no_lock(leaves: Leaves, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = leaves.write()
    first = prepare(folder)
    Path("store.lock").unlink()
    monkeypatch.setattr("cnnlab.io.lock.FileLock", lambda path: pytest.fail("a read-only place has no lock"))
    assert same_store(prepare(folder), first)


def test_waiting_for_another_process_is_reported(leaves: Leaves) -> None:
    lock = FileLock("store.lock", thread_local=False)
    thread = threading.Thread(target=lock.acquire)
    thread.start()
    thread.join()
    told: list[str] = []

    def report(what: str, done: int, total: int) -> None:
        told.append(what)
        if lock.is_locked:
            lock.release()

    prepare(leaves, report=report)
    assert told[0].startswith("waiting")
    assert told.count(told[0]) == 1


def test_only_its_own_temporary_folders_are_removed(leaves: Leaves, tmp_path: Path) -> None:
    for name in (".store.1234.tmp", ".store.v2.1234.tmp", ".store.x.tmp", ".store.1234.tmp.mine"):
        (tmp_path / name).mkdir()
    prepare(leaves)
    left = sorted(p.name for p in tmp_path.glob(".store*"))
    assert left == [".store.1234.tmp.mine", ".store.v2.1234.tmp", ".store.x.tmp"]


def test_a_store_of_an_older_format_is_prepared_again(leaves: Leaves) -> None:
    folder = leaves.write()
    first = prepare(folder)
    text = (first.path / "store.json").read_text()
    (first.path / "store.json").write_text(text.replace(FORMAT, "cnnlab store 1"))
    with pytest.raises(CnnlabError, match="format 'cnnlab store 1'"):
        open_store(first.path)
    assert prepare(folder).info["format"] == FORMAT


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def test_damaged_images_are_named(leaves: Leaves, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnlab.competition.prepare_store.available_cores", lambda: 2)
    leaves.train["leaf-7b"] = truncated(leaves.train["leaf-7b"])
    leaves.train["leaf-9a"] = b"no image"
    for workers in (1, 2):
        text = preparation_error(leaves, workers=workers)
        assert re.match(r"train\.zip: train/leaf-7b\.png .*damaged", text)
        assert text.endswith("--skip-bad")
    found = prepare(leaves, skip_bad=True)
    assert len(found.train) == 28
    assert [" ".join(t.split()[:2]) for t in found.train.skipped] == [
        "train.zip: train/leaf-9a.png",  # in the order of the table
        "train.zip: train/leaf-7b.png",
    ]
    for i, name in enumerate(found.train.ids):
        assert np.array_equal(found.train.images[i, 0].numpy(), pixels(int(name[5:-1])))
    assert found.train.ids == [name for name, _ in leaves.labels if name not in ("leaf-7b", "leaf-9a")]
    leaves.train["leaf-0a"] = b""  # the first image decides the size
    assert len(prepare(leaves, skip_bad=True).train) == 27
    leaves.train = dict.fromkeys(leaves.train, b"")
    assert "image of train.zip" in error_when_skipping(leaves)


def error_when_skipping(leaves: Leaves) -> str:
    with pytest.raises(CnnlabError) as caught:
        prepare(leaves, skip_bad=True)
    return str(caught.value)


def test_damaged_test_images_keep_their_ids(leaves: Leaves) -> None:
    leaves.test["x3"] = truncated(leaves.test["x3"])
    assert re.search(r"test\.zip: test/x3\.png .*damaged", preparation_error(leaves))
    found = prepare(leaves, skip_bad=True)
    assert found.test_ids == leaves.sample
    assert found.test_images[leaves.sample.index("x3")].sum() == 0
    assert len(found.info["unreadable_test"]) == 1


def test_a_class_of_damaged_images_only_is_refused(leaves: Leaves) -> None:
    leaves.train = {name: b"" if i % 3 == 0 else png(i) for i, name in enumerate(leaves.train)}
    assert "class oak" in error_when_skipping(leaves)


def test_huge_images_are_refused_by_their_header(leaves: Leaves) -> None:
    big = bytearray(leaves.train["leaf-7b"])
    big[16:24] = (60_000).to_bytes(4) * 2
    big[29:33] = zlib_crc(big[12:29])
    leaves.train["leaf-7b"] = bytes(big)
    assert re.search(r"leaf-7b\.png.* [0-9,]+ pixels", preparation_error(leaves))


def zlib_crc(content: bytes | bytearray) -> bytes:
    import zlib

    return zlib.crc32(content).to_bytes(4)


def test_one_colour_image_makes_the_whole_store_colour(leaves: Leaves) -> None:
    leaves.train["leaf-17c"] = png(17, channels=3)
    found = prepare(leaves)
    assert found.train.images.shape == (30, 3, 20, 20)
    row = found.train.ids.index("leaf-17c")
    assert np.array_equal(found.train.images[row].permute(1, 2, 0).numpy(), pixels(17, channels=3))
    row = found.train.ids.index("leaf-3a")
    assert all(np.array_equal(found.train.images[row, c].numpy(), pixels(3)) for c in range(3))
    assert found.test_images.shape == (12, 3, 20, 20)


def test_different_sizes_need_image_size(leaves: Leaves) -> None:
    leaves.test["x4"] = png(4, side=30)
    assert re.search(r"train/leaf-0a\.png.*20 x 20.*test/x4\.png.*30 x 30.*--image-size", preparation_error(leaves))
    out = io.BytesIO()
    Image.fromarray(np.zeros((20, 25), np.uint8)).save(out, "png")
    leaves.train["leaf-0a"] = out.getvalue()
    assert re.search(r"leaf-0a\.png.*\b25 x 20\b.*square", preparation_error(leaves))
    fixed = Layout(**{**SPECIES.__dict__, "image_size": 8, "fit": "crop"})
    assert prepare(leaves, layout=fixed).test_images.shape == (12, 1, 8, 8)


def test_a_full_disk_is_refused_before_decoding(leaves: Leaves, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnlab.competition.store_writer.shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    assert "MiB" in preparation_error(leaves)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc on this system")
def test_an_unwritable_place_is_refused_at_once(leaves: Leaves) -> None:
    assert "--store" in preparation_error(leaves, where=Path("/proc/store"))
