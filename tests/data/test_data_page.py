"""The tables of docs/data.md. For each row a folder is made and read.

`pytest tests/data/test_data_page.py --data-table docs/data.md` writes the tables; without the option they are compared.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, features

from cnnlab.data import SourceOptions, load_images
from cnnlab.io.errors import CnnlabError
from cnnlab.training.header import class_counts, passed_over_text

PAGE = Path(__file__).parents[2] / "docs/data.md"
ACCEPTED, REFUSED = "accepted", "refused"

# files (a trailing slash: an empty folder), and the outcome
LAYOUTS: list[tuple[str, str]] = [
    ("cats/1.jpg cats/2.png dogs/1.jpg", ACCEPTED),
    ("cats/2024/may/1.jpg cats/2.jpg dogs/1.jpg", ACCEPTED),
    ("train/cats/1.jpg train/dogs/1.jpg val/cats/2.jpg val/dogs/2.jpg test/cats/3.jpg test/dogs/3.jpg", ACCEPTED),
    ("Training/cats/1.jpg Training/dogs/1.jpg Testing/cats/1.jpg Testing/dogs/1.jpg", ACCEPTED),
    ("seg_train/cats/1.jpg seg_train/dogs/1.jpg seg_test/cats/1.jpg", ACCEPTED),
    ("train/cats/1.jpg train/dogs/1.jpg test/1.jpg test/2.jpg", ACCEPTED),
    ("train_images/cats/1.jpg train_images/dogs/1.jpg test_images/cats/1.jpg", ACCEPTED),
    ("cats/1.jpg dogs/1.jpg runs/digits-001/run.json runs/digits-001/curves.png", ACCEPTED),
    ("cats/1.jpg dogs/1.jpg birds/ 7.jpg 8.jpg labels.csv", ACCEPTED),
    ("cats/1.jpg cats/IMG_1.cr2 cats/IMG_2.MOV dogs/1.jpg", ACCEPTED),
    ("cats/1.jpg cats/@eaDir/1.jpg dogs/1.jpg dogs/._1.jpg __MACOSX/cats/1.jpg #recycle/old.jpg", ACCEPTED),
    ("train/cats/1.jpg train/dogs/1.jpg unlabelled/1.jpg", ACCEPTED),
    ("Red_Panda/1.jpg red-panda/1.jpg zebra/1.jpg", ACCEPTED),
    ("color/cats/1.jpg color/dogs/1.jpg grayscale/cats/1.jpg grayscale/dogs/1.jpg", ACCEPTED),
    ("1.jpg 2.jpg", REFUSED),
    ("cat.0.jpg cat.1.jpg dog.0.jpg", REFUSED),
    ("images/1.jpg images/2.jpg labels.csv", REFUSED),
    ("pets/cats/1.jpg pets/dogs/1.jpg", REFUSED),
    ("cats/1.jpg cats/2.jpg", REFUSED),
    ("cats/1.jpg dogs/1.dng dogs/2.dng", REFUSED),
    ("cats/1.jpg dogs/0a1b dogs/0a1c", REFUSED),
    ("cats/1.jpg dogs/1.mp4", REFUSED),
    ("valid/cats/1.jpg valid/dogs/1.jpg test/cats/1.jpg", REFUSED),
    ("cats/1.jpg dogs/1.jpg test/1.jpg test/2.jpg", REFUSED),
    ("fold1/cats/1.jpg fold1/dogs/1.jpg fold2/cats/2.jpg fold2/dogs/2.jpg", REFUSED),
    ("train/cats/1.jpg train/dogs/1.jpg val/cats/1.jpg dev/cats/1.jpg", REFUSED),
    ("train/cats/1.jpg train/dogs/1.jpg holdout/cats/1.jpg", REFUSED),
    ("train/cats/1.jpg train/dogs/1.jpg test/Cats/1.jpg", REFUSED),
    ("train/cats/1.jpg train/dogs/1.jpg val/1.jpg", REFUSED),
    ("train/1.jpg test1/2.jpg", REFUSED),
    ("cats/train/1.jpg cats/test/1.jpg dogs/train/1.jpg dogs/test/1.jpg", REFUSED),
    ("cats/1.jpg dogs/1.jpg pets/cats/1.jpg pets/dogs/1.jpg", REFUSED),
]

NOISE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
RGB, GREY = Image.fromarray(NOISE), Image.fromarray(NOISE[..., 0])


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.copy().save(out, kind, **options)  # a copy: Pillow stores a JPEG's settings in the image
    return out.getvalue()


def encode_grey(dtype: type, low: float, high: float, missing: float | None = None, kind: str = "TIFF") -> bytes:
    values = np.linspace(low, high, 256).astype(dtype)
    if missing is not None:
        values[5::10] = missing
    return encode(Image.fromarray(values.reshape(16, 16)), kind)


def random_uint16(channels: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 65536, (16, 16, channels), np.uint16)


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, pixels, **options)
    return out.getvalue()


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def png(pixels: np.ndarray) -> bytes:
    """Return a PNG with 16 bits per channel, which Pillow cannot write, unfiltered. pixels: (H, W, 3) uint16."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def turned_jpeg() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(RGB, "JPEG", exif=exif)


def transparent_drawing() -> bytes:
    """Return a black shape on a transparent background."""
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[4:12, 4:12, 3] = 255
    return encode(Image.fromarray(pixels), "PNG")


def cut_off_jpeg() -> bytes:
    whole = encode(Image.effect_mandelbrot((120, 90), (-2, -1.5, 1, 1.5), 30), "JPEG")
    return whole[: len(whole) // 2] + b"\xff\xd9"


# description, file name, content, outcome
FILES: list[tuple[str, str, Callable[[], bytes], str]] = [
    ("PNG, RGB", "1.png", lambda: encode(RGB, "PNG"), ACCEPTED),
    ("PNG, grey", "1.png", lambda: encode(GREY, "PNG"), ACCEPTED),
    ("PNG, palette", "1.png", lambda: encode(RGB.convert("P"), "PNG"), ACCEPTED),
    ("PNG, black and white", "1.png", lambda: encode(GREY.convert("1"), "PNG"), ACCEPTED),
    ("PNG, RGB, 16 bits of which 12 are used", "1.png", lambda: png(random_uint16(3) >> 4), ACCEPTED),
    ("PNG, dark drawing on a transparent ground", "1.png", transparent_drawing, ACCEPTED),
    ("JPEG, RGB", "1.jpg", lambda: encode(RGB, "JPEG"), ACCEPTED),
    ("JPEG, grey", "1.jpeg", lambda: encode(GREY, "JPEG"), ACCEPTED),
    ("JPEG, CMYK", "1.jpg", lambda: encode(RGB.convert("CMYK"), "JPEG"), ACCEPTED),
    ("JPEG, turned by its EXIF orientation", "1.jpg", turned_jpeg, ACCEPTED),
    ("JPEG, cut off but closed", "1.jpg", cut_off_jpeg, ACCEPTED),
    ("JPEG, without its end marker", "1.jpg", lambda: encode(RGB, "JPEG")[:-2], ACCEPTED),
    ("WebP", "1.webp", lambda: encode(RGB, "WEBP"), ACCEPTED),
    ("AVIF", "1.avif", lambda: encode(RGB, "AVIF"), ACCEPTED),
    ("JPEG 2000", "1.jp2", lambda: encode(RGB, "JPEG2000"), ACCEPTED),
    ("GIF", "1.gif", lambda: encode(RGB, "GIF"), ACCEPTED),
    ("GIF, animated", "1.gif", lambda: encode(RGB, "GIF", save_all=True, append_images=[GREY]), ACCEPTED),
    ("BMP", "1.bmp", lambda: encode(RGB, "BMP"), ACCEPTED),
    ("TIFF, RGB", "1.tif", lambda: encode(RGB, "TIFF"), ACCEPTED),
    ("TIFF, several pages", "1.tiff", lambda: encode(RGB, "TIFF", save_all=True, append_images=[GREY]), ACCEPTED),
    ("TIFF, grey, 16 bits of which 12 are used", "1.tif", lambda: encode_grey(np.uint16, 0, 4095), ACCEPTED),
    (
        "PNG, grey, 16 bits, 32000 to 33000",
        "1.png",
        lambda: encode_grey(np.uint16, 32_000, 33_000, kind="PNG"),
        ACCEPTED,
    ),
    (
        "TIFF, floating point, 0 to 1, a tenth of it -9999",
        "1.tif",
        lambda: encode_grey(np.float32, 0, 1, -9999),
        ACCEPTED,
    ),
    ("TIFF, floating point, 0 to 1.01", "1.tif", lambda: encode_grey(np.float32, 0, 1.01), ACCEPTED),
    ("TIFF, 32-bit integers, -1000 to 3000", "1.tif", lambda: encode_grey(np.int32, -1000, 3000), ACCEPTED),
    ("TIFF, RGB, 16 bits", "1.tif", lambda: tiff(random_uint16(3), photometric="rgb"), ACCEPTED),
    (
        "TIFF, RGB and a fourth channel that is not opacity",
        "1.tif",
        lambda: tiff(random_uint16(4), photometric="rgb", extrasamples=["unspecified"]),
        ACCEPTED,
    ),
    ("TIFF, five channels, 16 bits", "1.tif", lambda: tiff(random_uint16(5), photometric="minisblack"), ACCEPTED),
    (
        "TIFF, five channels, each in a plane, floating point",
        "1.tif",
        lambda: tiff(random_uint16(5).transpose(2, 0, 1) / np.float32(65535), planarconfig="separate"),
        ACCEPTED,
    ),
    (
        "TIFF, five channels of ImageJ",
        "1.tif",
        lambda: tiff(random_uint16(5).transpose(2, 0, 1), imagej=True, metadata={"axes": "CYX"}),
        ACCEPTED,
    ),
    (
        "TIFF, depth of ImageJ",
        "1.tif",
        lambda: tiff(random_uint16(5).transpose(2, 0, 1), imagej=True, metadata={"axes": "ZYX"}),
        ACCEPTED,
    ),
    ("NumPy, uint8 (H, W, 5)", "1.npy", lambda: npy((random_uint16(5) >> 8).astype(np.uint8)), ACCEPTED),
    ("NumPy, uint16 (5, H, W)", "1.npy", lambda: npy(random_uint16(5).transpose(2, 0, 1)), ACCEPTED),
    ("NumPy, float32 (H, W), 0 to 1", "1.npy", lambda: npy(random_uint16(1)[..., 0] / np.float32(65535)), ACCEPTED),
    ("NumPy, uint8 (H, W, 3)", "1.npy", lambda: npy(NOISE), ACCEPTED),
    ("NumPy, (16, 16, 16)", "1.npy", lambda: npy(np.zeros((16, 16, 16), np.uint8)), REFUSED),
    ("NumPy, four axes", "1.npy", lambda: npy(np.zeros((2, 3, 16, 16), np.uint8)), REFUSED),
    ("NumPy, objects", "1.npy", lambda: npy(np.array([["a", None]])), REFUSED),
    ("HEIC (with pillow-heif)", "1.heic", lambda: encode(RGB, "HEIF"), ACCEPTED),
    ("PNM", "1.ppm", lambda: encode(RGB, "PPM"), ACCEPTED),
    ("TGA", "1.tga", lambda: encode(RGB, "TGA"), ACCEPTED),
    ("ICO", "1.ico", lambda: encode(RGB, "ICO", sizes=[(16, 16)]), ACCEPTED),
    ("PCX", "1.pcx", lambda: encode(RGB, "PCX"), ACCEPTED),
    ("SGI", "1.sgi", lambda: encode(RGB, "SGI"), ACCEPTED),
    ("WebP whose name ends in .jpg", "1.jpg", lambda: encode(RGB, "WEBP"), ACCEPTED),
    ("JPEG that stops in the middle", "1.jpg", lambda: encode(RGB.resize((99, 99)), "JPEG")[:900], REFUSED),
    ("JPEG that stops in its header", "1.jpg", lambda: encode(RGB, "JPEG")[:300], REFUSED),
    ("A web page whose name ends in .jpg", "1.jpg", lambda: b"<!DOCTYPE html><html></html>", REFUSED),
    ("An empty file", "1.png", lambda: b"", REFUSED),
    ("PNG of 10,000 x 10,000 pixels", "1.png", lambda: encode(Image.new("1", (10_000, 10_000)), "PNG"), REFUSED),
]


def outcome(folder: Path) -> tuple[str, str]:
    """Return ACCEPTED and what was found, or REFUSED and why."""
    parts: list[str] = []
    try:
        for split in ("train", "validation", "test"):
            images = load_images(f"folder:{folder}", split, SourceOptions(data_dir=Path()))
            if images is None:
                continue
            found = zip(images.classes, class_counts(images), strict=True)
            parts.append(f"{split}: " + ", ".join(f"{name} {count}" for name, count in found))
            if split == "train" and images.passed_over:
                parts.append(f"skipped: {passed_over_text(images.passed_over)}")
            parts += [f"warning: {text}" for text in images.warnings]
    except CnnlabError as error:
        return REFUSED, str(error).replace(str(folder), "PATH")
    return ACCEPTED, "; ".join(parts).replace(str(folder), "PATH")


def table_row(first: str, kind: str, text: str) -> str:
    return f"| {first} | {text if kind == ACCEPTED else f'**refused**: {text}'} |\n".replace("\\", "/")


def check_table(name: str, head: str, rows: list[str], request: pytest.FixtureRequest) -> None:
    """Compare a table with the one on the page, or write it there."""
    made = f"| {head} |\n| --- | --- |\n{''.join(rows)}"
    file = request.config.getoption("--data-table")
    text = (file or PAGE).read_text(encoding="utf-8")
    before, mark, rest = text.partition(f"<!-- {name} -->\n")
    old, end, after = rest.partition(f"<!-- end of {name} -->")
    assert mark, f"no mark for the table of {name}"
    assert end, f"no end of the table of {name}"
    if file:
        file.write_text(before + mark + made + end + after, encoding="utf-8")
    else:
        assert old == made


def test_every_layout_is_read_as_documented(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    rows = []
    for number, (files, wanted) in enumerate(LAYOUTS):
        root = tmp_path / f"{number}"
        for i, name in enumerate(files.split()):
            path = root / name
            (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                Image.fromarray(np.roll(NOISE, i)).save(path, "PNG")
        kind, text = outcome(root)
        assert kind == wanted, (files, text)
        rows.append(table_row("<br>".join(f"`{name}`" for name in files.split()), kind, text))
    check_table("layouts", "In the folder PATH | Read as", rows, request)


@pytest.mark.skipif(
    not find_spec("pillow_heif") or not features.check("avif") or not features.check("jpg_2000"),
    reason="this Pillow lacks a format",
)
def test_every_kind_of_file_is_read_as_documented(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    rows = []
    for number, (what, name, content, wanted) in enumerate(FILES):
        root = tmp_path / f"{number}"
        for folder in ("a", "b"):
            (root / folder).mkdir(parents=True)
            (root / folder / name).write_bytes(content())
        kind, text = outcome(root)
        assert kind == wanted, (what, text)
        if kind == ACCEPTED:
            images = load_images(f"folder:{root}", "train", SourceOptions(data_dir=Path()))
            assert images is not None
            assert images.decoding is not None
            channels = images.decoding.channels
            text = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
            if images.decoding.high:
                text += f"; {images.decoding.low:g} to {images.decoding.high:g} become 0 to 255"
            if images.decoding.lows:
                text += "; the range of each becomes 0 to 255"
            if images.decoding.background == "white":
                text += "; on white"
            text += "".join(f"; warning: {warning}".replace(str(root), "PATH") for warning in images.warnings)
        rows.append(table_row(what, kind, text))
    check_table("files", "File | Read as", rows, request)
