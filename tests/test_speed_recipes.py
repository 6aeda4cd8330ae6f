"""The speed recipes: their cost, and that each of them trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cnnlab
from cnnlab import RECIPES, Recipe, train
from cnnlab.chapter.experiments import EXPERIMENTS
from cnnlab.io.errors import TrainingInterrupted
from cnnlab.models import build_model
from cnnlab.training import loop as training
from cnnlab.training.evaluate import logits

SPEED = [name for name in RECIPES if name.startswith(("speed/", "fast/"))]
SHORT = {"limit": 100, "epochs": 1, "batch_size": 50}
# One of each group of recipes that differ only in epochs and batch size.
TRAINED = {
    replace(RECIPES[name], name="", **SHORT): name for name in SPEED if RECIPES[name].model != "airbench96"
}.values()
NETWORKS = [name for name in EXPERIMENTS if name != "lenet-bn-scratch"]


def multiply_adds(recipe: Recipe, images: int) -> float:
    """Return the multiply-adds of the forward passes of a training, computed from the layers' shapes."""
    size = recipe.image_size or 28
    counts: list[float] = []

    def count(layer: nn.Module, _: object, out: torch.Tensor) -> None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        counts.append(layer.weight[0].numel() * out.numel())

    with torch.device("meta"):
        model = build_model(recipe.model, image_size=size).eval()
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.register_forward_hook(count)
        model(torch.zeros(1, 1, size, size))
    return sum(counts) * images * recipe.epochs


@pytest.mark.parametrize("network", NETWORKS)
def test_fast_recipes_take_a_small_fraction_of_the_manuals_multiply_adds(network: str) -> None:
    fast, manual = RECIPES[f"fast/{network}"], RECIPES[f"manual/{network}"]
    share = multiply_adds(manual, 60_000) / multiply_adds(fast, 54_000)
    assert share >= (3 if network.startswith("lenet") else 50)


@pytest.mark.parametrize("name", SPEED)
def test_recipes_select_on_validation(name: str) -> None:
    assert RECIPES[name].eval_split == "validation"
    assert RECIPES[name].val_fraction == 0.1
    assert RECIPES[name].split_seed == 0


@pytest.mark.parametrize("name", [n for n in TRAINED if "cifar" in n])
def test_every_cifar_recipe_trains(name: str) -> None:
    changes = {**SHORT, "data": "digits", "image_size": 32}
    assert train(RECIPES[name].changed(**changes), name="run").summary["epochs"] == 1


@pytest.mark.parametrize("name", [n for n in TRAINED if "cifar" not in n])
def test_every_other_recipe_trains(name: str, fashion_folder: Path) -> None:
    train(RECIPES[name].changed(**SHORT), data_dir=fashion_folder, name="run")
    found = cnnlab.evaluate_run("run", split="validation", weights="last", data_dir=fashion_folder, views="flip")
    assert found.result.count == 100
    assert found.to_dict()["views"] == "flip"


def test_the_fastest_recipe_reaches_its_accuracy(fashion_folder: Path) -> None:
    result = train("speed/fashion-90", data_dir=fashion_folder, name="run", limit=10_000)
    assert result.summary["val_acc"] > 0.83  # trained on a sixth of the images


def test_views_are_averaged() -> None:
    torch.manual_seed(0)
    model = build_model("airbench-small", image_size=28).eval()
    x = torch.rand(3, 1, 28, 28)
    padded = nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
    up, down = padded[:, :, :28, :28], padded[:, :, 2:, 2:]
    with torch.no_grad():
        flip = (model(x) + model(x.flip(3))) / 2
        moved = [(model(y) + model(y.flip(3))) / 2 for y in (up, down)]
        assert logits(model, x, "none").equal(model(x))
        torch.testing.assert_close(logits(model, x, "flip"), flip)
        torch.testing.assert_close(logits(model, x, "shift"), flip / 2 + (moved[0] + moved[1]) / 4)


@pytest.mark.parametrize("name", ["alexnet-small", "nin-small", "googlenet-small", "resnet18-small", "vgg11-small"])
def test_small_networks_have_the_layers_of_the_large_ones(name: str) -> None:
    small, large = (
        build_model(name),
        build_model({"vgg11-small": "vgg11-quarter"}.get(name, name.removesuffix("-small"))),
    )

    def layer_types(model: nn.Module) -> list[str]:
        layers = (m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
        return [type(layer).__name__ for layer in layers]

    assert layer_types(small) == layer_types(large)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in large.parameters()) / 3


def test_float16_trains_and_resumes_with_its_loss_scale(quick: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = quick.changed(precision="float16", epochs=3)
    whole = train(recipe, name="whole")
    plain = train(quick.changed(epochs=3), name="plain")
    assert whole.summary["loss"] == pytest.approx(plain.summary["loss"], rel=0.1)
    assert '"dtype": "float16"' in (whole.run.path / "environment.json").read_text()
    real, calls = training.evaluate, []

    def stop(*args: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", stop)
        with pytest.raises(TrainingInterrupted):
            train(recipe, name="stopped")
    cnnlab.resume("runs/stopped")
    last = [(Path("runs") / name / "last.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert last[0] == last[1]
