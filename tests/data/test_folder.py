"""A user's own folders of images: every format, size and accident."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from cnnlab.data import ImageSet, SourceOptions, load_images
from cnnlab.io.decode import Decoding, decode
from cnnlab.io.errors import CnnlabError


def load(path: Path, split: str = "train", **options: object) -> ImageSet:
    found = load_images(f"folder:{path}", split, SourceOptions(data_dir=Path(), **options))  # type: ignore[arg-type]
    assert found is not None
    return found


def test_a_folder_of_several_formats_is_read(shapes: Path) -> None:
    found = load(shapes)
    assert found.classes == ["bright", "dark"]
    assert found.images.shape == (40, 3, 20, 20)
    assert found.labels.tolist() == [0] * 20 + [1] * 20
    assert found.ids[0] == "bright/00.png"
    for i in (0, 2, 24):  # lossless formats, pixel for pixel
        theirs = np.asarray(Image.open(shapes / found.ids[i]))
        np.testing.assert_array_equal(found.images[i].permute(1, 2, 0).numpy(), theirs)
    assert found.images[:20].float().mean() > 150 > 100 > found.images[20:].float().mean()
    assert load_images(f"folder:{shapes}", "test", SourceOptions(data_dir=Path())) is None


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (10, 10), 7).save(tmp_path / name / "1.png")
    assert load(tmp_path).images.shape == (2, 1, 10, 10)
    Image.new("RGB", (10, 10), "red").save(tmp_path / "a" / "2.png")
    assert load(tmp_path).images.shape == (3, 3, 10, 10)


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("size", [(40, 20), (13, 31), (16, 16), (1, 50)])
def test_fitting_matches_pillow(tmp_path: Path, fit: str, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    image.save(tmp_path / "x.png")
    ours = decode(tmp_path / "x.png", Decoding(3, 16, fit))
    bilinear = Image.Resampling.BILINEAR
    theirs = {
        "pad": lambda: ImageOps.pad(image, (16, 16), bilinear),
        "crop": lambda: ImageOps.fit(image, (16, 16), bilinear),
        "stretch": lambda: image.resize((16, 16), bilinear),
    }[fit]()
    np.testing.assert_array_equal(ours.transpose(1, 2, 0), np.asarray(theirs))


def test_mixed_sizes_get_a_default_that_image_size_overrides(tmp_path: Path) -> None:
    for i, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (30 + i, 40)).save(tmp_path / name / "1.jpg")
    assert load(tmp_path).images.shape[2:] == (64, 64)
    assert load(tmp_path, image_size=32).images.shape[2:] == (32, 32)


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_a_note_names_the_original_sizes_and_the_fit(tmp_path: Path, fit: str) -> None:
    for i, size in enumerate([(40, 30), (300, 200), (9, 70), (64, 64)]):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.new("RGB", size, (i, 9 * i, 200)).save(tmp_path / "ab"[i % 2] / f"{i}.png")
    (note,) = load(tmp_path, fit=fit).notes
    assert "9x70 to 300x200 pixels become 64x64" in note
    assert f"fit={fit}" in note


def test_square_images_of_one_size_need_no_note_on_how_they_fit(shapes: Path) -> None:
    assert load(shapes).notes == ()
    (note,) = load(shapes, image_size=32).notes
    assert note == "images of 20x20 pixels become 32x32"


def test_a_rotated_picture_is_turned_upright(tmp_path: Path) -> None:
    pixels = np.zeros((10, 10), np.uint8)
    pixels[:, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate the image by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    found = decode(tmp_path / "x.png", Decoding(1, 10, "pad"))[0]
    assert (found[0] == 255).all()
    assert (found[1:] == 0).all()


@pytest.mark.parametrize(
    ("mode", "value", "expected"), [("I;16", 65535, 255), ("I;16", 32768, 128), ("L", 77, 77), ("1", 1, 255)]
)
def test_grey_depths_are_scaled_to_8_bits(tmp_path: Path, mode: str, value: int, expected: int) -> None:
    Image.new(mode, (4, 4), value).save(tmp_path / "x.png")
    assert (decode(tmp_path / "x.png", Decoding(1, 4, "pad")) == expected).all()


def test_transparent_pixels_become_black(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 255, 255, 0)).save(tmp_path / "x.png")
    assert (decode(tmp_path / "x.png", Decoding(3, 4, "pad")) == 0).all()


def truncate_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_damaged_images_are_named_or_skipped_and_counted(shapes: Path) -> None:
    truncate_file(shapes / "dark" / "04.png")
    (shapes / "bright" / "01.jpg").write_bytes(b"not an image")
    (shapes / "bright" / "02.bmp").write_bytes(b"")
    with pytest.raises(CnnlabError, match=r"bright/01\.jpg.*--skip-bad"):
        load(shapes)
    found = load(shapes, skip_bad=True)
    assert len(found) == 37
    assert [text.split("shapes/")[1].split()[0] for text in found.skipped] == [
        "bright/01.jpg", "bright/02.bmp", "dark/04.png",
    ]  # fmt: skip
    assert not {"bright/01.jpg", "bright/02.bmp", "dark/04.png"} & set(found.ids)
    assert found.images[-1].float().mean() < 100


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("1", (10_000, 10_000)).save(tmp_path / name / "bomb.png")  # 12 KB that unpack to 100 megapixels
    with pytest.raises(CnnlabError, match=r"bomb\.png.*100,000,000 pixels"):
        load(tmp_path)


def test_empty_and_one_class_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CnnlabError, match=f"{tmp_path} .*no images"):
        load(tmp_path)
    (tmp_path / "only").mkdir()
    with pytest.raises(CnnlabError, match=f"{tmp_path} .*no images"):
        load(tmp_path)
    (tmp_path / "only" / "notes.txt").write_text("no image")
    Image.new("L", (5, 5)).save(tmp_path / "only" / "1.png")
    with pytest.raises(CnnlabError, match=r"\(only\)"):
        load(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(CnnlabError, match=f"folder:{tmp_path / 'file'} .*file"):
        load(tmp_path / "file")


def test_train_and_test_folders_are_splits(shapes: Path, tmp_path: Path) -> None:
    root = tmp_path / "split"
    for split, numbers in (("train", "01234"), ("val", "56"), ("test", "789")):
        for name in ("bright", "dark"):
            (root / split / name).mkdir(parents=True)
            for i in numbers:
                for file in (shapes / name).glob(f"0{i}.*"):
                    (root / split / name / file.name).write_bytes(file.read_bytes())
    assert [len(load(root, split)) for split in ("train", "validation", "test")] == [10, 4, 6]
    assert load(root, "test").ids[0].startswith("test/bright/")
    # a class that only the test set has is an error
    (root / "test" / "grey").mkdir()
    Image.new("RGB", (20, 20)).save(root / "test" / "grey" / "1.png")
    with pytest.raises(CnnlabError, match=r"\bgrey\b.*/train\b"):
        load(root, "test")


def test_a_class_may_be_called_train_and_splits_be_capitalised(tmp_path: Path) -> None:
    for folder in ("cars/train", "cars/bus", "pets/Train/cat", "pets/Train/dog", "pets/TEST/cat"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / folder / "1.png")
    assert load(tmp_path / "cars").classes == ["bus", "train"]
    assert load(tmp_path / "pets").classes == ["cat", "dog"]
    assert len(load(tmp_path / "pets", "test")) == 1


def test_links_to_parent_folders_and_pipes_are_skipped(shapes: Path) -> None:
    import os

    (shapes / "dark" / "up").symlink_to(shapes, target_is_directory=True)
    os.mkfifo(shapes / "dark" / "pipe.png")
    found = load(shapes)
    assert len(set(found.ids)) == len(found.ids)
    assert "dark/pipe.png" not in found.ids


def test_a_class_of_damaged_images_only_is_refused(shapes: Path) -> None:
    for path in (shapes / "dark").iterdir():
        path.write_bytes(b"")
    with pytest.raises(CnnlabError, match=r"class dark\b"):
        load(shapes, skip_bad=True)


def test_hidden_files_and_other_files_are_skipped(shapes: Path) -> None:
    (shapes / ".cache").mkdir()
    (shapes / "bright" / ".hidden.png").write_bytes(b"x")
    (shapes / "bright" / "Thumbs.db").write_bytes(b"x")
    (shapes / "README.txt").write_text("x")
    assert len(load(shapes)) == 40


def test_a_folder_is_always_read_in_the_same_order(shapes: Path) -> None:
    assert load(shapes).fingerprint() == load(shapes).fingerprint()
    assert torch.equal(load(shapes).labels, load(shapes).labels)
