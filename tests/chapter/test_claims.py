"""The lessons' claims, checked against committed trainings with several seeds or a small computation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

import cnnlab
from cnnlab import load_images
from cnnlab.chapter import lessons
from cnnlab.chapter.figures import normal_residual
from cnnlab.chapter.lessons import committed, show
from cnnlab.inspect.summary import summarize
from cnnlab.models.densenet import DenseBlock, densenet, transition
from cnnlab.training.optim import initialize


def figures_of(lesson: str, figure: str, epoch: int = 0) -> dict[str, list[float]]:
    """Return a figure of each training of a lesson, one value per seed. epoch: counted from 1; 0: the last."""
    newest = max(
        committed.results_folder().glob(f"lesson-{lesson.replace('_', '-')}_*.json"), key=lambda p: p.stem[-10:]
    )
    found = json.loads(newest.read_text())
    assert found["n"] >= 3
    return {name: [epochs[epoch - 1] for epochs in figures[figure]] for name, figures in found["trainings"].items()}


CHANCE = 0.13


def figures_by_name(figures: dict[str, list[float]], start: str) -> list[float]:
    """Return the figures of the one training named `start`, with or without settings after the name."""
    (name,) = [name for name in figures if name == start or name.startswith(f"{start},")]
    return figures[name]


@pytest.mark.parametrize("lesson", lessons.lessons())
def test_a_table_of_seeds_has_every_network_of_its_lesson(lesson: str) -> None:
    text = "\n".join(cell.text for cell in lessons.read(lesson) if not cell.language)
    for name, figure, epoch in re.findall(r'show\.seeds\("(\w+)"(?:, "(\w+)")?(?:, epoch=(\d+))?\)', text):
        assert name == lesson
        chosen = (figure or "val_acc", int(epoch or 0))
        table = show.seeds(name, chosen[0], epoch=chosen[1]).data
        for values in figures_of(name, *chosen).values():
            assert f"| {', '.join(f'{v:.3f}' for v in values)} |" in table


# LeNet


def test_the_activation_alone_makes_learning_start_early() -> None:
    first, last = (figures_of("02_lenet", "val_acc", epoch) for epoch in (1, 0))
    for name, values in first.items():
        if "relu" in name:
            assert min(values) > 0.7
        else:  # plain LeNet, LeNet with max pooling, LeNet from Xavier's weights
            assert max(values) < CHANCE, name
    assert min(map(min, last.values())) > 0.97


# AlexNet


def relative_gradient(activation: nn.Module, depth: int, start: Callable[[nn.Module], object]) -> float:
    """Return the norm of the gradient at the input of layers of 64 units, relative to the norm at their output."""
    torch.manual_seed(0)
    layers = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), activation) for _ in range(depth)])
    start(layers)
    x = torch.randn(16, 64, requires_grad=True)
    y = layers(x)
    towards = torch.randn_like(y)
    (y * towards).sum().backward()
    assert x.grad is not None
    return (x.grad.norm() / towards.norm()).item()


def test_the_effect_of_an_activation_on_gradients_depends_on_the_weights() -> None:
    def xavier(gain: float) -> Callable[[nn.Module], object]:
        return lambda net: [nn.init.xavier_uniform_(m.weight, gain) for m in net.modules() if isinstance(m, nn.Linear)]

    sigmoid, relu = ([relative_gradient(a, 8, xavier(g)) for g in (1, 2**0.5, 4)] for a in (nn.Sigmoid(), nn.ReLU()))
    assert 0.5 < relu[1] < 2  # with suitable weights ReLU keeps the gradient's size
    assert sigmoid[1] < 1e-3
    assert sigmoid[2] > 1000 * sigmoid[0]  # larger weights help
    assert sigmoid[2] < 0.1  # but many units are then in the flat part of the sigmoid


# Batch normalisation


def test_without_batch_norm_the_initial_weights_and_optimizer_decide() -> None:
    val = figures_of("07_batch_norm", "val_acc")
    xavier, default = val["lenet"], val["lenet, init=pytorch"]
    assert max(default) < CHANCE  # an artefact of PyTorch's default weights ...
    assert max(val["lenet, batch_size=32, init=pytorch"]) < CHANCE
    assert max(xavier) > 0.8  # ... since from Xavier's, as in the manual, some seeds learn
    assert min(xavier) < 0.2
    assert max(val["without-bn"]) < 0.6
    assert max(val["lenet, learning_rate=0.02"]) < CHANCE
    for name in ("lenet, learning_rate=0.6", "lenet, batch_size=32"):
        assert max(val[name]) > max(xavier)
        assert min(val[name]) < CHANCE
    adam = [values for name, values in val.items() if "optimizer=adamw" in name]
    assert len(adam) == 2
    assert min(map(min, adam)) > 0.9
    assert min(val["lenet-bn"]) > 0.95
    assert val["lenet-bn"] == pytest.approx(val["lenet-bn-scratch"], abs=1e-3)


def test_with_batch_norm_every_seed_learns_from_the_first_epoch_on() -> None:
    assert min(figures_of("07_batch_norm", "val_acc", 1)["lenet-bn"]) > 0.3
    assert max(figures_of("07_batch_norm", "val_acc", 3)["lenet"]) < CHANCE


def differences(name: str, scheme: str) -> list[float]:
    """Return how much 64 images differ at each sigmoid's input in an untrained network, measured as in the lesson."""
    source = load_images("digits", "train")
    assert source is not None
    y = nn.functional.interpolate(source.images[:64] / 255, size=28)
    torch.manual_seed(0)
    net = cnnlab.build_model(name)
    initialize(net, scheme)
    found = []
    for layer in net.children():
        if isinstance(layer, nn.Sigmoid):
            found.append(y.std(0).mean().item())
        y = layer(y)
    return found


def test_batch_norm_keeps_images_apart_from_any_initial_weights() -> None:
    default, xavier = (differences("lenet", scheme) for scheme in ("pytorch", "xavier-uniform"))
    assert default[-1] < default[0] / 100
    assert 3 * default[-1] < xavier[-1] < 10 * default[-1]
    for scheme in ("pytorch", "xavier-uniform", "he-normal"):
        norm = differences("lenet-bn", scheme)
        assert norm[-1] >= norm[0]


# ResNet


def test_plain_deep_networks_fit_training_images_worse_and_residual_networks_do_not() -> None:
    train = figures_of("08_resnet", "train_acc")
    plain_4, plain_16, residual_4, residual_16 = (
        figures_by_name(train, name) for name in ("plain-4", "plain-16", "residual-4", "residual-16")
    )
    assert max(plain_16) < min(plain_4) - 0.1
    assert min(residual_16) > 0.99
    assert abs(sum(residual_16) - sum(residual_4)) / len(residual_4) < 0.01
    for name in train:
        assert "init=he-normal" in name or name.startswith("resnet18-small")


def test_whether_gradients_vanish_depends_on_the_initial_weights() -> None:
    default, he = (
        relative_gradient(nn.ReLU(), 30, lambda net, scheme=scheme: initialize(net, scheme))  # type: ignore[misc]
        for scheme in ("pytorch", "he-normal")
    )
    assert default < 1e-10
    assert 0.1 < he < 10


def test_the_lesson_labels_the_residual_like_the_figure() -> None:
    """In the lesson f(x) = g(x) + x, so the block's layers compute f(x) - x, as figure 1.5 labels them."""
    normal, residual = normal_residual()
    assert (normal.frame_title, residual.frame_title) == ("f(x)", "f(x) − x")
    for language in lessons.LANGUAGES:
        text = "\n".join(cell.text for cell in lessons.read("08_resnet") if cell.language == language)
        assert "$f(x) = g(x) + x$" in text
        assert "$g(x) = f(x) - x$" in text
        assert "g(x) = f(x) + x" not in text


# NiN


def test_the_small_network_without_1x1_convolutions_learns_sooner_and_ends_no_worse() -> None:
    first, last = (figures_of("05_nin", "val_acc", epoch) for epoch in (1, 0))
    assert min(first["nin-without"]) > max(first["nin-small"]) + 0.3
    assert sum(last["nin-without"]) >= sum(last["nin-small"]) - 0.01


def test_linear_layers_depend_on_positions_and_averages_do_not() -> None:
    def change_when_moved(head: Callable[[torch.Tensor], torch.Tensor]) -> float:
        x = torch.zeros(1, 4, 5, 5)
        x[0, :, 0, 0] = 1
        return (head(x) - head(x.flip(2, 3))).abs().max().item()

    torch.manual_seed(0)
    assert change_when_moved(nn.Sequential(nn.Flatten(), nn.Linear(100, 10))) > 0.1
    assert change_when_moved(nn.AdaptiveAvgPool2d(1)) == 0


# DenseNet


def test_within_a_block_channels_grow_and_the_side_is_unchanged() -> None:
    x = torch.rand(2, 8, 6, 6)
    y = DenseBlock(4, in_channels=8, growth=5)(x)
    assert y.shape == (2, 28, 6, 6)
    assert transition(28, 14, bias=True)(y).shape == (2, 14, 3, 3)


def test_smaller_images_take_a_ninth_of_the_multiply_adds() -> None:
    large, small = (summarize("densenet", image_size=side).multiply_adds for side in (96, 32))
    assert f"{large / small:.1f}" == "9.0"


def test_a_growth_rate_of_8_leaves_a_ninth_of_the_parameters() -> None:
    wide, narrow = (sum(p.numel() for p in densenet((4, 4, 4, 4), growth=growth).parameters()) for growth in (32, 8))
    assert round(wide / narrow) == 9
