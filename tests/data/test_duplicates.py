"""Duplicate images, and tables of labels that do not match: all of them are found and named, and nothing else."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from cnnlab import Recipe, train
from cnnlab.competition.labels import check_labels
from cnnlab.data import SourceOptions, copies_in_test, load_images, near_duplicates
from cnnlab.data.near_duplicates import NEAR
from cnnlab.io.errors import CnnlabError
from cnnlab.training import session
from conftest import Command, one_line_error


def scenes(count: int, side: int = 32, channels: int = 3, seed: int = 0) -> Tensor:
    """Return images with the statistics of natural ones, no two alike, (N, C, side, side) uint8."""
    rng = np.random.default_rng(seed)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    f[0, 0] = 1
    noise = np.fft.fft2(rng.normal(size=(count, 1, side, side)) + 0.3 * rng.normal(size=(count, channels, side, side)))
    smooth = np.fft.ifft2(noise / f).real
    smooth *= 45 / smooth.std(axis=(1, 2, 3), keepdims=True)
    return torch.from_numpy(np.clip(smooth + 128, 0, 255).astype(np.uint8))


def jpeg(image: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "jpeg", quality=70)
    return np.asarray(Image.open(file)).transpose(2, 0, 1)


def smaller_and_back(image: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(image.transpose(1, 2, 0))
    return np.asarray(picture.resize((22, 22)).resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "jpeg": jpeg,
    "resized": smaller_and_back,
    "darker": lambda image: (image * 0.7).astype(np.uint8),
    "less contrast": lambda image: (image * 0.5 + 70).astype(np.uint8),
    "noise": lambda image: np.clip(
        image + np.random.default_rng(1).normal(0, 6, image.shape), 0, 255
    ).astype(np.uint8),
    "other colours": lambda image: image[::-1],
    "a few bad pixels": lambda image: np.where(np.arange(32) % 31 == 5, np.where(np.arange(32)[:, None] == 9, 255, image), image),
}  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.sampled_from([(1, 3, 3), (3, 5, 5), (1, 8, 8)]))
def test_identical_pixels_are_found(drawn: list[int], shape: tuple[int, int, int]) -> None:
    """Against a dictionary of the images' bytes."""
    kinds = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (7, *shape), dtype=np.uint8))
    kinds[1] = kinds[0]  # two of the kinds are equal
    kinds[2] = 0
    images = kinds[drawn]
    first: dict[bytes, int] = {}
    expected = [first.setdefault(image.numpy().tobytes(), i) for i, image in enumerate(images)]
    assert near_duplicates.same(images).tolist() == expected
    others = kinds[[0, 2, 5]]
    known = {image.numpy().tobytes() for image in images}
    assert [i for i, _ in near_duplicates.shared(images, others)] == [
        i for i, image in enumerate(others) if image.numpy().tobytes() in known
    ]
    for i, j in near_duplicates.shared(images, others):
        assert torch.equal(others[i], images[j])


def test_images_of_different_sizes_are_never_identical() -> None:
    assert (
        near_duplicates.shared(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
        == []
    )


@pytest.mark.parametrize("count", [10, 1000])
def test_changed_copies_are_found_and_nothing_else(count: int) -> None:
    images = scenes(count)
    copies = [change(images[i].numpy()) for i, change in enumerate(CHANGES.values())]
    first, second, similarity = near_duplicates.near(torch.cat([images, torch.from_numpy(np.stack(copies))]))
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == {(i, count + i) for i in range(len(CHANGES))}
    assert (similarity >= NEAR).all()
    assert similarity.tolist() == sorted(similarity.tolist(), reverse=True)


def test_uniform_images_are_not_near_duplicates() -> None:
    flat = torch.arange(0, 250, 10, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 12, 12)
    assert len(near_duplicates.near(torch.cat([flat, scenes(20, 12, 1)]))[0]) == 0


def test_frames_of_one_scene_give_a_bounded_number_of_pairs() -> None:
    scene = scenes(1).numpy().astype(np.float64)
    noise = np.random.default_rng(0).normal(0, 2, (300, *scene.shape[1:]))
    frames = torch.from_numpy(np.clip(scene + noise, 0, 255).astype(np.uint8))
    first, _, _ = near_duplicates.near(torch.cat([frames, scenes(300, seed=3)]))
    assert torch.bincount(first).max() == 64


@pytest.mark.slow
def test_near_duplicates_in_fashion_mnist_match_those_checked_by_eye(fashion_folder: Path) -> None:
    """Among the first 14,000 training images and all test images. Each pair was checked by eye (docs/log.md)."""
    options = SourceOptions(data_dir=fashion_folder)
    train, test = load_images("fashion-mnist", "train", options), load_images("fashion-mnist", "test", options)
    assert train is not None
    assert test is not None
    first, second, _ = near_duplicates.near(torch.cat([train.images[:14_000], test.images]), 0.98)
    assert {(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)} == {
        (1928, 3704), (3568, 5448), (5931, 12109), (11251, 11421),
        (970, 22869), (6300, 20210), (7061, 19732), (11932, 16605), (13360, 18998),
        (14802, 23921), (16115, 18926), (16712, 22444),
    }  # fmt: skip


@pytest.fixture
def split_folder(tmp_path: Path) -> Path:
    """A folder with train and test. Two test images are copies; a third is a near copy with another class."""
    root = tmp_path / "mine"
    images = scenes(60, 24).numpy()
    for i, image in enumerate(images):
        part, name = ("train" if i < 40 else "test"), ("cats", "dogs")[i % 2]
        (root / part / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(root / part / name / f"{i}.png")
    for name, i in (("cats", 4), ("dogs", 7)):
        (root / "test" / name / f"copy-{i}.png").write_bytes((root / "train" / name / f"{i}.png").read_bytes())
    Image.fromarray((images[10] * 0.8).astype(np.uint8).transpose(1, 2, 0)).save(root / "test" / "dogs" / "near.png")
    return root


def test_duplicates_in_a_folder_are_listed(split_folder: Path, cnnlab: Command) -> None:
    answer = cnnlab("data", "duplicates", f"folder:{split_folder}", "--plot", "pairs.png")
    assert answer.returncode == 0, answer.stderr
    assert "63 images (train 40, test 23)" in answer.stdout
    assert "exact duplicates: 2 in train and test" in answer.stdout
    assert "train 'train/cats/4.png' ('cats')  test 'test/cats/copy-4.png' ('cats')" in answer.stdout
    assert (
        "near-duplicates (similarity 0.96 or more): 1 in train and test\n  1 of these pairs have two" in answer.stdout
    )
    assert "train 'train/cats/10.png' ('cats')  test 'test/dogs/near.png' ('dogs')" in answer.stdout
    with Image.open("pairs.png") as picture:
        assert picture.size[0] > 500
    found = json.loads(cnnlab("data", "duplicates", f"folder:{split_folder}", "--exact", "--json").stdout)
    assert len(found["exact"]) == 2
    assert found["near"] == []
    assert "pairs.png" in one_line_error(cnnlab("data", "duplicates", f"folder:{split_folder}", "--plot", "pairs.png"))
    assert "similarity 0.2" in one_line_error(cnnlab("data", "duplicates", "digits", "--similarity", 0.2))
    assert "image_size=-1" in one_line_error(cnnlab("data", "duplicates", f"folder:{split_folder}", "--image-size", -1))
    assert "near-duplicates" in cnnlab("data", "duplicates", f"folder:{split_folder}", "--image-size", 1).stdout
    answer = cnnlab("data", "verify", f"folder:{split_folder}")
    assert answer.returncode == 0
    assert "2 test images" in " ".join(answer.stdout.split())


def test_a_run_reports_leaked_test_images(split_folder: Path, quick: Recipe, cnnlab: Command) -> None:
    recipe = quick.changed(data=f"folder:{split_folder}", val_fraction=0.2)
    result = train(recipe, name="leaky")
    held_out = {i for i in (4, 7) if f"train/{('cats', 'dogs')[i % 2]}/{i}.png" not in _training_ids(recipe)}
    assert result.summary["shared"] == {"validation": 0, "test": 2 - len(held_out)}
    if len(held_out) < 2:
        assert f"{2 - len(held_out)} of the test images" in str(result)
    # the same image on both sides of the random split
    (split_folder / "train" / "cats" / "again.png").write_bytes(
        (split_folder / "train" / "cats" / "0.png").read_bytes()
    )
    for seed in range(40):
        chosen = recipe.changed(split_seed=seed)
        if len({"train/cats/again.png", "train/cats/0.png"} & _training_ids(chosen)) == 1:
            break
    result = train(chosen, name="split")
    assert result.summary["shared"]["validation"] == 1
    assert "1 of the validation images" in str(result)
    clean = train(quick, name="clean")
    assert clean.summary["shared"] == {"validation": 0, "test": 0}
    assert "of the validation images" not in str(clean)
    assert "shared" not in train(quick.changed(eval_split="train", val_fraction=0.0), name="all").summary["shared"]


def test_a_training_continues_if_test_images_cannot_be_read(
    quick: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def damaged(*_: object) -> int:
        raise CnnlabError("t10k-images-idx3-ubyte.gz is not the official file; delete it")

    monkeypatch.setattr(session, "copies_in_test", damaged)
    assert train(quick, name="outlives").summary["shared"] == {"validation": 0}
    told = capsys.readouterr()
    assert "t10k-images-idx3-ubyte.gz" in told.out + told.err


def _training_ids(recipe: Recipe) -> set[str]:
    from cnnlab.data.splits import load_splits

    return set(load_splits(recipe, SourceOptions(data_dir=Path()))[0].ids)


def test_copies_in_the_test_split_are_counted(split_folder: Path, tmp_path: Path) -> None:
    source, options = f"folder:{split_folder}", SourceOptions(data_dir=tmp_path)
    images = load_images(source, "train", options)
    assert images is not None
    assert copies_in_test(source, images, options) == 2
    assert copies_in_test(source, images.take(torch.tensor([0, 1])), options) == 0
    assert copies_in_test("fashion-mnist", images, options) is None  # nothing is downloaded
    (split_folder / "test").rename(tmp_path / "other")
    assert copies_in_test(source, images, options) is None


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "train").mkdir()
    for name in ("1", "2", "3", "x"):
        Image.new("L", (4, 4)).save(tmp_path / "train" / f"{name}.png")
    (tmp_path / "labels.csv").write_text("id,label\n1,cat\n2,dog\n3,cat\nx,dog\n")
    return tmp_path / "labels.csv"


def test_labels_that_match_their_images_have_no_faults(table: Path, cnnlab: Command) -> None:
    answer = cnnlab("data", "labels", table, table.parent / "train", "--classes", "cat,dog")
    assert answer.returncode == 0
    assert "4 rows, 2 classes; 4 images\nevery image has one label, every label an image" in answer.stdout


def test_faults_in_labels_are_named(table: Path, cnnlab: Command) -> None:
    table.write_text("id,label\n1,cat\n1,cat\n2,dog\n2,cat\n2.png,dog\n3,\n4,Cat \n=x,dgo\n")
    found = check_labels(table, table.parent / "train", classes=["cat", "dog", "Cat ", "owl"])
    assert found.faults == {
        "ids are repeated with the same label": ["1"],
        "ids are repeated with another label": ["2"],
        "ids have no label": ["3"],
        "ids have no image": ["4", "=x"],
        "ids refer to an image that already has a row": ["2.png"],
        "images have no row": ["x.png"],
        "labels are not among the classes": ["dgo"],
        "classes have no row": ["owl"],
        "labels differ from another by case or spaces only": ["cat", "Cat "],
    }
    answer = cnnlab("data", "labels", table, table.parent / "train", "--classes", "cat, dog", "--json")
    assert answer.returncode == 1
    assert json.loads(answer.stdout)["faults"]["labels are not among the classes"] == ["Cat ", "dgo"]
    assert "1 ids have no label: '3'" in cnnlab("data", "labels", table, table.parent / "train").stdout
    assert "'name'" in one_line_error(cnnlab("data", "labels", table, table.parent / "train", "--id-column", "name"))
    with pytest.raises(CnnlabError, match=r"none\.csv"):
        check_labels("none.csv", table.parent / "train")
