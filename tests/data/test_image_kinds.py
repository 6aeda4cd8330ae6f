"""Every kind of image against the values of Pillow, tifffile or NumPy: bit depth, channels, alpha, orientation."""

from __future__ import annotations

import io
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps

from cnnlab.data import ImageSet, SourceOptions, load_images
from cnnlab.io.decode import PAGES, BadImage, Decoding, decode, decode_checked, probe
from cnnlab.io.errors import CnnlabError
from cnnlab.models import build_model

imagecodecs = pytest.importorskip("imagecodecs")  # writes what Pillow cannot
RNG = np.random.default_rng(0)
SIDE = 12
NOISE = RNG.integers(0, 256, (SIDE, SIDE, 4), np.uint8)


def random_uint16(channels: int, top: int = 65535) -> np.ndarray:
    return RNG.integers(0, top + 1, (SIDE, SIDE, channels), np.uint16)


def to_uint8(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return 8 bits as the documentation promises: low becomes 0, high becomes 255, rounded."""
    return np.clip(np.floor((values.astype(np.float64) - low) * 255 / (high - low) + 0.5), 0, 255).astype(np.uint8)


def tiff(path: Path, pixels: np.ndarray, **options: object) -> Path:
    tifffile.imwrite(path, pixels, **options)
    return path


def make_folder(root: Path, write: object, names: tuple[str, ...] = ("a", "b"), count: int = 2) -> Path:
    """Make a folder of classes. write: is called with (path without suffix, number) to write an image."""
    for k, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            write(root / name / str(i), k * count + i)  # type: ignore[operator]
    return root


def load(root: Path, **options: object) -> ImageSet:
    found = load_images(f"folder:{root}", "train", SourceOptions(data_dir=Path(), **options))  # type: ignore[arg-type]
    assert found is not None
    return found


# Eight bits: Pillow's own conversions


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"])
@pytest.mark.parametrize("channels", [1, 3])
def test_eight_bit_images_match_pillow(tmp_path: Path, mode: str, channels: int) -> None:
    image = Image.fromarray(NOISE, "RGBA").convert("RGB") if mode != "RGBA" else Image.fromarray(NOISE, "RGBA")
    if mode == "LA":
        image = Image.fromarray(NOISE, "RGBA")
    image = image.convert(mode) if mode != "LAB" else Image.frombytes("LAB", (SIDE, SIDE), NOISE[..., :3].tobytes())
    image.save(tmp_path / "x.tif")
    opened: Image.Image = Image.open(tmp_path / "x.tif")
    opened = opened.convert("RGB") if mode == "LAB" else opened  # Pillow cannot convert LAB to grey directly
    if opened.has_transparency_data:
        black = Image.new("RGBA", opened.size, "black")
        opened = Image.alpha_composite(black, opened.convert("RGBA"))
    expected = np.asarray(opened.convert("L" if channels == 1 else "RGB"))
    ours = decode(tmp_path / "x.tif", Decoding(channels, SIDE))
    np.testing.assert_array_equal(ours, expected[None] if channels == 1 else expected.transpose(2, 0, 1))


# More bits


@pytest.mark.parametrize("kind", ["png", "tif", "ppm", "npy"])
@pytest.mark.parametrize("top", [65535, 4095, 700])
def test_deep_colours_are_scaled_by_the_sets_range(tmp_path: Path, kind: str, top: int) -> None:
    made = [random_uint16(3, top) for _ in range(4)]
    made[0][0, 0, 0] = top

    def write(path: Path, i: int) -> None:
        file = path.with_suffix(f".{kind}")
        if kind == "png":
            file.write_bytes(imagecodecs.png_encode(made[i], level=6))
        elif kind == "ppm":
            file.write_bytes(b"P6 # a comment\n%d %d\n65535\n" % (SIDE, SIDE) + made[i].astype(">u2").tobytes())
        elif kind == "npy":
            np.save(file, made[i])
        else:
            tiff(file, made[i], photometric="rgb")

    found = load(make_folder(tmp_path, write))
    assert found.decoding is not None
    low, high = found.decoding.low, found.decoding.high
    assert (low, high) == (0, {65535: 65535, 4095: 4095, 700: 1023}[top])
    for ours, theirs in zip(found.images, made, strict=True):
        np.testing.assert_array_equal(ours.permute(1, 2, 0).numpy(), to_uint8(theirs, low, high))


def test_deep_png_with_opacity_is_blended_onto_black(tmp_path: Path) -> None:
    for pixels in (random_uint16(4), random_uint16(2)):
        (tmp_path / "x.png").write_bytes(imagecodecs.png_encode(pixels))
        pixels[..., -1] = 65535
        (tmp_path / "solid.png").write_bytes(imagecodecs.png_encode(pixels))
        header = probe(tmp_path / "x.png")
        assert (header.channels, header.deep, header.transparent) == (pixels.shape[2] - 1, True, True)
        solid = decode(tmp_path / "solid.png", Decoding(3, SIDE, low=0, high=65535))
        colour = np.broadcast_to(pixels[..., :-1], (SIDE, SIDE, 3))
        np.testing.assert_array_equal(solid.transpose(1, 2, 0), to_uint8(colour, 0, 65535))
        seen = decode(tmp_path / "x.png", Decoding(3, SIDE, low=0, high=65535))
        assert seen.mean() < solid.mean()  # black shows through


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        ("float32", -3.0, 7.0),
        ("float64", 0.0, 1.0),
        ("float16", 0.0, 1.0),
        ("uint32", 0.0, 4e9),
        ("int16", -500.0, 900.0),
    ],
)
def test_deep_greys_of_any_type_are_scaled(tmp_path: Path, dtype: str, low: float, high: float) -> None:
    made = [
        np.linspace(low, high, SIDE * SIDE).reshape(SIDE, SIDE).astype(dtype) + np.dtype(dtype).type(0) for _ in "1234"
    ]
    found = load(make_folder(tmp_path, lambda path, i: tiff(path.with_suffix(".tif"), made[i])))
    assert found.decoding is not None
    assert found.images.shape[1] == 1
    ours = (found.decoding.low, found.decoding.high)
    assert ours == pytest.approx((low if low < 0 else 0, float(made[0].max())))
    for image, theirs in zip(found.images, made, strict=True):
        np.testing.assert_array_equal(image[0].numpy(), to_uint8(theirs, *ours))


# Many channels

FORMS = {
    "chunky": lambda path, x: tiff(path.with_suffix(".tif"), x, photometric="minisblack", planarconfig="contig"),
    "planar": lambda path, x: tiff(
        path.with_suffix(".tif"), x.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate"
    ),
    "pages": lambda path, x: tiff(path.with_suffix(".tif"), x.transpose(2, 0, 1)),
    "imagej": lambda path, x: tiff(
        path.with_suffix(".tiff"), x.transpose(2, 0, 1), imagej=True, metadata={"axes": "CYX"}
    ),
    "ome": lambda path, x: tiff(
        path.with_suffix(".tif"), x.transpose(2, 0, 1), ome=True, photometric="minisblack", metadata={"axes": "CYX"}
    ),
    "deflate": lambda path, x: tiff(
        path.with_suffix(".tif"), x, photometric="minisblack", planarconfig="contig", compression="deflate", tile=(16, 16)
    ),
    "lzw": lambda path, x: tiff(
        path.with_suffix(".tif"), x, photometric="minisblack", planarconfig="contig", compression="lzw", predictor=True
    ),
    "rgb": lambda path, x: tiff(path.with_suffix(".tif"), x, photometric="rgb"),
    "npy": lambda path, x: np.save(path.with_suffix(".npy"), x),
    "npy first": lambda path, x: np.save(path.with_suffix(".npy"), x.transpose(2, 0, 1)),
    "npy fortran": lambda path, x: np.save(path.with_suffix(".npy"), np.asfortranarray(x)),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_five_channels_stay_five(tmp_path: Path, form: str) -> None:
    made = [(random_uint16(5) * np.array([1, 0.5, 0.01, 0.3, 0.002])).astype(np.uint16) for _ in range(4)]
    found = load(make_folder(tmp_path, lambda path, i: FORMS[form](path, made[i])))
    assert found.images.shape == (4, 5, SIDE, SIDE)
    assert found.decoding is not None
    ranges = list(zip(found.decoding.lows, found.decoding.highs, strict=True))
    assert len(ranges) == 5
    for ours, theirs in zip(found.images, made, strict=True):
        for c in range(5):
            np.testing.assert_array_equal(ours[c].numpy(), to_uint8(theirs[..., c], *ranges[c]))
    assert min(image.max() for image in found.images[:, 4]) > 50  # the faint channel is not lost
    assert any("5 channels" in note for note in found.notes)


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_eight_bit_images_of_any_channels_are_unchanged(tmp_path: Path, channels: int) -> None:
    made = RNG.integers(0, 256, (4, SIDE, SIDE, channels), np.uint8)
    found = load(make_folder(tmp_path, lambda path, i: FORMS["chunky"](path, made[i])))
    np.testing.assert_array_equal(found.images.permute(0, 2, 3, 1).numpy(), made)
    smaller = load(tmp_path, image_size=6, fit="stretch")
    expected = Image.fromarray(made[0][..., 1]).resize((6, 6), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(smaller.images[0, 1].numpy(), np.asarray(expected))


def test_a_folder_of_several_channel_counts_is_refused_in_one_line(tmp_path: Path) -> None:
    def write(path: Path, i: int) -> None:
        np.save(path.with_suffix(".npy"), RNG.integers(0, 256, (SIDE, SIDE, 5 if i < 3 else 3), np.uint8))

    with pytest.raises(CnnlabError, match=r"channels.*1 of 3 .*1\.npy.*3 of 5 .*0\.npy") as caught:
        load(make_folder(tmp_path, write))
    assert "\n" not in str(caught.value)


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_matches_pillow(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = RNG.integers(0, 256, (8, 10, 3), np.uint8)
    expected = np.asarray(ImageOps.exif_transpose(with_exif(Image.fromarray(pixels), exif)))
    side = max(expected.shape)
    wide = 255 * pixels[..., :1].astype(np.uint16).repeat(5, 2)
    tiff(
        tmp_path / "x.tif", wide, photometric="minisblack", planarconfig="contig", extratags=[(274, 3, 1, orientation)]
    )
    stack = decode(tmp_path / "x.tif", Decoding(5, side, lows=(0,) * 5, highs=(65025,) * 5))
    grey = Image.fromarray(expected[..., 0])
    np.testing.assert_array_equal(stack[3], np.asarray(ImageOps.pad(grey, (side, side), Image.Resampling.BILINEAR)))


def with_exif(image: Image.Image, exif: Image.Exif) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "PNG", exif=exif)
    return Image.open(io.BytesIO(out.getvalue()))


def test_heic_matches_pillow_heif(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    Image.fromarray(NOISE[..., :3]).resize((32, 16)).save(tmp_path / "x.heic", quality=90)
    theirs = heif.open_heif(tmp_path / "x.heic").to_pillow().convert("RGB").resize((16, 16), Image.Resampling.BILINEAR)
    ours = decode(tmp_path / "x.heic", Decoding(3, 16, "stretch"))
    np.testing.assert_array_equal(ours.transpose(1, 2, 0), np.asarray(theirs))


# Damaged images


def test_damaged_stacks_are_one_line(tmp_path: Path) -> None:
    good = FORMS["chunky"](tmp_path / "good", random_uint16(5)).read_bytes()
    np.save(tmp_path / "good.npy", random_uint16(5))
    array = (tmp_path / "good.npy").read_bytes()
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(huge, {"descr": "<u2", "fortran_order": False, "shape": (9**6, 9**6)})
    wrong = {
        "cut.tif": good[: len(good) // 2],
        "head.tif": good[:8],
        "cut.npy": array[:-100],
        "head.npy": array[:20],
        "huge.npy": huge.getvalue(),
        "zero.npy": npy_bytes(np.zeros((0, 4), np.uint8)),
        "text.npy": npy_bytes(np.array(["a"])),
        "complex.npy": npy_bytes(np.zeros((4, 4), complex)),
        "images.npy": npy_bytes(np.zeros((1000, 28, 28), np.uint8)),
        "last.npy": npy_bytes(np.zeros((28, 28, 1000), np.uint8)),
        "many.npy": npy_bytes(np.zeros((99, 98, 97), np.uint8)),
    }
    for name, content in wrong.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadImage, match=name) as caught:
            decode(tmp_path / name, Decoding(5, SIDE))
        assert "\n" not in str(caught.value)


def test_extra_pages_of_another_size_are_ignored_and_noted(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "x.tif") as out:
        out.write(NOISE[..., 0], photometric="miniswhite", compression="deflate")
        out.write(NOISE[:6, :6, 1], photometric="miniswhite", compression="deflate")
    pixels, odd = decode_checked(tmp_path / "x.tif", Decoding(1, SIDE))
    np.testing.assert_array_equal(pixels[0], 255 - NOISE[..., 0])
    assert odd == [PAGES]


def test_four_samples_without_an_opacity_tag_are_four_channels(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.fromarray(NOISE, "RGBA").save(out, "TIFF")
    content = out.getvalue()
    assert content.count(b"\x52\x01\x03\0") == 1  # the tag ExtraSamples
    (tmp_path / "x.tif").write_bytes(content.replace(b"\x52\x01\x03\0", b"\x51\x01\x03\0"))
    assert probe(tmp_path / "x.tif").channels == 4
    np.testing.assert_array_equal(decode(tmp_path / "x.tif", Decoding(4, SIDE)), NOISE.transpose(2, 0, 1))


def test_large_images_are_read_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnlab.io.decode._LARGE", SIDE * SIDE * 4)
    np.save(tmp_path / "x.npy", NOISE[..., :1].repeat(5, 2))
    read, inside, most = np.lib.format.read_array, [], []

    def slow(*arguments: object, **options: object) -> np.ndarray:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.002)
        array: np.ndarray = read(*arguments, **options)  # type: ignore[arg-type]
        inside.pop()
        return array

    monkeypatch.setattr(np.lib.format, "read_array", slow)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: decode(tmp_path / "x.npy", Decoding(5, SIDE)), range(8)))
    assert max(most) == 1


def test_a_channel_next_to_opacity_is_not_dropped(tmp_path: Path) -> None:
    five = RNG.integers(0, 256, (SIDE, SIDE, 5), np.uint8)
    tiff(tmp_path / "x.tif", five, photometric="rgb", extrasamples=["unassalpha", "unspecified"])
    np.testing.assert_array_equal(decode(tmp_path / "x.tif", Decoding(5, SIDE)), five.transpose(2, 0, 1))


@pytest.mark.parametrize("codec", ["imagecodecs", "tifffile"])
def test_a_tiff_bomb_is_one_line(tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if codec == "tifffile":
        monkeypatch.delitem(sys.modules, "imagecodecs")
    small = zlib.compress(NOISE[..., :1].repeat(5, 2).tobytes())
    bomb = zlib.compress(bytes(1 << 26), 9)
    for name, strip, fits in (("x.tif", small, True), ("bomb.tif", bomb, False)):
        strips = iter([strip])
        tifffile.imwrite(tmp_path / name, strips, shape=(SIDE, SIDE, 5), dtype=np.uint8, photometric="minisblack",
                         planarconfig="contig", compression="deflate", rowsperstrip=SIDE)  # fmt: skip
        if fits:
            assert decode(tmp_path / name, Decoding(5, SIDE)).shape == (5, SIDE, SIDE)
        else:
            with pytest.raises(BadImage) as caught:
                decode(tmp_path / name, Decoding(5, SIDE))
            assert "\n" not in str(caught.value)


def npy_bytes(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


@pytest.mark.parametrize("name", ["lenet", "lenet-bn-scratch", "alexnet", "vgg11", "nin", "resnet18", "airbench94"])
def test_networks_of_every_kind_take_five_channels(name: str) -> None:
    with torch.device("meta"):
        network = build_model(name, num_classes=3, in_channels=5, image_size=224)
        assert network.eval()(torch.zeros(2, 5, 224, 224)).shape == (2, 3)


def test_a_run_on_five_channels_trains_evaluates_and_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cnnlab import evaluate_run, load_model, predict, resume, train

    monkeypatch.chdir(tmp_path)
    made = [random_uint16(5) // (1 + 9 * (i > 3)) for i in range(8)]
    make_folder(tmp_path / "bands", lambda path, i: FORMS["planar" if i % 2 else "chunky"](path, made[i]), count=4)
    result = train(data="folder:bands", model="airbench-small", image_size=28, epochs=1, batch_size=4, val_fraction=0.25,
                   brightness=0.1, saturation=0.1, contrast=0.1, randaugment=2, threads=1, progress="none")  # fmt: skip
    assert result.run.info["preprocessing"]["channels"] == 5
    assert len(result.run.info["preprocessing"]["lows"]) == 5
    assert evaluate_run(result.run, threads=1).result.count == 2
    files = [tmp_path / "bands" / "a" / "0.tif", tmp_path / "bands" / "b" / "3.tif"]
    found, _ = predict(result.run, files, threads=1)
    model = load_model(result.run)
    p = model.preprocessing.decoding
    arrays = [decode(file, p) for file in files]
    for top, pixels in zip(found, arrays, strict=True):
        assert model.predict(pixels).labels == [top.top[0][0]]
        assert model.predict(pixels.transpose(1, 2, 0).copy()).labels == [top.top[0][0]]
    Image.fromarray(NOISE[..., :3]).save(tmp_path / "photo.png")
    with pytest.raises(CnnlabError, match=r"photo\.png.*\b3 channels.*\b5\b"):
        predict(result.run, [tmp_path / "photo.png"], threads=1)
    assert resume(result.run.path, epochs=2, threads=1, progress="none").run.info["preprocessing"]["highs"]
