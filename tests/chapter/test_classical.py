"""Hand-made features and support vector machines, against slow references and other libraries."""

from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnnlab.chapter.classical import ClassicalResult, classical, classifiers, features
from cnnlab.chapter.classical.classifiers import KernelMap, spread, svm
from cnnlab.data import ImageSet
from cnnlab.data.imageset import no_report
from cnnlab.io.errors import CnnlabError
from conftest import Command, one_line_error


@pytest.fixture
def few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use few passes and few visual words: these tests need a model, not its accuracy."""
    monkeypatch.setattr(classifiers, "_PASSES", (10, 10))
    monkeypatch.setattr(features, "SIFT_WORDS", 64)


def pictures(n: int, channels: int = 1, side: int = 28) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, channels, side, side), dtype=np.uint8)


def slow_hog(image: np.ndarray) -> np.ndarray:
    """Return the HOG of one image (C, S, S), computed pixel by pixel as in the paper."""
    c, side, _ = image.shape
    x, cell = image / 255, max(4, round(image.shape[1] / 8))
    rows = side // cell
    cells, margin = np.zeros((rows, rows, 12)), (side - rows * cell) / 2

    def pixel_at(k: int, i: int, j: int) -> float:
        return float(x[k, min(max(i, 0), side - 1), min(max(j, 0), side - 1)])

    for i in range(side):
        for j in range(side):
            each = [
                (pixel_at(k, i, j + 1) - pixel_at(k, i, j - 1), pixel_at(k, i + 1, j) - pixel_at(k, i - 1, j))
                for k in range(c)
            ]
            dx, dy = max(each, key=lambda d: np.hypot(*d))
            angle = np.degrees(np.arctan2(dy, dx)) % 360 / 30
            for u in range(rows):
                for v in range(rows):
                    near = max(0, 1 - abs(i - (margin + (u + 0.5) * cell - 0.5)) / cell)
                    near *= max(0, 1 - abs(j - (margin + (v + 0.5) * cell - 0.5)) / cell)
                    if near:
                        for b in (int(angle), int(angle) + 1):
                            cells[u, v, b % 12] += near * np.hypot(dx, dy) * (1 - abs(angle - b))
    return np.sqrt(cells).ravel()


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 30)])
def test_hog_matches_the_paper(channels: int, side: int) -> None:
    images = pictures(2, channels, side)
    found = features.hog(images)
    for k in range(2):
        np.testing.assert_allclose(found[k], slow_hog(images[k]), atol=2e-3)


def test_bags_count_nearest_words() -> None:
    pytest.importorskip("cv2")
    images, rng = pictures(3), np.random.default_rng(1)
    words = np.sqrt(rng.dirichlet(np.ones(128), 20)).astype(np.float32)
    bags = features.bags(images, words).reshape(3, 5, 20) ** 2
    found = features.sift(images)
    for n in range(3):
        nearest = [int(((d - words) ** 2).sum(1).argmin()) for d in found[n]]
        np.testing.assert_allclose(bags[n, 0], np.bincount(nearest, minlength=20) / 81, atol=1e-6)
    np.testing.assert_allclose(bags[:, 1:].sum(1), bags[:, 0], atol=1e-5)  # the quarters add up to the whole image


def test_kernel_map_approximates_the_kernel() -> None:
    x = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    unit = spread(x, 0)
    assert unit == pytest.approx(np.mean([((a - b) ** 2).sum() for a in x for b in x]), rel=0.01)
    gamma = 0.5 / unit
    exact = np.array([[np.exp(-gamma * ((a - b) ** 2).sum()) for b in x] for a in x])
    errors = []
    for count in (10, 100, 300):
        z = KernelMap(x, count, gamma, 0)(x)
        errors.append(float(np.abs(z @ z.T - exact).max()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-2


def test_svm_comes_near_the_exact_solution() -> None:
    from sklearn.svm import LinearSVC

    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 20)).astype(np.float32)
    y = (x[:, 0] + 0.3 * rng.normal(size=600) > 0).astype(np.int64)
    c = 0.1

    def objective(w: np.ndarray, b: float) -> float:
        return float(w @ w / 2 + c * np.maximum(0, 1 - (2 * y - 1) * (x @ w + b)).sum())

    exact = LinearSVC(C=c, loss="hinge", tol=1e-8, max_iter=1_000_000, intercept_scaling=100, random_state=0).fit(x, y)
    ours = svm(x, y, c, 0, 1)
    best = objective(exact.coef_[0], exact.intercept_[0])
    assert objective(ours.coef_[0], ours.intercept_[0]) < 1.02 * best
    assert objective(np.zeros(20), 0.0) > 2 * best


@pytest.mark.usefixtures("few_passes")
@pytest.mark.parametrize(("method", "limit", "floor"), [("hog-linear", 200, 0.9), ("sift-linear", 100, 0.5)])
def test_digits_are_classified_and_results_are_cached(
    method: str, limit: int, floor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if method.startswith("sift"):
        pytest.importorskip("cv2")

    def run() -> ClassicalResult:
        return classical("digits", [method], limit=limit, cache_dir=tmp_path / "cache", threads=1)[0]

    first = run()
    assert first.test_acc is not None
    assert first.test_acc > floor
    assert first.counts == {"train": limit, "validation": limit // 10, "test": limit}
    assert sum(map(sum, first.confusion)) == limit
    assert method in str(first)
    with monkeypatch.context() as patch:
        patch.setattr(features, "in_chunks", None)  # computing anything again would fail
        again = run()
    assert again.cached
    assert not first.cached
    assert again.confusion == first.confusion
    for i, path in enumerate(sorted((tmp_path / "cache").iterdir())):
        content = bytearray(path.read_bytes())
        content[-1000] ^= 1
        path.write_bytes(bytes(content) if i % 2 else bytes(content[:300]))
    third = run()
    assert third.confusion == first.confusion
    assert "damaged" in " ".join(third.notes)


@pytest.mark.usefixtures("few_passes")
def test_the_test_set_does_not_affect_the_chosen_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cnnlab.chapter.classical as module

    real = module.load_images

    def load_with_reversed_test_set(source: str, split: str, options: object) -> ImageSet | None:
        found = real(source, split, options)  # type: ignore[arg-type]
        if found is not None and split == "test":
            return ImageSet(found.images.flip(0), found.labels, found.ids, found.classes)
        return found

    one = classical("digits", ["hog-linear"], limit=300, cache_dir=tmp_path, threads=1)[0]
    monkeypatch.setattr(module, "load_images", load_with_reversed_test_set)
    other = classical("digits", ["hog-linear"], limit=300, cache_dir=tmp_path, threads=1)[0]
    assert (one.settings, one.val_acc, one.train_acc) == (other.settings, other.val_acc, other.train_acc)
    assert one.test_acc != other.test_acc


@pytest.mark.usefixtures("few_passes")
def test_a_colour_folder_is_classified_with_a_kernel(shapes: Path, tmp_path: Path) -> None:
    result = classical(f"folder:{shapes}", ["hog-kernel"], cache_dir=tmp_path / "c", threads=1)[0]
    assert result.test_acc is None
    assert result.confusion_of == "validation"
    assert result.to_dict()["counts"] == {"train": 40, "validation": 4, "test": 0}
    assert "no test set" in str(result)


def test_bad_input_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CnnlabError, match="'hog-liner'.*hog-linear"):
        classical("digits", ["hog-liner"])
    with pytest.raises(CnnlabError, match="limit=-1"):
        classical("digits", limit=-1)
    for seed in (-1, 2**32):
        with pytest.raises(CnnlabError, match=f"seed={seed}"):
            classical("digits", ["hog-linear"], seed=seed)
    with pytest.raises(CnnlabError, match="limit=11"):
        classical("digits", ["hog-linear"], limit=11, cache_dir=tmp_path)
    for name in ("a", "b"):
        (tmp_path / "few" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "few" / name / "1.png")
    with pytest.raises(CnnlabError, match=r"few: .*\b1 training image"):
        classical(f"folder:{tmp_path / 'few'}", ["hog-linear"], cache_dir=tmp_path)
    for split, name in ((split, name) for split in ("train", "val") for name in ("a", "b")):
        (tmp_path / "two" / split / name).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (8, 8)).save(tmp_path / "two" / split / name / f"{i}.png")
    with pytest.raises(CnnlabError, match=r"limit=1\b"):
        classical(f"folder:{tmp_path / 'two'}", ["hog-linear"], limit=1, cache_dir=tmp_path)
    real = builtins.__import__

    def import_without_cv2(name: str, *args: object, **kwargs: object) -> object:
        if name == "cv2":
            raise ImportError("No module named 'cv2'")
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    monkeypatch.setattr(builtins, "__import__", import_without_cv2)
    with pytest.raises(CnnlabError, match=r"pip install 'cnnlab\[classical\]'"):
        classical("digits", ["sift-linear"])


def test_the_command(cnnlab: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    answer = cnnlab("classical", "hog-linear", "--limit", 60, "--threads", 1)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("hog-linear on digits: test 0.")
    found = json.loads(cnnlab("classical", "hog-linear", "--limit", 60, "--threads", 1, "--json").stdout)
    assert found[0]["cached"]
    assert f"test {found[0]['test_acc']:.4f}" in answer.stdout
    assert "'hog'" in one_line_error(cnnlab("classical", "hog"))


@pytest.mark.usefixtures("few_passes")
def test_an_unwritable_cache_only_gives_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = classical("digits", ["hog-linear"], limit=100, cache_dir=tmp_path / "file" / "x", threads=1)[0]
    assert str(tmp_path / "file" / "x") in " ".join(result.notes)


@pytest.mark.usefixtures("few_passes")
def test_a_small_part_of_fashion_mnist_is_classified(fashion_folder: Path, tmp_path: Path) -> None:
    result = classical(
        "fashion-mnist", ["hog-linear"], data_dir=fashion_folder, limit=1000, cache_dir=tmp_path, threads=1
    )[0]
    assert result.test_acc is not None
    assert result.test_acc > 0.8
    assert result.counts == {"train": 1000, "validation": 100, "test": 1000}
    assert np.sum(result.confusion) == 1000


def test_threads_do_not_change_features() -> None:
    images = ImageSet(torch.from_numpy(pictures(1100)), torch.zeros(1100, dtype=torch.int64), [""] * 1100, ["a"])
    one, two = (features.in_chunks(features.hog, images, n, no_report, "") for n in (1, 2))
    np.testing.assert_array_equal(one, two)
