"""`cnnlab inspect` and `inspect_run`: text, JSON, pictures, and the messages when something is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import cnnlab
from cnnlab import CnnlabError, ImageSet, Inspection, Run, inspect_run, load_images, load_model, train
from cnnlab.inspect.activation import class_activation
from cnnlab.inspect.occlusion import occlusion
from cnnlab.inspect.pictures import NAMES, overlay
from conftest import Command, one_line_error, within_80


@pytest.fixture(scope="module")
def found(digits_run: Run) -> Inspection:
    return inspect_run(digits_run, count=3, threads=1)


def test_image_predictions_match_predict(digits_run: Run, found: Inspection) -> None:
    classifier, images = load_model(digits_run), cnnlab.inference.validation_images(digits_run)
    places = [images.ids.index(image.id) for image in found.images]
    assert len({image.label for image in found.images}) == 3
    assert [image.label for image in found.images] == [images.classes[images.labels[i]] for i in places]
    answers = classifier.predict(list(images.images[places]))
    assert [image.top for image in found.images] == answers.top(3)
    assert [image.explained for image in found.images] == answers.labels
    train_set = load_images("digits", "train")
    assert train_set is not None
    ids = dict(zip(train_set.ids, train_set.labels.tolist(), strict=True))
    for image in found.images:
        assert len(image.neighbours) == 5
        assert [n.distance for n in image.neighbours] == sorted(n.distance for n in image.neighbours)
        assert all(n.label == train_set.classes[ids[n.id]] and n.id not in images.ids for n in image.neighbours)
    x = classifier.preprocessing(images.images[places])
    predicted = answers.logits.argmax(1)
    assert torch.allclose(found.activation, class_activation(classifier.network, x, predicted), atol=1e-5)
    drop = occlusion(classifier.network, x, predicted, temperature=classifier.temperature)
    assert torch.allclose(found.occlusion, drop, atol=1e-5)


def test_a_chosen_class_is_explained(digits_run: Run, found: Inspection) -> None:
    eight = inspect_run(digits_run, count=3, class_name="8", neighbours=0, search=100, layer="4")
    assert [image.explained for image in eight.images] == ["8"] * 3
    assert [image.top for image in eight.images] == [image.top for image in found.images]
    assert (eight.searched, eight.training_images) == (100, found.training_images)
    assert not eight.images[0].neighbours
    assert (eight.activation_layer.path, found.activation_layer.path) == ("4", "7")
    for options in ({"class_name": "eight"}, {"layer": "77"}, {"count": -1}, {"weights": "worst"}, {"data": "nowhere"}):
        with pytest.raises(CnnlabError):
            inspect_run(digits_run, **options)


def test_pictures_are_saved_and_not_overwritten(found: Inspection) -> None:
    files = found.save("pictures")
    assert {file.stem for file in files} == set(NAMES)
    assert files == [Path("pictures") / f"{name}.png" for name in found.figures]
    for file in files:
        with Image.open(file) as picture:
            assert min(picture.size) > 100
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 20
    with pytest.raises(CnnlabError, match="exists"):
        found.save("pictures")


def test_the_command(digits_run: Run, cnnlab: Command) -> None:
    answer = cnnlab("inspect", digits_run.path, "--threads", 1)
    assert answer.returncode == 0, answer.stderr
    lines = within_80(answer.stdout)
    assert any(line.startswith("0 ") and "Conv2d" in line for line in lines)
    assert "no layer stands out" in answer.stdout
    assert "seed 0" in answer.stdout
    Path("pictures").mkdir()
    Path("pictures/filters.png").touch()
    Path("broken.png").write_bytes(b"no image")
    Image.new("RGB", (30, 20)).save("black.png")
    assert "--skip-bad" in one_line_error(cnnlab("inspect", digits_run.path, "broken.png", "black.png"))
    answer = cnnlab("inspect", digits_run.path, "broken.png", "black.png", "--skip-bad", "--json")
    values = json.loads(answer.stdout)
    assert [image["image"] for image in values["images"]] == ["black.png"]
    assert values["images"][0]["label"] is None
    assert len(values["skipped"]) == 1
    assert {layer["type"] for layer in values["statistics"]["layers"]} == {
        "Conv2d", "BatchNorm2d", "Sigmoid", "AvgPool2d", "Linear", "BatchNorm1d",
    }  # fmt: skip
    for wrong in (["--save", "pictures"], ["--save", "black.png"], ["missing.png"], ["--class", "ten"]):
        one_line_error(cnnlab("inspect", digits_run.path, *wrong))


def test_every_kind_of_image_can_be_inspected(digits_run: Run) -> None:
    array = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    found = inspect_run(digits_run, [array, Image.fromarray(array), torch.rand(2, 1, 8, 8)], neighbours=0, search=10)
    assert [image.id for image in found.images] == ["image 1", "image 2", "image 3", "image 4"]
    assert found.images[0].top == found.images[1].top


class Plain(nn.Module):
    """A network without convolutions."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(5 * 64, 16), nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.hidden(x.flatten(1)).relu())
        return out


def test_five_channels_hostile_names_and_a_missing_convolution_are_handled(cnnlab: Command, tmp_path: Path) -> None:
    names = ["<script>alert(1)</script>", "‮" + "long name " * 1000]
    X = np.random.default_rng(0).integers(0, 256, (40, 5, 8, 8), dtype=np.uint8)
    images = ImageSet(torch.from_numpy(X), torch.arange(40) % 2, [f"<img src=x onerror=alert({i})>" for i in range(40)],
                      names)  # fmt: skip
    result = train(Plain, data=images, epochs=1, name="plain", progress="none")
    found = result.inspect(data=images)
    assert len(found.images) == 6
    assert found.without_activation
    assert {text.split(":")[0] for text in found.left_out} == {"filters", "class-activation"}
    assert set(found.figures) == {"occlusion", "neighbours", "prototypes"}
    page = found._repr_html_()
    assert page.count("<img ") == 3
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "‮" not in page
    within_80("\n".join(line for line in str(found).splitlines() if "onerror" not in line))
    answer = cnnlab("inspect", "runs/plain")
    assert "model" in one_line_error(answer)


def test_a_run_without_its_images_can_be_inspected(shapes: Path, cnnlab: Command) -> None:
    train(data=f"folder:{shapes}", model="lenet-bn", epochs=1, name="moved", progress="none", image_size=28)
    shutil.move(shapes, "elsewhere")
    answer = cnnlab("inspect", "runs/moved", "elsewhere/dark/00.png", "--save", "pictures")
    assert answer.returncode == 0, answer.stderr
    assert "missing:" in answer.stdout
    assert "--data" in answer.stdout
    names = {"filters", "feature-maps", "class-activation", "occlusion"}
    assert {file.stem for file in Path("pictures").iterdir()} == names
    assert cnnlab("inspect", "runs/moved").returncode == 0
    values = inspect_run("moved", data="folder:elsewhere", count=1).to_dict()
    assert not values["missing"]
    assert values["split"] == "validation"
    shutil.rmtree("elsewhere/bright")
    one_line_error(cnnlab("inspect", "runs/moved", "--data", "folder:elsewhere"))


def test_the_overlay_is_red_for_positive_and_blue_for_negative_values() -> None:
    image = torch.full((3, 2, 3), 0.5)
    cam = torch.tensor([[0.0, 1.0, -1.0], [0.5, 0.0, 0.0]])
    pixels = overlay(image, cam)
    assert pixels.shape == (2, 3, 3)
    assert pixels[0, 0].tolist() == [0.5] * 3
    red, _, blue = pixels[0, 1]
    assert red > 0.8 > blue
    red, _, blue = pixels[0, 2]
    assert blue > 0.8 > red
