"""One range of values and one background per source: a folder and a competition's store decode alike."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import cnnlab
from cnnlab.competition.layout import Layout
from cnnlab.competition.prepare_store import prepare_store
from cnnlab.data import ImageSet, SourceOptions, load_images
from cnnlab.data.batches import loader
from cnnlab.data.splits import load_splits
from cnnlab.data.store import Store, open_store
from cnnlab.defaults import choose_recipe
from cnnlab.inference import validation_images
from cnnlab.io.decode import BadImage, Decoding, decode, ink, value_range
from cnnlab.io.errors import CnnlabError
from cnnlab.io.values import Values
from cnnlab.training.header import data_lines
from conftest import Command

SIDE = 8
LAYOUT = Layout(labels="labels.csv", sample="sample.csv")
Images = dict[str, bytes]


def encoded(image: np.ndarray | Image.Image, kind: str = "png", **options: Any) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind, **options)
    return out.getvalue()


def grey(i: int, high: float, dtype: type = np.uint16, low: float = 0) -> np.ndarray:
    """Return a ramp from `low`. Only the brightest images reach `high`; the darkest go an eighth of the way."""
    ramp = np.linspace(low, low + (high - low) * (i % 8 + 1) / 8, SIDE**2)
    return ramp.astype(dtype).reshape(SIDE, SIDE)


def drawing(i: int, level: int, opaque: int = 255) -> np.ndarray:
    """Return a disc on a transparent background."""
    y, x = np.mgrid[:SIDE, :SIDE]
    alpha = np.where((y - 4) ** 2 + (x - 4) ** 2 < 5 + i % 4, opaque, 0)
    return np.stack([np.full((SIDE, SIDE), level)] * 3 + [alpha], 2).astype(np.uint8)


def palette_png(i: int) -> bytes:
    image = Image.new("P", (SIDE, SIDE), 0)
    image.putpalette([250, 250, 250, 20, 10, i])
    image.paste(1, (1, 1, 5, 5))
    return encoded(image, transparency=0)


def noise(i: int, channels: int = 3) -> np.ndarray:
    shape = (SIDE, SIDE, 3) if channels == 3 else (SIDE, SIDE)
    return np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)


def write_competition(root: Path, train: Images, test: Images | None = None, kind: str = ".zip") -> Path:
    """Write a competition whose image i is of class a or b."""
    root.mkdir(parents=True)
    rows = "".join(f"{Path(name).stem},{'ab'[i % 2]}\n" for i, name in enumerate(train))
    (root / "labels.csv").write_text("id,label\n" + rows)
    for part, images in (("train", train), ("test", test or {})):
        if kind == ".zip":
            with zipfile.ZipFile(root / f"{part}.zip", "w") as zipped:
                for name, content in images.items():
                    zipped.writestr(f"{part}/{name}", content)
        else:
            (root / part).mkdir()
            for name, content in images.items():
                (root / part / name).write_bytes(content)
    return root


def load_as_folder(root: Path, train: Images) -> ImageSet:
    """Write the same images as a folder of classes, and load it."""
    for i, (name, content) in enumerate(train.items()):
        (root / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (root / "ab"[i % 2] / name).write_bytes(content)
    found = load_images(f"folder:{root}", "train", SourceOptions(data_dir=Path()))
    assert found is not None
    return found


def prepare_from_images(path: Path, train: Images, test: Images | None = None, **options: Any) -> Store:
    """Write a competition and return its store. options: of the layout, or skip_bad, report, kind."""
    kind = options.pop("kind", ".zip")
    rest = {name: options.pop(name) for name in ("skip_bad", "report") if name in options}
    where = write_competition(path, train, test, kind)
    return prepare_store(where, store=path.with_suffix(".store"), layout=replace(LAYOUT, **options), **rest)


def scaled(array: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return deep greys scaled to eight bits, computed with NumPy alone."""
    return np.clip((array.astype(np.float64) - low) * 255 / (high - low) + 0.5, 0, 255).astype(np.uint8)


# The store


@pytest.mark.parametrize("kind", [".zip", "/"])
def test_twelve_bits_in_sixteen_keep_their_levels_in_a_store(tmp_path: Path, kind: str) -> None:
    arrays = [grey(i, 4095) for i in range(8)]
    bright = np.full((SIDE, SIDE), 60_000, np.uint16)
    train = {f"{i}.png": encoded(array) for i, array in enumerate(arrays)}
    store = prepare_from_images(
        tmp_path / "c", train, {"8.png": encoded(arrays[3]), "9.png": encoded(bright)}, kind=kind
    )
    for image, array in zip(store.train.images, arrays, strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(encoded(array)))), array)  # the file has all 16 bits
        assert np.array_equal(image[0].numpy(), scaled(array, 0, 4095))
    assert len(np.unique(store.train.images.numpy())) == len(np.unique(scaled(np.stack(arrays), 0, 4095))) > 128
    # Test images are scaled to the range of the training images.
    assert np.array_equal(store.test_images[0, 0].numpy(), scaled(arrays[3], 0, 4095))
    assert (store.test_images[1] == 255).all()
    assert store.train.decoding == Decoding(1, SIDE, "pad", "black", 0, 4095)
    assert ["4095" in note for note in store.info["report"] if "values" in note] == [True]


KINDS: dict[str, Callable[[int], tuple[str, bytes]]] = {
    "12 bits": lambda i: (f"{i}.png", encoded(grey(i, 4095))),
    "full 16 bits": lambda i: (f"{i}.png", encoded(grey(i, 65_535))),
    "signed floats": lambda i: (f"{i}.tif", encoded(grey(i, 1.5, np.float32, -1), "tiff")),
    "32-bit integers": lambda i: (f"{i}.tif", encoded(grey(i, 3000, np.int32, -1000), "tiff")),
    "dark drawings": lambda i: (f"{i}.png", encoded(drawing(i, 10))),
    "light drawings": lambda i: (f"{i}.png", encoded(drawing(i, 240))),
    "half-transparent drawings": lambda i: (f"{i}.webp", encoded(drawing(i, 10, 120), "webp", lossless=True)),
    "palette": lambda i: (f"{i}.png", palette_png(i)),
    "grey with alpha": lambda i: (f"{i}.png", encoded(Image.fromarray(drawing(i, 0)).convert("LA"))),
    "one drawing among photographs": lambda i: (f"{i}.png", encoded(drawing(i, 10) if i == 7 else noise(i))),
    "grey, then colour": lambda i: (f"{i}.png", encoded(noise(i, 3 if i == 9 else 1))),
    "8 bits, then 16": lambda i: (f"{i}.png", encoded(grey(i, 4095) if i > 7 else noise(i, 1))),
    "colour among 16 bits": lambda i: (f"{i}.png", encoded(noise(i) if i == 5 else grey(i, 4095))),
    "plain": lambda i: (f"{i}.png", encoded(noise(i))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_and_a_folder_of_the_same_images_have_the_same_pixels(tmp_path: Path, kind: str) -> None:
    train = dict(KINDS[kind](i) for i in range(10))
    calls: list[str] = []
    store = prepare_from_images(tmp_path / "c", train, report=lambda what, *_: calls.append(what))
    found = load_as_folder(tmp_path / "f", train)
    assert store.train.decoding == found.decoding
    theirs = {Path(name).stem: image for name, image in zip(found.ids, found.images, strict=True)}
    for name, image in zip(store.train.ids, store.train.images, strict=True):
        assert torch.equal(image, theirs[name]), name
    # Plain images, the usual case, are read only once.
    assert any("measuring" in call for call in calls) == (kind != "plain")


def test_an_unusual_image_after_many_others_is_measured(tmp_path: Path) -> None:
    train = {f"{i}.png": encoded(noise(i, 1)) for i in range(300)}
    train["300.png"] = encoded(grey(7, 4095))
    for i, workers in enumerate((1, 2)):
        where = write_competition(tmp_path / f"{i}", train)
        store = prepare_store(where, store=tmp_path / f"{i}.store", layout=LAYOUT, workers=workers)
        assert np.array_equal(store.train.images[300, 0].numpy(), scaled(grey(7, 4095), 0, 4095))
        assert np.array_equal(store.train.images[299, 0].numpy(), noise(299, 1))


def test_damaged_images_among_deep_ones_are_named_or_skipped(tmp_path: Path) -> None:
    train = {f"{i}.png": encoded(grey(i, 4095)) for i in range(8)}
    train["3.png"] = train["3.png"][:60]  # a header only
    train["4.png"] = b"no image"
    with pytest.raises(CnnlabError, match=r"3\.png.*--skip-bad"):
        prepare_from_images(tmp_path / "a", train)
    store = prepare_from_images(tmp_path / "b", train, skip_bad=True)
    assert len(store.info["skipped"]) == 2
    assert store.train.decoding == Decoding(1, SIDE, "pad", "black", 0, 4095)


def test_one_dead_pixel_does_not_set_the_range_of_a_store(tmp_path: Path) -> None:
    arrays = [np.linspace(0, 4095, 64 * 64).astype(np.uint16).reshape(64, 64) for _ in range(2)]
    arrays[1][0, 0] = 65_535
    store = prepare_from_images(tmp_path / "c", {f"{i}.png": encoded(array) for i, array in enumerate(arrays)})
    assert store.info["high"] == 4095
    assert len([note for note in store.info["report"] if "65535" in note]) == 1


def test_missing_data_and_narrow_values_are_measured_for_a_store(tmp_path: Path) -> None:
    arrays = [np.linspace(32_000, 33_000, 64).astype(np.uint16).reshape(SIDE, SIDE) for _ in range(2)]
    arrays[1][0] = 0
    store = prepare_from_images(tmp_path / "c", {f"{i}.png": encoded(array) for i, array in enumerate(arrays)})
    assert store.train.decoding == Decoding(1, SIDE, "pad", "black", 32_000, 33_000)
    assert len([note for note in store.info["report"] if "missing" in note]) == 1
    # The note on the background suits a store: its pixels are decoded already, so it names no setting.
    images = replace(store.train, decoding=replace(store.train.decoding, background="white"))
    lines = {data: [*data_lines(images, images, choose_recipe(data=data))] for data in ("store:c", "folder:f")}
    assert ["--set" in line for line in lines["store:c"] if "background" in line] == [False]
    assert ["--set" in line for line in lines["folder:f"] if "background" in line] == [True]


def test_the_background_of_a_store_can_be_set(tmp_path: Path, cnnlab: Command) -> None:
    train = {f"{i}.png": encoded(drawing(i, 100)) for i in range(4)}
    for background, level in (("auto", 0), ("black", 0), ("white", 255)):
        store = prepare_from_images(tmp_path / background, train, train, background=background)
        assert (store.train.images[:, :, 0, 0] == level).all()
        assert (store.test_images[:, :, 0, 0] == level).all()
    with pytest.raises(CnnlabError, match="background='red'"):
        prepare_from_images(tmp_path / "red", train, background="red")
    options = SourceOptions(data_dir=Path(), background="black")
    with pytest.raises(CnnlabError, match="--background black"):
        load_images(f"store:{tmp_path / 'white.store'}", "train", options)
    command = "kaggle", "prepare", tmp_path / "black", "--labels", "labels.csv", "--sample", "sample.csv"
    done = cnnlab(*command, "--background", "white", "--store", tmp_path / "again", "--name", "again")
    assert done.returncode == 0, done.stderr
    assert (open_store(tmp_path / "again").train.images[:, :, 0, 0] == 255).all()


def test_a_run_on_a_store_decodes_other_files_like_the_store(tmp_path: Path) -> None:
    arrays = [grey(i, 4095) for i in range(8)]
    store = prepare_from_images(
        tmp_path / "c", {f"{i}.png": encoded(a) for i, a in enumerate(arrays)}, image_size=SIDE, fit="crop"
    )
    recipe = choose_recipe(data=f"store:{store.path}", settings=["epochs=1", "batch_size=4", "val_fraction=0.25"])
    run = cnnlab.train(recipe.changed(image_size=28), name="r", progress="none").run
    model = cnnlab.load_model(run)
    wide = np.hstack([np.zeros((SIDE, SIDE), np.uint16), grey(0, 4095), np.zeros((SIDE, SIDE), np.uint16)])
    (tmp_path / "1.png").write_bytes(encoded(wide))
    pixels = decode(tmp_path / "1.png", model.preprocessing.decoding)
    assert np.array_equal(pixels[0], scaled(grey(0, 4095), 0, 4095))  # its middle, scaled to the store's range
    logits = model(model.preprocessing(torch.tensor(pixels[None]))) / model.temperature
    assert model.predict(tmp_path / "1.png").probabilities == pytest.approx(logits.softmax(1).detach().numpy())
    # A store with another range of values cannot be compared, but its files can.
    other = prepare_from_images(tmp_path / "d", {f"{i}.png": encoded(grey(i, 65_535)) for i in range(8)})
    with pytest.raises(CnnlabError, match="folder:PATH"):
        cnnlab.evaluate_run(run, data=f"store:{other.path}")
    load_as_folder(tmp_path / "f", {f"{i}.png": encoded(a) for i, a in enumerate(arrays)})
    found = cnnlab.evaluate_run(run, data=f"folder:{tmp_path / 'f'}").images
    assert torch.equal(found.images, store.train.images[[0, 2, 4, 6, 1, 3, 5, 7]])


# The splits of a folder


def write_splits(root: Path) -> Path:
    """Write a folder with training images of 12 bits and brighter images in the other splits."""
    for part, high in (("train", 4095), ("validation", 16_383), ("test", 16_383)):
        for i, name in enumerate("aabb"):
            (root / part / name).mkdir(parents=True, exist_ok=True)
            (root / part / name / f"{i}.png").write_bytes(encoded(grey(3 + 4 * (i % 2), high)))
    return root


@pytest.mark.parametrize("kind", ["folder", "csv"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_separate_split_is_decoded_with_the_range_of_the_training_split(
    tmp_path: Path, split: str, kind: str
) -> None:
    root = write_splits(tmp_path / "f")
    data = f"folder:{root}"
    if kind == "csv":
        data = f"csv:{root / 'table.csv'}"
        files = [file.relative_to(root) for file in sorted(root.rglob("*.png"))]
        rows = [f"{file.as_posix()},{file.parts[1]},{file.parts[0]}\n" for file in files]
        (root / "table.csv").write_text("path,label,split\n" + "".join(rows))
    recipe = choose_recipe(data=data, settings=[f"eval_split={split}"])

    def report(what: str, done: int, total: int) -> None:
        if what.endswith("train") and done == total:  # afterwards the training images are not measured again
            (root / "train/a/0.png").write_bytes(encoded(grey(7, 65_535)))

    train_set, eval_set = load_splits(recipe, SourceOptions(data_dir=Path(), report=report))
    assert train_set.decoding == eval_set.decoding == Decoding(1, SIDE, "pad", "black", 0, 4095)
    for image, i in zip(eval_set.images, range(4), strict=True):
        assert np.array_equal(image[0].numpy(), scaled(grey(3 + 4 * (i % 2), 16_383), 0, 4095))


def test_loaders_keep_the_decoding_of_the_training_split(tmp_path: Path) -> None:
    root = write_splits(tmp_path / "f")
    for split in ("validation", "test"):
        batches = loader(f"folder:{root}", split, normalize=False, image_size=SIDE)
        assert batches.preprocessing.decoding.high == 4095
        images = torch.cat([x for x, _ in batches])
        wanted = np.stack([scaled(grey(3 + 4 * (i % 2), 16_383), 0, 4095) for i in range(4)])
        assert np.allclose(images[:, 0].numpy() * 255, wanted, atol=1e-3)


def test_validation_images_of_a_run_are_decoded_as_in_its_training(tmp_path: Path) -> None:
    root = write_splits(tmp_path / "f")
    for file in root.rglob("*.png"):
        file.write_bytes(encoded(np.hstack([np.asarray(Image.open(file))] * 2)))  # twice as wide as tall
    (root / "train/a/9.png").write_bytes(b"no image")
    recipe = choose_recipe(data=f"folder:{root}", settings=["epochs=1", "image_size=28", "fit=stretch"])
    run = cnnlab.train(recipe, name="r", progress="none", skip_bad=True).run
    images = validation_images(run)
    with Image.open(root / "validation/a/0.png") as image:
        eight = Image.fromarray(scaled(np.asarray(image), 0, 4095))
    assert np.array_equal(images.images[0, 0].numpy(), np.asarray(eight.resize((28, 28), Image.Resampling.BILINEAR)))


# The measurements


@pytest.mark.parametrize("measure", [value_range, ink])
def test_measurements_take_bytes_as_well_as_paths(
    tmp_path: Path, measure: Callable[..., Values | float | None]
) -> None:
    content = encoded(grey(7, 4095)) if measure is value_range else encoded(drawing(0, 77))
    (tmp_path / "1.png").write_bytes(content)
    expected = (0, 4095) if measure is value_range else 77
    found = measure("a", content)
    assert found == measure(tmp_path / "1.png")
    if isinstance(found, Values):
        assert found.whole is not None
        found = found.whole[:2]
    assert found == expected
    with pytest.raises(BadImage, match=r"\ba\b.*damaged"):
        measure("a", content[:50])


def test_an_image_that_does_not_fit_into_memory_is_not_called_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    content = io.BytesIO()
    Image.new("L", (20, 20)).save(content, "PNG")
    monkeypatch.setattr(Image.Image, "resize", full)
    with pytest.raises(MemoryError):
        decode("a.png", Decoding(1, 9), content.getvalue())
