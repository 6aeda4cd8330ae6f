"""Fine-tuning: the head first, on features computed once, then all layers, by stage. Resumed to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from comparing import assert_same_run, interrupted
from torch import Tensor, nn

from cnnlab import CnnlabError, Recipe, resume, train
from cnnlab.models import build_model
from cnnlab.recipes import RECIPES
from cnnlab.training import finetune, loop
from cnnlab.training.checkpoint import read_weights
from cnnlab.training.display import Lines
from cnnlab.training.finetune import FrozenBody, find_head, freeze_batch_norm, layer_scales, stages
from cnnlab.training.optim import learning_rate, make_optimizer, set_learning_rate, size_in_epoch
from cnnlab.training.progress import out_of_patience
from cnnlab.training.runs import Run


class Small(nn.Sequential):
    """A network: conv, BN, ReLU; conv, BN, ReLU, dropout; pooling, linear."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        first = nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        second = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1))
        super().__init__(first, second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))


class ReluAfterHead(Small):
    """A network with an operation after its head."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        return y * 2


@pytest.fixture
def recipe() -> Recipe:
    return RECIPES["finetune"].changed(
        data="digits", epochs=3, freeze_epochs=2, limit=64, batch_size=16, image_size=8, shift=1, learning_rate=0.01,
        precision="float32", save_steps=1, name="tuned",
    )  # fmt: skip


def weights(path: Path) -> dict[str, Tensor]:
    return read_weights(path / "last.safetensors")


# Head, stages, rates


@pytest.mark.parametrize(
    ("name", "count", "first", "head"),
    [
        ("efficientnet-lite0", 10, "0.0.weight", ["11"]),
        ("resnet18", None, "0.0.weight", None),
        ("vgg11", None, None, None),
        ("timm:resnet18", 6, "conv1.weight", ["fc"]),
        ("timm:vit_tiny_patch16_224", 14, "cls_token", ["head"]),
        ("torchvision:mobilenet_v3_small", None, "features.0.0.weight", ["classifier.3"]),
        ("torchvision:squeezenet1_1", None, "features.0.weight", ["classifier.1"]),
    ],
)
def test_stages_and_head_of_networks_are_found(
    name: str, count: int | None, first: str | None, head: list[str] | None
) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    with torch.device("meta"):
        model = build_model(name, image_size=224)
        other = build_model(name, image_size=224, num_classes=11)
    found = stages(model)
    assert sorted(name for names in found for name in names) == sorted(n for n, _ in model.named_parameters())
    assert 6 <= len(found) <= 20
    assert count is None or len(found) == count
    assert first is None or found[0][0] == first
    last = find_head(model, lambda: other)
    assert head is None or last == head
    assert {n.rpartition(".")[0] for n in found[-1]} >= set(last)
    assert find_head(model)  # without another network to compare with: the last layer


def test_rates_fall_by_stage_and_are_set_by_group() -> None:
    recipe = Recipe(optimizer="adamw", layer_decay=0.5, learning_rate=0.1, weight_decay=0.01)
    model = Small()
    scales = layer_scales(model, 0.5)
    assert scales["0.0.weight"] == scales["0.1.bias"] == 0.25
    assert scales["1.0.weight"] == 0.5
    assert scales["4.weight"] == 1
    optimizer = make_optimizer(model, recipe)
    set_learning_rate(optimizer, 0.08)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert rates.keys() == {id(p) for p in model.parameters()}
    for name, p in model.named_parameters():
        assert rates[id(p)] == (0.08 * scales[name], 0.01 if p.ndim > 1 else 0.0), name
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for name, p in model.named_parameters():  # Adam's first step has the length of the rate, whatever the gradient
        decayed = before[name] * (1 - 0.08 * scales[name] * (0.01 if p.ndim > 1 else 0))
        torch.testing.assert_close(p.detach(), decayed - 0.08 * scales[name], rtol=1e-4, atol=1e-5)
    assert len(make_optimizer(model, Recipe(optimizer="sgd")).param_groups) == 2


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "step", "constant", "trapezoid"])
def test_each_phase_has_a_complete_schedule(schedule: str) -> None:
    both = Recipe(epochs=10, freeze_epochs=4, schedule=schedule, decay_every=2, start_size=8, image_size=16)
    for epochs, start in ((4, 0), (6, 40)):
        alone = Recipe(epochs=epochs, schedule=schedule, decay_every=2)
        rates = [learning_rate(both, start + step, 100) for step in range(10 * epochs)]
        assert rates == [learning_rate(alone, step, 10 * epochs) for step in range(10 * epochs)]
    sizes = [size_in_epoch(both, 16, epoch) for epoch in range(10)]
    alone = Recipe(epochs=6, start_size=8, image_size=16)
    assert sizes == [16] * 4 + [size_in_epoch(alone, 16, epoch) for epoch in range(6)]


# Training


def test_frozen_layers_keep_every_bit_until_they_are_unfrozen(recipe: Recipe) -> None:
    torch.manual_seed(1)
    model = Small()
    start = model.state_dict()
    body = [name for name in start if not name.startswith("4.")]
    frozen = weights(train(recipe.changed(epochs=2), model=model, name="frozen", threads=1).run.path)
    assert all(torch.equal(frozen[name], start[name]) for name in body)  # including batch norm's statistics
    assert not torch.equal(frozen["4.weight"], start["4.weight"])
    result = train(recipe, model=model, name="both", threads=1)
    both = weights(result.run.path)
    moved = {name for name in body if not torch.equal(both[name], start[name])}
    assert moved == {name for name in body if "running" not in name and "num_batches" not in name}
    assert all(p.requires_grad for p in result.model.parameters())
    updated = weights(train(recipe.changed(freeze_batch_norm=False), model=model, name="bn", threads=1).run.path)
    assert not torch.equal(updated["0.1.running_mean"], start["0.1.running_mean"])


def test_cached_features_give_the_same_results_as_the_whole_network(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = train(recipe, model=Small, name="cached", threads=1)
    real = FrozenBody.__init__
    monkeypatch.setattr(FrozenBody, "__init__", lambda self, *args: real(self, *args, cache=False))
    whole = train(recipe, model=Small, name="whole", threads=1)
    for a, b in zip(cached.history, whole.history, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["val_acc"] == b["val_acc"]
    for name, tensor in weights(cached.run.path).items():
        torch.testing.assert_close(tensor, weights(whole.run.path)[name], rtol=1e-4, atol=1e-5)


def test_features_are_computed_once_if_nothing_follows_the_head(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    for network in (Small, ReluAfterHead):
        calls = 0

        def counted(self: Any, x: Tensor, network: Any = network) -> Tensor:
            nonlocal calls
            calls += len(x)
            return network.__mro__[1].forward(self, x) * (2 if network is ReluAfterHead else 1)  # type: ignore[no-any-return]

        with monkeypatch.context() as patch:
            patch.setattr(network, "forward", counted)
            train(recipe.changed(epochs=8, freeze_epochs=8), model=network, name=network.__name__, threads=1)
        passes.append(calls)
    assert passes[0] < 64 + 64 + 100  # the rest are trials before the training
    assert passes[1] > 8 * 128


def test_the_callers_augmentation_starts_when_all_layers_are_trained(recipe: Recipe) -> None:
    shapes = []
    train(recipe, model=Small, threads=1, augment=lambda images: shapes.append(tuple(images.shape)) or images)
    assert shapes == [(2, 1, 8, 8), *[(16, 1, 8, 8)] * 4]  # one trial, then the last of three epochs
    few = train(recipe.changed(overfit=1, patience=2, select="macro_f1"), model=Small, name="few", threads=1)
    assert {row["images"] for row in few.history} == {16 * few.run.recipe.passes}


@pytest.mark.parametrize("turn", [3, 6, 10])  # within both frozen epochs of four steps, and after them
def test_an_interrupted_fine_tuning_resumes_to_the_same_bits(turn: int, recipe: Recipe) -> None:
    recipe = recipe.changed(average="ema")
    whole = train(recipe, model=Small, name="whole", threads=1).run.path
    path = interrupted(recipe, turn, model=Small)
    resume(path, model=Small, threads=1)
    assert_same_run(path, whole)


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_other_optimizers_resume_exactly(optimizer: str, recipe: Recipe) -> None:
    recipe = recipe.changed(optimizer=optimizer, momentum=0.9, on_nan="skip")
    whole = train(recipe, model=Small, name="whole", threads=1).run.path
    path = interrupted(recipe, 9, model=Small, module=loop.GuardedStep, function="__call__")
    resume(path, model=Small, threads=1)
    assert_same_run(path, whole)


def test_sgd_with_momentum_trains_if_all_groups_have_one_rate(recipe: Recipe) -> None:
    result = train(recipe.changed(optimizer="sgd", momentum=0.9, layer_decay=1.0), model=Small, threads=1)
    assert len(result.history) == 3


def test_patience_does_not_end_the_training_before_all_layers_are_trained(recipe: Recipe) -> None:
    rows = [{"val_acc": 0.5, "val_balanced_acc": 0.5, "val_loss": 1.0}] * 9
    for changes, stops in (
        ({}, [7, 8]),
        ({"freeze_epochs": 9}, [3, 4, 5, 6, 7, 8]),
        ({"freeze_epochs": 0}, [3, 4, 5, 6, 7, 8]),
    ):
        run = Run(Path(), recipe.changed(epochs=9, patience=2, freeze_epochs=5).changed(**changes), {})
        assert [n for n in range(1, 10) if out_of_patience(rows[:n], run)] == stops


def test_random_weights_are_not_frozen(recipe: Recipe) -> None:
    for name, remedy in (
        ("lenet", "efficientnet-lite0.in1k"),
        ("efficientnet-lite0", "efficientnet-lite0.in1k"),
        ("torchvision:resnet18", "torchvision:resnet18.DEFAULT"),
    ):
        with pytest.raises(CnnlabError, match=f"freeze_epochs=.*{remedy}"):
            train(recipe, model=name)
    for name in ("lennet", "efficientnet-lite0.in1", "torchvision:resnet81"):
        with pytest.raises(CnnlabError, match=f"model '{name.rpartition(':')[2]}'"):
            train(recipe, model=name)
    first = train(recipe.changed(freeze_epochs=0, epochs=1, image_size=28), model="lenet-bn", name="first").run
    second = train(recipe.changed(epochs=1, image_size=28), model="lenet-bn", init_from=first.path, name="second").run
    before, after = weights(first.path), weights(second.path)
    changed = [name for name, tensor in after.items() if not torch.equal(tensor, before[name])]
    assert changed
    assert {name.rpartition(".")[0] for name in changed} == {finetune.find_head(build_model("lenet-bn"))[0]}


def test_batch_norm_is_frozen_in_any_network() -> None:
    model = build_model("torchvision:resnet18").train()
    freeze_batch_norm(model)
    assert {type(m).__name__ for m in model.modules() if not m.training} == {"BatchNorm2d"}
    model = build_model("lenet-bn-scratch").train()
    freeze_batch_norm(model)
    assert {type(m).__name__ for m in model.modules() if not m.training} == {"BatchNorm"}


def test_a_user_network_without_batch_norm_is_refused(recipe: Recipe) -> None:
    with pytest.raises(CnnlabError, match="freeze_batch_norm=false"):
        train(recipe, model=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), progress="none")


def test_the_remaining_time_is_not_estimated_from_frozen_epochs(
    recipe: Recipe, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = Lines()
    lines.start(recipe.changed(epochs=4), MagicMock(), [])
    figures = {"loss": 1.0, "train_acc": 0.5, "val_acc": 0.5, "images_per_second": 9.0}
    for epoch, seconds in ((1, 100.0), (2, 100.0), (3, 7.0), (4, 7.0)):
        lines.epoch({"epoch": epoch, "seconds": seconds, **figures})
    said = [line.rpartition("images/s")[2].strip() for line in capfd.readouterr().err.splitlines()]
    assert said == ["", "", "about 0:07 left", ""]
