"""`cnnlab data pack` and `pack:STORE`: the same images as the source, the same training, and no images in memory."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from cnnlab.data import SourceOptions, load_images
from cnnlab.data.imageset import ImageSet
from cnnlab.data.loader import Loader, Preprocessing
from cnnlab.data.pack import damage
from cnnlab.data.pack_writer import Packed, pack
from cnnlab.data.packed import PackedImages, Shards, in_memory
from cnnlab.io.decode import Decoding
from cnnlab.io.errors import CnnlabError
from conftest import Command, one_line_error

DRAW = np.random.default_rng(0)


def save_image(path: Path, size: tuple[int, int], channels: int = 3, **options: Any) -> None:
    shape = (size[1], size[0], 3) if channels == 3 else (size[1], size[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(DRAW.integers(0, 256, shape, np.uint8)).save(path, **options)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images of one size, in all three splits."""
    root = tmp_path_factory.mktemp("small")
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        for name in ("a", "b"):
            for i in range(count):
                save_image(root / split / name / f"{i}.png", (20, 20))
    return root


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of image files of several kinds and sizes."""
    root = tmp_path_factory.mktemp("large")
    for i, size in enumerate([(30, 40), (50, 20), (33, 33), (64, 48), (41, 52), (200, 130)]):
        save_image(root / "a" / f"{i}.jpg", size)
        save_image(root / "b" / f"{i}.webp", size)
    save_image(root / "b" / "grey.png", (45, 45), channels=1)
    return root


def options(**values: Any) -> SourceOptions:
    return SourceOptions(data_dir=Path("data"), **values)


def load_source(source: str, split: str = "train", **values: Any) -> ImageSet:
    images = load_images(source, split, options(**values))
    assert images is not None
    return images


def pack_source(source: str, store: str = "store", **more: Any) -> Packed:
    return pack(source, store, options(), **more)


def assert_same_images(one: ImageSet, other: ImageSet) -> None:
    assert torch.equal(in_memory(one.images, "this"), in_memory(other.images, "this"))
    assert torch.equal(one.labels, other.labels)
    for name in ("ids", "classes", "groups", "decoding", "skipped", "passed_over", "notes", "warnings"):
        assert getattr(one, name) == getattr(other, name), name
    assert (one.weights is None) == (other.weights is None)


@pytest.mark.parametrize("values", [{}, {"image_size": 12}, {"image_size": 31, "interpolation": "bicubic"}])
def test_small_images_are_stored_as_pixels(small: Path, values: dict[str, Any]) -> None:
    found = pack_source(f"folder:{small}")
    assert found.shape == (3, 20, 20)
    assert found.bytes == 22 * 3 * 20 * 20
    for split in ("train", "validation", "test"):
        assert_same_images(load_source("pack:store", split, **values), load_source(f"folder:{small}", split, **values))


@pytest.mark.parametrize(
    "values", [{}, {"image_size": 24, "fit": "crop"}, {"image_size": 17, "fit": "stretch"}, {"size_limit": 40}]
)
def test_image_files_are_stored_unchanged(large: Path, values: dict[str, Any]) -> None:
    found = pack_source(f"folder:{large}", shard_bytes=20_000)
    assert found.shape is None
    assert found.shards > 2
    assert found.bytes == sum(path.stat().st_size for path in large.rglob("*.*"))
    assert_same_images(load_source("pack:store", **values), load_source(f"folder:{large}", **values))


def test_groups_weights_and_deep_greys_are_packed(tmp_path: Path) -> None:
    rows = ["path,label,patient,weight,split"]
    for i in range(8):
        pixels = DRAW.integers(0, 4096, (9, 9)).astype(np.uint16)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{'ab'[i % 2]},p{i // 2},{0.5 + i},{'train' if i < 6 else 'test'}")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    pack_source("csv:t.csv")
    for split in ("train", "test"):
        one, other = load_source("pack:store", split), load_source("csv:t.csv", split)
        assert_same_images(one, other)
        assert one.groups
        assert one.weights is not None
        assert other.weights is not None
        assert torch.equal(one.weights, other.weights)
    with pytest.raises(CnnlabError, match="0 to 255"):
        load_source("pack:store", decoding=Decoding(1, 9, low=0, high=255))


def test_sources_of_pixels_are_packed(cnnlab: Command) -> None:
    answer = cnnlab("data", "pack", "digits", "store", "--json")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["counts"] == {"train": 1438, "test": 359}
    assert_same_images(load_source("pack:store", "test"), load_source("digits", "test"))
    assert "already" in one_line_error(cnnlab("data", "pack", "pack:store", "again"))


def test_files_are_resized_on_request(large: Path) -> None:
    pack_source(f"folder:{large}", "as-they-are")
    found = pack_source(f"folder:{large}", size=24, quality=70)
    assert found.bytes < sum(path.stat().st_size for path in large.rglob("*.*")) / 3
    assert load_source("pack:store", size_limit=224).images.shape[2] == 32  # the longer side of the median image
    assert load_source("pack:store").ids == load_source("pack:as-they-are").ids
    with pytest.raises(CnnlabError, match="digits.*--quality"):
        pack_source("digits", "other", quality=50)


def test_stacks_keep_their_size(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "stacks" / name).mkdir(parents=True)
        for i in range(3):
            np.save(tmp_path / "stacks" / name / f"{i}.npy", DRAW.integers(0, 256, (5, 40, 40), np.uint8))
    pack_source(f"folder:{tmp_path / 'stacks'}", size=24)
    assert_same_images(load_source("pack:store"), load_source(f"folder:{tmp_path / 'stacks'}"))


def test_deep_colour_keeps_its_size_and_its_range(tmp_path: Path) -> None:
    source = f"folder:{tmp_path / 'deep'}"
    for name in "ab":
        (tmp_path / "deep" / name).mkdir(parents=True)
        for i in range(3):
            values = DRAW.integers(0, 4096, (40, 40, 3), np.uint16)  # Pillow would drop the lower byte
            (tmp_path / "deep" / name / f"{i}.ppm").write_bytes(b"P6 40 40 65535\n" + values.astype(">u2").tobytes())
    pack_source(source, size=24)
    assert_same_images(load_source("pack:store"), load_source(source))


def test_a_file_of_a_format_that_is_not_read_is_refused_when_resized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(DRAW.integers(0, 256, (30, 30, 3), np.uint8)).save(tmp_path / "set" / name / f"{i}.png")
    Image.new("RGB", (30, 30)).save(tmp_path / "set" / "a" / "script.png", "EPS")  # Pillow would run Ghostscript
    opened: list[object] = []
    monkeypatch.setattr(EpsImagePlugin.EpsImageFile, "_open", opened.append)
    with pytest.raises(CnnlabError, match=r"script\.png"):
        pack_source(f"folder:{tmp_path / 'set'}", size=24)
    assert not opened


def test_existing_folders_and_other_sets_are_refused(small: Path, large: Path, cnnlab: Command) -> None:
    Path("store").mkdir()
    assert "exists" in one_line_error(cnnlab("data", "pack", f"folder:{small}", "store"))
    Path("store").rmdir()
    Path("store.partial").mkdir()
    assert "unfinished" in one_line_error(cnnlab("train", "--data", "pack:store"))
    Path("store.partial/journal.jsonl").write_text('{"key": "other"}\n')
    assert "options" in one_line_error(cnnlab("data", "pack", f"folder:{large}", "store"))
    Path("store.partial/journal.jsonl").write_bytes(b"\0" * 20 + b"\n")
    assert "journal.jsonl" in one_line_error(cnnlab("data", "pack", f"folder:{large}", "store"))


def test_damaged_images_are_named_or_skipped(large: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(large, folder)
    (folder / "a/3.jpg").write_bytes((folder / "a/3.jpg").read_bytes()[:100])
    with pytest.raises(CnnlabError, match="3.jpg"):
        pack_source(f"folder:{folder}")
    found = pack(f"folder:{folder}", "store", options(skip_bad=True))
    assert len(found.skipped) == 1
    assert_same_images(load_source("pack:store"), load_source(f"folder:{folder}", skip_bad=True))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packs") / "digits"
    pack("digits", path, options())
    return path


def test_only_the_next_batches_are_read(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = load_source(f"pack:{digits}")
    read: list[int] = []
    real: Callable[..., bytes] = Shards.read

    def counted(self: Shards, row: int, into: memoryview | None = None) -> bytes:
        read.append(row)
        return real(self, row, into)

    monkeypatch.setattr(Shards, "read", counted)
    pre = Preprocessing.of(load_source("digits").images, image_size=8, fit="pad", normalize=True)
    some = images.take(torch.arange(3, 1403, 2))
    assert not read
    batches = Loader(some, pre, 10, torch.device("cpu")).shuffled(0, 0)
    x, y = next(batches)
    assert len(read) <= 10 * 10
    order = torch.randperm(700, generator=torch.Generator().manual_seed(0))
    del batches
    assert len(x) == len(y) == 10
    assert set(read) <= set(range(3, 1403, 2))
    assert isinstance(some.images, PackedImages)
    read.clear()
    assert torch.equal(some.images[order[:5]], load_source("digits").images[3:1403:2][order[:5]])
    assert sorted(read) == sorted((3 + 2 * order[:5]).tolist())


def test_rows_can_be_read_in_every_way(digits: Path) -> None:
    images, pixels = load_source(f"pack:{digits}").images, load_source("digits").images
    assert images.shape == pixels.shape
    assert torch.equal(images[7], pixels[7])
    assert torch.equal(images[-1], pixels[-1])
    assert torch.equal(images[5:9], pixels[5:9])
    assert torch.equal(images[torch.tensor([9, 3, 9])], pixels[torch.tensor([9, 3, 9])])
    assert torch.equal(images[torch.arange(1438) < 4], pixels[:4])
    assert [len(part) for part in images.split(500)] == [500, 500, 438]
    assert torch.equal(torch.stack(list(images)), pixels)
    assert images[:0].shape == (0, 1, 8, 8)
    with pytest.raises(IndexError):
        images[1438]


def test_statistics_and_duplicates_match_the_source(digits: Path, cnnlab: Command, tmp_path: Path) -> None:
    one, other = load_source(f"pack:{digits}"), load_source("digits")
    made = [Preprocessing.of(s.images, image_size=8, fit="pad", normalize=True) for s in (one, other)]
    assert made[0] == made[1]
    answers = [cnnlab("data", "duplicates", s, "--json").stdout for s in (f"pack:{digits}", "digits")]
    found, expected = (json.loads(answer) for answer in answers)
    assert {**found, "source": ""} == {**expected, "source": ""}


def test_changed_bytes_are_found(digits: Path, tmp_path: Path, cnnlab: Command) -> None:
    shutil.copytree(digits, "store")
    assert not list(damage(Path("store")))
    with Path("store/images-00000.bin").open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff")
    answer = cnnlab("data", "verify", "pack:store")
    assert answer.returncode == 1
    assert re.search(r"failed .*changed", " ".join(answer.stdout.split()))
    with Path("store/images-00000.bin").open("r+b") as file:
        file.truncate(1000)
    assert "incomplete" in one_line_error(cnnlab("train", "--data", "pack:store"))
    Path("store/pack.json").write_text("{}")
    assert "format" in one_line_error(cnnlab("train", "--data", "pack:store"))


def test_reading_too_many_images_into_memory_is_an_error(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnlab.data.packed._COPIED", 1000)
    with pytest.raises(CnnlabError, match=r"^this\b.*memory"):
        in_memory(load_source(f"pack:{digits}").images, "this")
