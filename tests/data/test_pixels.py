"""Pixels of unusual files: deep greys, transparency, broken metadata, truncated files."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnlab.data import ImageSet, SourceOptions, load_images
from cnnlab.io.decode import BadImage, Decoding, TooLarge, bombs_refused, decode, decode_checked
from cnnlab.io.errors import CnnlabError
from cnnlab.machine.doctor import verify


def load(path: Path, split: str = "train", **options: object) -> ImageSet:
    found = load_images(f"folder:{path}", split, SourceOptions(data_dir=Path(), **options))  # type: ignore[arg-type]
    assert found is not None
    return found


def save(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


# Deep greys


@pytest.mark.parametrize(
    ("dtype", "values", "low", "high"),
    [
        (np.uint16, (0, 4095), 0, 4095),  # 12 bits, as from cameras and scanners
        (np.uint16, (0, 1000), 0, 1023),
        (np.uint16, (3, 65000), 0, 65535),
        (np.uint16, (0, 200), 0, 255),
        (np.int32, (-1000, 3000), -1000, 3000),  # Hounsfield units
        (np.int32, (0, 100_000), 0, 100_000),
        (np.float32, (0.0, 1.0), 0, 1),
        (np.float32, (0.0, 1.01), 0, 1.01),
        (np.uint16, (0, 17), 0, 17),
        (np.float32, (-1.0, 1.0), -1, 1),
        (np.uint16, (32_000, 33_000), 32_000, 33_000),  # a thermal camera
        (np.float32, (36.0, 39.0), 36, 39),
        (np.float32, (-0.1, 0.1), -0.1, 0.1),
        (np.int32, (-310, -300), -310, -300),
        (np.uint16, (100, 1100), 0, 1100),
    ],
)
def test_one_range_is_used_for_the_whole_source(
    tmp_path: Path, dtype: type, values: tuple[float, float], low: float, high: float
) -> None:
    ramp = np.linspace(*values, 64).astype(dtype).reshape(8, 8)
    dark = np.linspace(values[0], values[0] + (values[1] - values[0]) / 8, 64).astype(dtype).reshape(8, 8)
    save(ramp, tmp_path / "a/1.tif")
    save(dark, tmp_path / "b/1.tif")
    found = load(tmp_path)
    assert found.decoding is not None
    assert (found.decoding.low, found.decoding.high) == pytest.approx((low, high))
    low, high = found.decoding.low, found.decoding.high
    for image, array in zip(found.images, (ramp, dark), strict=True):
        wanted = np.clip((array.astype(np.float64) - low) * 255 / (high - low) + 0.5, 0, 255).astype(np.uint8)
        assert np.array_equal(image[0].numpy(), wanted)


def test_other_splits_are_scaled_by_the_training_range(tmp_path: Path) -> None:
    for name in "ab":
        save(np.full((8, 8), 2047, np.uint16), tmp_path / "train" / name / "1.png")
        save(np.full((8, 8), 4000, np.uint16), tmp_path / "train" / name / "2.png")
        save(np.full((8, 8), 60000, np.uint16), tmp_path / "test" / name / "1.png")
        save(np.full((8, 8), 1024, np.uint16), tmp_path / "test" / name / "2.png")
    assert load(tmp_path, "test").images[:2, 0, 0, 0].tolist() == [255, 64]
    assert load(tmp_path, "test").decoding == load(tmp_path).decoding


FLOATS = np.linspace(0, 1, 64).astype(np.float32).reshape(8, 8)
TWELVE = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)
WARM = np.linspace(290, 310, 64).astype(np.float32).reshape(8, 8)
MISSING = {
    "-9999": (FLOATS, -9999, {}, (0, 1)),
    "NaN": (FLOATS, np.nan, {}, (0, 1)),
    "Inf": (FLOATS, np.inf, {}, (0, 1)),
    "65535": (TWELVE, 65_535, {}, (0, 4095)),
    "0": (WARM, 0, {}, (290, 310)),
    "heights": (np.linspace(-50, 3000, 64).astype(np.int32).reshape(8, 8), -9999, {}, (-50, 3000)),
    "GDAL's tag": (FLOATS, -1, {42113: "-1"}, (0, 1)),
    "void of a mask": (np.eye(8, dtype=np.uint16), 65_535, {}, (0, 1)),
}


@pytest.mark.parametrize("case", MISSING)
def test_missing_data_does_not_set_the_range(tmp_path: Path, case: str) -> None:
    values, missing, tags, (low, high) = MISSING[case]
    holed = values.copy()
    holed[3] = missing  # an eighth of the pixels
    for name, array in (("a/1", holed), ("b/1", values), ("b/2", np.full_like(values, missing))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(array).save(tmp_path / f"{name}.tif", tiffinfo=tags)
    found = load(tmp_path)
    assert found.decoding is not None
    assert (found.decoding.low, found.decoding.high) == pytest.approx((low, high))
    shown = np.clip((values.astype(np.float64) - low) * 255 / (high - low) + 0.5, 0, 255).astype(np.uint8)
    assert np.array_equal(found.images[1, 0].numpy(), shown)
    assert np.array_equal(np.delete(found.images[0, 0].numpy(), 3, 0), np.delete(shown, 3, 0))
    assert ["missing" in warning for warning in found.warnings] == [True]
    assert [check.state for check in verify(f"folder:{tmp_path}") if check.text.startswith("values:")] == ["ok"]


def test_black_and_white_images_and_dark_backgrounds_are_not_missing_data(tmp_path: Path) -> None:
    ground = np.where(np.eye(8, dtype=bool), np.linspace(20_000, 60_000, 8), 0).astype(np.uint16)
    for name, array in (("a/1", np.eye(8, dtype=np.uint16) * 65_535), ("b/1", ground), ("b/2", ground + 100)):
        save(array, tmp_path / f"{name}.png")
    found = load(tmp_path)
    assert found.decoding is not None
    assert (found.decoding.low, found.decoding.high) == (0, 65_535)
    assert found.warnings == ()


# Transparency


def save_drawing(ink: int, path: Path) -> None:
    """Save a disc of grey level `ink` on a transparent background."""
    y, x = np.mgrid[:16, :16]
    alpha = np.where((y - 8) ** 2 + (x - 8) ** 2 < 25, 255, 0)
    save(np.stack([np.full((16, 16), ink)] * 3 + [alpha], 2).astype(np.uint8), path)


@pytest.mark.parametrize(("ink", "background"), [(0, 255), (40, 255), (220, 0), (255, 0)])
def test_the_background_of_drawings_is_chosen_by_measurement(tmp_path: Path, ink: int, background: int) -> None:
    for name in "ab":
        save_drawing(ink, tmp_path / name / "1.png")
    images = load(tmp_path).images
    assert (images[:, :, 0, 0] == background).all()
    assert (images[:, :, 8, 8] == ink).all()
    assert load(tmp_path).warnings == ()


def test_the_background_can_be_set(tmp_path: Path) -> None:
    for name in "ab":
        save_drawing(0, tmp_path / name / "1.png")
        save_drawing(0, tmp_path / name / "2.png")
    found = load(tmp_path, background="black")
    assert (found.images == 0).all()
    assert len(found.warnings) == 2  # each class has only one colour
    assert "2 of 2" in found.warnings[0]


# Metadata


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def exif(tag: int, text: str) -> bytes:
    """Return EXIF data with text in place of a number."""
    value = text.encode() + b"\0"
    return (
        b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 1) + struct.pack("<HHII", tag, 2, len(value), 26)
        + bytes(4) + value
    )  # fmt: skip


LARGE = zlib.compress(bytes(3_000_000))
PNG_CHUNKS = {
    "junk EXIF": [chunk(b"eXIf", b"\xff" * 50)],
    "EXIF cut short": [chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + b"\x11" * 40)],
    "orientation as text": [chunk(b"eXIf", exif(0x0112, "upside down"))],
    "large text": [chunk(b"zTXt", b"Comment\0\0" + LARGE)],
    "large colour profile": [chunk(b"iCCP", b"x\0\0" + LARGE)],
    "many texts": [chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1_000_000)))] * 80,
}
JPEG_SEGMENTS = {
    "junk EXIF": segment(0xE1, b"Exif\0\0" + b"\xff" * 60),
    "resolution as text": segment(0xE1, b"Exif\0\0" + exif(0x011A, "seventy two")),
    "orientation as text": segment(0xE1, b"Exif\0\0" + exif(0x0112, "upside down")),
    "junk multi-picture index": segment(0xE2, b"MPF\0" + b"\xff" * 60),
    "junk colour profile": segment(0xE2, b"ICC_PROFILE\0\x01\x05" + b"\xff" * 60),
    "junk Photoshop block": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x03\xed\0\0\0\0\0\x02ab"),
    "Adobe marker cut short": segment(0xEE, b"Adobe"),
    "zero-sized density": segment(0xE0, b"JFIF\0\1\2\1\0\0\0\0\0\0"),
}
HOW = Decoding(3, 16)


def picture(kind: str, **options: object) -> tuple[np.ndarray, bytes]:
    array = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind, **options)
    return array.transpose(2, 0, 1), out.getvalue()


@pytest.mark.parametrize("case", PNG_CHUNKS)
def test_png_pixels_survive_broken_metadata(case: str) -> None:
    array, content = picture("PNG")
    with bombs_refused():
        assert np.array_equal(decode("a", HOW, content[:33] + b"".join(PNG_CHUNKS[case]) + content[33:]), array)


@pytest.mark.parametrize("case", JPEG_SEGMENTS)
def test_jpeg_pixels_survive_broken_metadata(case: str) -> None:
    content = picture("JPEG", quality=95)[1]
    with bombs_refused():
        found = decode("a", HOW, content[:2] + JPEG_SEGMENTS[case] + content[2:])
        assert np.array_equal(found, decode("a", HOW, content))


@pytest.mark.parametrize("metadata", [{"exif": b"Exif\0\0" + b"\xff" * 50}, {"icc_profile": b"junk" * 5}])
def test_webp_pixels_survive_broken_metadata(metadata: dict[str, bytes]) -> None:
    array, content = picture("WEBP", lossless=True, **metadata)
    with bombs_refused():
        assert np.array_equal(decode("a", HOW, content), array)


def test_orientation_survives_other_broken_metadata() -> None:
    turned = Image.Exif()
    turned[0x0112] = 3  # by 180 degrees
    array, content = picture("PNG", exif=turned)
    with bombs_refused():
        found = decode("a", HOW, content[:33] + chunk(b"iCCP", b"x\0\0" + LARGE) + content[33:])
    assert np.array_equal(found, array[:, ::-1, ::-1])


def test_damaged_pixels_are_errors_and_exceeding_the_limit_is_not_damage(tmp_path: Path) -> None:
    content = bytearray(picture("PNG")[1])
    content[60] ^= 0xFF
    with bombs_refused(), pytest.raises(BadImage, match="damaged"):
        decode("a", HOW, bytes(content))
    Image.new("1", (10_000, 10_000)).save(tmp_path / "bomb.png")
    with bombs_refused(), pytest.raises(TooLarge):
        decode(tmp_path / "bomb.png", HOW)


# Truncated files


def test_a_jpeg_cut_short_with_an_end_marker_is_noticed(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.effect_mandelbrot((120, 90), (-2, -1.5, 1, 1.5), 30).save(tmp_path / name / "1.jpg", quality=90)
    assert load(tmp_path).warnings == ()
    whole = (tmp_path / "a/1.jpg").read_bytes()
    (tmp_path / "a/1.jpg").write_bytes(whole[: len(whole) // 2] + b"\xff\xd9")
    assert decode_checked(tmp_path / "a/1.jpg", HOW)[1]
    assert "1.jpg" in load(tmp_path).warnings[0]


JPEGS: dict[str, tuple[str, dict[str, object]]] = {
    "colour": ("RGB", {}),
    "grey": ("L", {}),
    "CMYK": ("CMYK", {}),
    "progressive": ("RGB", {"progressive": True}),
    "restart markers": ("RGB", {"restart_marker_blocks": 4}),
}


@pytest.mark.parametrize("kind", JPEGS)
def test_a_cut_jpeg_is_noticed_and_a_missing_end_marker_is_not(tmp_path: Path, kind: str) -> None:
    mode, options = JPEGS[kind]
    picture = Image.effect_mandelbrot((120, 90), (-2, -1.5, 1, 1.5), 30)
    picture.paste(128, (0, 60, 120, 90))  # a grey area is not damage
    scene = Image.effect_mandelbrot((120, 90), (-2, -1.5, 1, 1.5), 30).convert(mode)
    file = tmp_path / "1.jpg"
    for image in (picture.convert(mode), scene):
        image.save(file, quality=90, **options)  # type: ignore[arg-type]
        whole = file.read_bytes()
        pixels, odd = decode_checked(file, HOW)
        assert odd == []
        assert np.array_equal(decode("a", HOW, whole[:-2]), pixels)
        assert np.array_equal(decode("a", HOW, whole[:-1]), pixels)
    for share in (0.3,) if kind == "progressive" else (0.5, 0.9, 0.95):
        cut = whole[: int(len(whole) * share)]
        file.write_bytes(cut + b"\xff\xd9")
        assert decode_checked(file, HOW)[1] != []
        for zeros in (0, 9, 900, 9000):  # trailing zeros, as in an unfinished download
            file.write_bytes(cut + bytes(zeros))
            try:
                assert decode_checked(file, HOW)[1] != []
            except BadImage:
                continue


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_with_a_broken_header_is_damaged(kind: str) -> None:
    content = picture(kind)[1]
    with pytest.raises(BadImage, match="damaged"):
        decode("a", HOW, content[: 200 if kind == "JPEG" else 20])


def test_a_strip_that_vanishes_when_it_is_padded_is_noticed(tmp_path: Path) -> None:
    for name in "ab":
        for i in range(2):
            save(np.full((4, 4096), 200, np.uint8), tmp_path / name / f"{i}.png")
    assert len(load(tmp_path).warnings) == 3  # one: they are strips; and one per class: nothing is left of them
    assert len(load(tmp_path, fit="crop").warnings) == 3
    assert len(load(tmp_path, fit="stretch").warnings) == 2  # the images really are of one grey


def test_single_pixels_are_noticed(tmp_path: Path) -> None:
    for name in "ab":
        save(np.full((1, 1, 3), (9, 99, 199), np.uint8), tmp_path / name / "1.png")
        save(np.full((9, 9, 3), (9, 99, 199), np.uint8), tmp_path / name / "2.png")
    assert ["2 train images" in warning for warning in load(tmp_path).warnings][:1] == [True]


def test_pages_beyond_the_first_are_mentioned(tmp_path: Path) -> None:
    pages = [Image.effect_noise((16, 16), sigma) for sigma in (20, 40, 60)]
    for name, more in (("a/1.tif", pages[1:]), ("a/2.gif", pages[1:]), ("b/1.tif", []), ("b/2.png", [])):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pages[0].save(tmp_path / name, save_all=bool(more), append_images=more)
    found = load(tmp_path)
    assert [warning.split()[0] for warning in found.warnings] == ["2"]
    assert np.array_equal(found.images[0, 0].numpy(), np.asarray(pages[0]))


def test_twelve_bits_of_colour_are_mentioned(tmp_path: Path) -> None:
    # Of 16-bit colour Pillow reads only the upper eight bits, which are nearly empty here.
    for name in "ab":
        save((np.random.default_rng(0).integers(0, 4096, (16, 16, 3)) >> 8).astype(np.uint8), tmp_path / name / "1.png")
    assert ["0 to 15" in warning for warning in load(tmp_path).warnings] == [True]
    for name in "ab":  # masks
        save(np.eye(16, dtype=np.uint8), tmp_path / "2" / name / "1.png")
    assert ["multiply" in warning for warning in load(tmp_path / "2").warnings] == [True]


def test_similar_class_names_are_mentioned(tmp_path: Path) -> None:
    for name in ("Red panda", "red_panda", "zebra"):
        (tmp_path / name).mkdir()
        Image.effect_noise((16, 16), 50).save(tmp_path / name / "1.png")
    found = load(tmp_path)
    assert len(found.classes) == 3
    assert ["Red panda" in warning and "red_panda" in warning for warning in found.warnings] == [True]


def test_test_images_that_cannot_be_read_are_mentioned_before_the_training(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            Image.effect_noise((16, 16), 50).save(tmp_path / split / name / "1.png")
    assert load(tmp_path).warnings == ()
    (tmp_path / "test/b/2.png").write_bytes(b"no image")
    assert ["1 test images" in warning and "2.png" in warning for warning in load(tmp_path).warnings] == [True]


def test_one_outlier_does_not_set_the_range(tmp_path: Path) -> None:
    ramp = np.linspace(0, 4095, 64 * 64).astype(np.uint16).reshape(64, 64)
    marked = ramp.copy()
    marked[0, 0] = 65535  # a dead pixel
    save(ramp, tmp_path / "a/1.tif")
    save(marked, tmp_path / "b/1.tif")
    found = load(tmp_path)
    assert found.decoding is not None
    assert found.decoding.high == 4095
    assert len(found.warnings) == 1
    missing = ramp.astype(np.float32)
    missing[:2] = -3.4e38  # missing data in a GeoTIFF
    for name in "ab":
        save(missing, tmp_path / "2" / name / "1.tif")
    found = load(tmp_path / "2")
    assert found.decoding is not None
    assert (found.decoding.low, found.decoding.high) == (0, 4095)
    assert found.images.max() == 255
    assert len(found.images.unique()) > 200


def test_a_copied_class_folder_is_mentioned_and_distinct_names_are_not(tmp_path: Path) -> None:
    for name in ("dogs", "dogs - Copy", "C", "C++", "-1", "1"):
        (tmp_path / name).mkdir()
        Image.effect_noise((16, 16), 50).save(tmp_path / name / "1.png")
    assert ["dogs - Copy" in warning for warning in load(tmp_path).warnings] == [True]


def test_some_classes_or_a_test_split_alone_are_enough_for_an_evaluation(tmp_path: Path) -> None:
    for name in ("one/cats", "two/test/cats", "two/test/dogs"):
        (tmp_path / name).mkdir(parents=True)
        Image.effect_noise((16, 16), 50).save(tmp_path / name / "1.png")
    how = Decoding(1, 16)
    assert load(tmp_path / "one", decoding=how).classes == ["cats"]
    assert load(tmp_path / "two", "test", decoding=how).classes == ["cats", "dogs"]
    for name in ("one", "two"):
        with pytest.raises(CnnlabError):
            load(tmp_path / name)


def test_a_test_split_without_labels_does_not_change_other_labels(tmp_path: Path) -> None:
    for name in ("train/cats", "train/zebras", "val/zebras", "test/images"):
        (tmp_path / name).mkdir(parents=True)
        Image.effect_noise((16, 16), 50).save(tmp_path / name / "1.png")
    train = load(tmp_path)
    held_out = load(tmp_path, "validation", decoding=train.decoding)
    assert train.classes == held_out.classes == ["cats", "zebras"]
    assert held_out.labels.tolist() == [1]
