"""Loading a trained model and classifying Python objects: the same answers as for files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import nn

import cnnlab
from cnnlab import Classifier, CnnlabError, Run, load_model, predict, train
from cnnlab.defaults import choose_recipe
from cnnlab.inference import load_network
from conftest import Command


@pytest.fixture(scope="module")
def grey_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on the digits: grey, 8 pixels enlarged to 28, fit=pad."""
    return train(
        choose_recipe(settings=["epochs=2"]), runs_dir=tmp_path_factory.mktemp("runs"), name="grey", progress="none"
    ).run


def colour_run(shapes: Path, fit: str) -> Run:
    settings = ["epochs=1", "batch_size=8", f"fit={fit}", "image_size=28"]
    return train(choose_recipe(data=f"folder:{shapes}", settings=settings), name=fit, progress="none").run


def picture(mode: str, size: tuple[int, int], seed: int = 0) -> Image.Image:
    width, height = size
    shape = (height, width) if mode == "L" else (height, width, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def test_the_model_is_a_module_in_eval_mode(grey_run: Run) -> None:
    model = load_model(grey_run.path)
    assert isinstance(model, nn.Module)
    assert not model.training
    assert model.classes == list("0123456789")
    assert model.preprocessing.image_size == 28
    x = model.preprocessing(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    assert model(x).shape == (2, 10)
    assert load_model(grey_run, weights="last").predict(torch.zeros(1, 8, 8)).probabilities.shape == (1, 10)
    assert load_model("grey", runs_dir=grey_run.path.parent).classes == model.classes


def test_predict_matches_the_command(grey_run: Run, cnnlab: Command, tmp_path: Path) -> None:
    for i, size in enumerate([(8, 8), (30, 20), (9, 40)]):
        picture("L", size, i).save(tmp_path / f"{i}.png")
    for invert in (False, True):
        found = load_model(grey_run).predict(tmp_path, invert=invert)
        command, _ = predict(grey_run.path, [tmp_path], top=10, invert=invert)
        assert [p.top for p in command] == found.top(10)
        lines = cnnlab("predict", grey_run.path, tmp_path, *(["--invert"] if invert else [])).stdout.splitlines()[1:]
        assert [line.split()[1] for line in lines] == found.labels
    assert found.probabilities.sum(1).tolist() == pytest.approx([1] * 3)
    assert len(found) == 3


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_every_form_of_an_image_gives_the_same_prediction(
    grey_run: Run, shapes: Path, tmp_path: Path, mode: str
) -> None:
    run = grey_run if mode == "L" else colour_run(shapes, "pad")
    model = load_model(run)
    for size in [(8, 8), (28, 28), (30, 20)]:
        image = picture(mode, size)
        file = tmp_path / f"{size}.png"
        image.save(file)
        expected = model.predict(file).probabilities
        array = np.asarray(image)  # (H, W) or (H, W, C)
        first = torch.from_numpy(array.copy())[None] if mode == "L" else torch.from_numpy(array.copy()).permute(2, 0, 1)
        forms = {
            "text": str(file), "PIL": image, "array": array, "array (C, H, W)": first.numpy(), "tensor": first,
            "float": first / 255, "float array": array.astype(np.float64) / 255, "batch": first[None], "list": [file],
            "half": first.double() / 255, "rows of pixels last": np.atleast_3d(array),
        }  # fmt: skip
        for name, form in forms.items():
            assert torch.equal(model.predict(form).probabilities, expected), (name, size)
        together = model.predict([file, image, first[None].expand(2, -1, -1, -1)]).probabilities
        torch.testing.assert_close(together, expected.expand(4, -1))


def test_grey_and_colour_are_converted(grey_run: Run, shapes: Path) -> None:
    grey, colour = picture("L", (12, 8)), picture("RGB", (12, 8))
    model = load_model(grey_run)
    assert torch.equal(model.predict(colour).probabilities, model.predict(colour.convert("L")).probabilities)
    model = load_model(colour_run(shapes, "pad"))
    assert torch.equal(model.predict(grey).probabilities, model.predict(grey.convert("RGB")).probabilities)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_inverting_does_not_change_the_padding(shapes: Path, tmp_path: Path, fit: str, mode: str) -> None:
    if mode == "L":
        for file in shapes.rglob("*.*"):
            if file.suffix == ".webp":  # WebP has no grey mode
                file.unlink()
            else:
                Image.open(file).convert("L").save(file)
    model = load_model(colour_run(shapes, fit))
    assert model.preprocessing.channels == (1 if mode == "L" else 3)
    for i, size in enumerate([(20, 20), (40, 10), (10, 40)]):
        image = picture(mode, size, i)
        image.save(tmp_path / f"{i}.png")
        expected = model.predict(ImageOps.invert(image)).probabilities
        for form in (tmp_path / f"{i}.png", image, np.asarray(image)):
            assert torch.equal(model.predict(form, invert=True).probabilities, expected)
        (found,), _ = predict("runs/" + fit, tmp_path / f"{i}.png", invert=True)
        assert found.top[0][1] == expected.max().item()


def test_predict_does_not_change_the_image_or_the_mode(grey_run: Run) -> None:
    model = load_model(grey_run).train()
    image = picture("L", (8, 8))
    before = image.tobytes()
    one, two = model.predict(image, invert=True), model.predict(image, invert=True)
    assert model.training
    assert torch.equal(one.probabilities, two.probabilities)
    assert image.tobytes() == before


@pytest.mark.parametrize(
    "image",
    [
        torch.full((1, 8, 8), 2.0),
        torch.full((1, 8, 8), -0.5),
        torch.full((1, 8, 8), float("nan")),
        torch.zeros(1, 8, 8, dtype=torch.int64),
        torch.zeros(5, 8, 8),
        torch.zeros(8),
        torch.zeros(1, 0, 8),
        torch.zeros(1, 1, 1, 8, 8),
        [],
        None,
        "missing.png",
    ],
    ids=str,
)
def test_invalid_images_are_refused(grey_run: Run, image: object) -> None:
    with pytest.raises(CnnlabError):
        load_model(grey_run).predict(image)


def test_a_loaded_model_has_the_saved_weights(grey_run: Run) -> None:
    network = load_network(grey_run)
    saved = load_file(grey_run.weights())
    assert network.state_dict().keys() == saved.keys()
    assert all(torch.equal(tensor, saved[key]) for key, tensor in network.state_dict().items())
    x = torch.rand(3, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(load_model(grey_run)(x), network(x))


def test_a_classifier_can_be_built_directly() -> None:
    preprocessing = cnnlab.data.loader.Preprocessing(
        channels=2, native_size=4, image_size=4, fit="pad", mean=(0.0, 0.0), std=(1.0, 1.0)
    )
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(32, 2)), ["a", "b"], preprocessing)
    assert len(model.predict(torch.zeros(5, 2, 4, 4)).labels) == 5
    assert len(model.predict(torch.zeros(2, 5, 5)).labels) == 1
    with pytest.raises(CnnlabError, match="2"):
        model.predict(torch.zeros(3, 5, 5))
