"""`cnnlab export`: the file answers as the run does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto

from cnnlab import CnnlabError, Recipe, load_model
from cnnlab.data.loader import Preprocessing
from cnnlab.export.graph import Resize
from cnnlab.export.runtime import DESCRIPTION, open_exported
from cnnlab.inference import validation_images
from cnnlab.training.runs import Run
from conftest import Command, one_line_error


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("native", "size"), [(8, 8), (8, 28), (28, 96), (28, 13)])
def test_resize_is_the_preprocessing(native: int, size: int, interpolation: str) -> None:
    p = Preprocessing(
        channels=3, native_size=native, image_size=size, fit="pad", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1),
        interpolation=interpolation,
    )  # fmt: skip
    images = torch.randint(0, 256, (3, 3, native, native), dtype=torch.uint8, generator=torch.manual_seed(0))
    assert torch.allclose(Resize(p)(images), p(images), atol=5e-6)


def test_same_answers_as_the_run(digits_run: Run, exported: Path) -> None:
    found = open_exported(exported, threads=1)
    classifier = load_model(digits_run)
    images = validation_images(digits_run).images.numpy()
    want, (p, labels, none) = classifier.predict_batch(images), found.answer(images)
    assert np.abs(want.probabilities.numpy() - p).max() < 1e-5
    assert labels == want.labels
    assert none.tolist() == want.none_of_these
    assert found.classes == digits_run.classes
    assert found.decoding == classifier.preprocessing.decoding
    assert found.description["run"] == "grey"
    assert Recipe.from_dict(found.description["recipe"]) == digits_run.recipe


def test_images_of_any_size(digits_run: Run, exported: Path) -> None:
    found = open_exported(exported, threads=1)
    for shape in ((1, 1, 40, 33), (2, 1, 7, 9), (3, 1, 8, 8)):
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        want = load_model(digits_run).predict([image[0] for image in pixels]).probabilities.numpy()
        assert np.abs(found.probabilities(pixels) - want).max() < 1e-5


def test_files_that_are_not_ours(exported: Path, tmp_path: Path) -> None:
    def changed(name: str, change: object) -> Path:
        model = onnx.load(exported)
        change(model)  # type: ignore[operator]
        file = tmp_path / name
        file.write_bytes(model.SerializeToString())
        return file

    def description(text: str) -> object:
        def change(model: ModelProto) -> None:
            next(p for p in model.metadata_props if p.key == DESCRIPTION).value = text

        return change

    whole = exported.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "folder.onnx").mkdir()
    bad = [
        tmp_path / "cut.onnx",
        tmp_path / "empty.onnx",
        tmp_path / "folder.onnx",
        tmp_path / "missing.onnx",
        changed("bare.onnx", lambda model: model.ClearField("metadata_props")),
        changed("text.onnx", description("{")),
        changed("list.onnx", description("[]")),
        changed("future.onnx", description('{"format": 2}')),
        changed("few.onnx", description('{"format": 1, "classes": ["a"]}')),
    ]
    for file in bad:
        with pytest.raises(CnnlabError) as caught:
            open_exported(file)
        assert file.name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_command_refuses(digits_run: Run, exported: Path, cnnlab: Command, tmp_path: Path) -> None:
    assert "onnx" in one_line_error(cnnlab("export", digits_run.path, "--to", "tensorflow"))
    assert "--force" in one_line_error(cnnlab("export", digits_run.path, "--out", exported))
    assert ".onnx" in one_line_error(cnnlab("export", digits_run.path, "--out", tmp_path / "net.pt"))
    assert "does not exist" in one_line_error(cnnlab("export", digits_run.path, "--out", tmp_path / "a" / "b.onnx"))
    one_line_error(cnnlab("export", tmp_path / "nothing"))


def test_runtime_needs_no_torch(exported: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from cnnlab.export.runtime import open_exported\n"
        f"open_exported({str(exported)!r}, threads=1); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
